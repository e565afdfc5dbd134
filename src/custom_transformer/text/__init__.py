"""From a source of text to flat arrays of tokens."""

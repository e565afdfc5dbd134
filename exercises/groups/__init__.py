"""The exercises, a module for each group: what an answer is checked on, and the hints."""

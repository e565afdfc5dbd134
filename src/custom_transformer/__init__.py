"""A decoder-only transformer trained by hand-derived backpropagation."""

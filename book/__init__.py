"""The machinery of the book in docs/book: its formulas are checked, its examples computed, its pages rendered."""

"""What is faster than the readable mathematics and equals it; `choose.choose_engine` decides which engine runs."""

"""What is faster than ops.py, behind the same mathematics; `engine.choose_engine` decides which one runs."""

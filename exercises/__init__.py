"""Exercises in backpropagation, graded by the gradient check: python -m exercises"""

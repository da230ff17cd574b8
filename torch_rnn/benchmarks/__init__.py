"""Comparison with the NumPy baseline and timing against other libraries."""

"""Comparisons: with the NumPy reference on one batch, and in time with other libraries."""

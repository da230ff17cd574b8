"""Comparisons, with the NumPy reference on a batch and in time with other libraries; checks of a machine."""

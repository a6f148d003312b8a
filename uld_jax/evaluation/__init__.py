"""Measures of a detector. NumPy on the host, but for the views that `stability` warps on the device.

Points are `(x, y)` in pixels of the frame; a score of 0 means that the landmark was not found. None of the evaluators
knows a method: they take arrays.
"""

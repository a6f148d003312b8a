"""Timings: `python -m benchmarks.step`. Compare numbers of one run; those of two machines cannot be compared."""

"""Timings. Run one as `python -m benchmarks.step`; numbers from one run can be compared, those of two machines cannot."""

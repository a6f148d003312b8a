"""A method outside the library: one file, `method.py`, and one config. All tests of methods take it as one of them."""

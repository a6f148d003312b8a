"""Experiments, one file a method; `common.py` holds what they share. Installed as `uld_jax.configs`."""

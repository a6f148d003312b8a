"""Flax Linen networks without losses."""

"""Flags of the XLA compiler without which programs of this library would be wrong."""

import importlib.metadata
import os

# jaxlib 0.10.2 on CPU joins a sum of products, its repetition along an axis and what is done to it then in one
# program, which is wrong from 32,768 numbers on where one factor is shared by all rows: points of one bent warp were
# off by the whole image. Later versions are right, and end at a flag that they do not know, so it is for this one alone
# (findings/jax-cpu-reduce-then-add.sh).
FLAGS = {"0.10.2": ("xla_cpu_experimental_ynn_fusion_type", "")}


def set_flags() -> None:
    """Add what the installed jaxlib needs to XLA_FLAGS, unless the user has set it; it must precede JAX's first use."""
    name, value = FLAGS.get(importlib.metadata.version("jaxlib"), ("", ""))
    given = os.environ.get("XLA_FLAGS", "")
    if name and name not in given:
        os.environ["XLA_FLAGS"] = f"{given} --{name}={value}".strip()

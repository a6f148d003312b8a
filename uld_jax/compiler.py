"""Flags of the XLA compiler without which programs of this library would be wrong, or slow on TPUs."""

import importlib.metadata
import os

# jaxlib 0.10.2 on CPU joins a sum of products, its repetition along an axis and what is done to it then in one
# program, which is wrong from 32,768 numbers on where one factor is shared by all rows: points of one bent warp were
# off by the whole image. Later versions are right, and end at a flag that they do not know, so it is for this one alone
# (findings/jax-cpu-reduce-then-add.sh).
FLAGS = {"0.10.2": ("xla_cpu_experimental_ynn_fusion_type", "")}

# libtpu 0.0.42 rewrites a convolution of fewer than eight images a chip as one of strips of them, and copies the
# borders of the strips between any two layers, which takes more cycles than the convolutions (docs/benchmarks.md). With
# both flags such convolutions stay as they are. libtpu ends at a flag that it does not know, so they are for these
# versions alone.
TPU_FLAGS = {"0.0.42": ("xla_tpu_run_space_to_batch", "xla_tpu_run_space_to_batch_on_new_platforms")}


def set_flags() -> None:
    """Set what the installed compilers need, unless the user has; it must precede JAX's first use.

    The flags are added to the environment variables XLA_FLAGS and, where libtpu is installed, LIBTPU_INIT_ARGS.
    """
    name, value = FLAGS.get(_version("jaxlib"), ("", ""))
    if name:
        add_flag("XLA_FLAGS", name, value)
    for name in TPU_FLAGS.get(".".join(_version("libtpu").split(".")[:3]), ()):
        add_flag("LIBTPU_INIT_ARGS", name, "false")


def _version(package: str) -> str:
    """The version of an installed package; empty if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def add_flag(variable: str, name: str, value: str) -> None:
    """Add a flag to an environment variable of flags, such as XLA_FLAGS, that does not have it."""
    given = os.environ.get(variable, "")
    if not any(word.partition("=")[0] == f"--{name}" for word in given.split()):
        os.environ[variable] = f"{given} --{name}={value}".strip()

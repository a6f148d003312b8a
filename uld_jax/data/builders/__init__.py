"""Official data sets, and data sets in the format of TensorFlow Datasets (ArrayRecord), without TensorFlow.

DATASETS            names of the official data sets that `uld prepare --dataset=NAME --src=DIR` reads
find_dataset(name)  the builder's `official.Dataset`
"""

import importlib

from uld_jax.data.builders.official import Dataset

_FILES = (  # those with `DATASETS`
    "aflw",
    "aflw_mtfl",
    "celeba",
)


def _all() -> dict[str, Dataset]:
    modules = [importlib.import_module(f"{__name__}.{file}") for file in _FILES]
    return {dataset.name: dataset for module in modules for dataset in module.DATASETS}


DATASETS = _all()


def find_dataset(name: str) -> Dataset | None:
    """Return the official data set of a name; None if there is none."""
    return DATASETS.get(name)

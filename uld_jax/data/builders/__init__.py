"""Official data sets, and data sets in the format of TensorFlow Datasets (ArrayRecord), without TensorFlow.

DATASETS            the official data sets that `uld prepare --dataset=NAME --src=DIR` reads, {name: official.Dataset}
find_dataset(name)  one of them, or None
markdown()          the table of `docs/datasets.md`
"""

import importlib

from uld_jax.data.builders.official import Dataset
from uld_jax.data.specs import spec_of

_FILES = (  # those with `DATASETS`
    "aflw",
    "aflw_mtfl",
    "bbc_pose",
    "cats",
    "celeba",
    "human36m",
    "ls3d",
    "lsun",
    "pf_pascal",
    "shoes",
    "w300",
    "w300lp",
    "wflw",
)


def _all() -> dict[str, Dataset]:
    modules = [importlib.import_module(f"{__name__}.{file}") for file in _FILES]
    return {dataset.name: dataset for module in modules for dataset in module.DATASETS}


DATASETS = _all()


def find_dataset(name: str) -> Dataset | None:
    """Return the official data set of a name; None if there is none."""
    return DATASETS.get(name)


def markdown() -> str:
    """Format the data sets as a table of Markdown, for `docs/datasets.md`."""
    lines = ["| name | images | points | errors divided by | content | files |", "|---|---|---|---|---|---|"]
    for file in _FILES:
        for dataset in importlib.import_module(f"{__name__}.{file}").DATASETS:
            counts = [f"{split} {'?' if n is None else f'{n:,}'}" for split, n in dataset.counts.items()]
            points, length = "none", "–"
            if dataset.landmarks is not None:
                spec = spec_of(dataset.name, dataset.landmarks, scheme=dataset.scheme, normaliser=dataset.normaliser)
                points, length = f"{dataset.landmarks}, `{dataset.scheme}`", f"`{spec.normaliser}`"
            cells = [f"`{dataset.name}`", ", ".join(counts) or "–", points, length, dataset.about, f"`{file}.py`"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)

"""Configs of earlier versions, as finished runs have them, in the words of this one."""

from typing import Any

from uld_jax.errors import UserError

# New paths of stages that have moved: the configs of finished runs name the old ones.
MOVED = {"zeroshot.HeatmapDetector": "heatmap_detector.HeatmapDetector"}
ANY = object()  # a value that has made no difference
# Both papers of self-training were classes with a key `variant`. The class of each, and the keys that it no longer has,
# with the only value that runs can go on with.
VARIANTS = {
    ("self_training.Correspondence", "neurips"): ("self_training.Correspondence", {"background": ANY, "apart": ANY}),
    ("self_training.Correspondence", "extended"): (
        "self_training_extended.Correspondence",
        {"assignment": ANY, "cut": ANY, "seeding": ANY, "memory": "none", "negatives": "within"},
    ),
    ("self_training.Landmarks", "neurips"): (
        "self_training.Landmarks",
        {"mirroring": ANY, "merge_radius": 1.425, "loss_over": "labelled", "cutout": 0, "head_rate": 0},
    ),
    ("self_training.Landmarks", "extended"): (
        "self_training_extended.Landmarks",
        {"loss_over": "all"}
        | dict.fromkeys(("clusters", "least_images", "threshold"), ANY)
        | dict.fromkeys(("merge_from", "merge_every", "merge_share", "merge_radius"), ANY),
    ),
}
# Hyper-parameters of earlier versions that are constants now, by module: the configs of finished runs have them.
CONSTANTS = {
    "duld": {
        "code_margin": 0.8,
        "code_sigma": 1.5,
        "code_squared": False,
        "freeze_aggregator": True,
        "least_share": 0.05,
        "normalize_codes": True,
    },
}


def as_now(name: str, path: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class and the keys of a stage as they are now, from those of this or of an earlier version.

    Args:
      name: of the stage, for messages.
      path: `module.Class` of its method.
      values: hyper-parameters by key, with or without sections.

    Raises:
      UserError: a value that only an earlier version can use.
    """
    path = MOVED.get(path, path)
    gone = dict(CONSTANTS.get(path.partition(".")[0], {}))
    if (path, values.get("variant")) in VARIANTS:
        path, more = VARIANTS[path, values["variant"]]
        gone |= {"variant": ANY} | more
    for key, only in gone.items():
        if only is not ANY and values.get(key, only) != only:
            raise UserError(f"config.{name}.{key} is {values[key]!r}, which only earlier versions have; use {only!r}")
    return path, {key: value for key, value in values.items() if key not in gone}

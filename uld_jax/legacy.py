"""Configs of earlier versions, as finished runs have them, in the words of this one."""

from collections.abc import Mapping
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
# Sections that stages no longer have; what is left of their keys is the stage's own.
SECTIONS = {
    "duld.Duld": "contrast",
    "duld.DuldPP": "contrast",
    "self_training.Keypoints": "kmeans",
    "self_training.Correspondence": "kmeans",
    "self_training_extended.Correspondence": "kmeans",
}
# Hyper-parameters that are constants now, by class, with the value of the constant: the configs of finished runs have
# these keys, with their section before the dot or without.
_ADAM = {"optimizer.decay_at": (), "optimizer.l2": 0.0}
_RMSPROP = {"optimizer.l2": 1e-5}
_STAGE1 = {"sigma": 0.75, "iterations": 100, "contrast.descriptor_weight": 10.0, "contrast.margin": 0.8}
_DULD = {
    "block": 0,
    "code_margin": 0.8,
    "code_sigma": 1.5,
    "code_squared": False,
    "freeze_aggregator": True,
    "iterations": 100,
    "least_share": 0.05,
    "localise.sharpness": 10.0,
    "normalize_codes": True,
    "sigma": 1.0,
    "temperature": 0.1 / 1.41**2,
}
_PAIRS = {"descriptor_weight": 10.0, "margin": 0.8, "background": 64, "apart": 5.7}
CONSTANTS = {
    "cgb.CGB": {
        "beta1": 0.0,
        "beta2": 0.9,
        "clip": 1.0,
        "fixed_sigma": 0.5,
        "graph.tau": 0.8,
        "jitter": 0.033,
        "l2": 5e-4,
        "max_rotation": 40.0,
        "norm": "batch",
        "rotation": 15.0,
        "shift": 0.0,
        "temperature": 0.1,
    },
    "duld.Bootstrap": _DULD | _ADAM,
    "duld.Duld": _DULD | _ADAM | _PAIRS,
    "duld.Proxy": _DULD | _ADAM,
    "duld.DuldPP": _DULD | _ADAM | _PAIRS,
    "heatmap_detector.HeatmapDetector": {"norm": "batch", "relabel_spread": 0.75, "sigma": 1.0, "temperature": 0.1}
    | _ADAM,
    "imm.IMM": {
        "balance_rate": 0.01,
        "clip": 1.0,
        "decay": 0.95,
        "decay_every": 100_000,
        "detach_balance": False,
        "l2": 1e-5,
        "source_warp": (5.0, 0.1, 0.1, 0.001, 0.01),
        "target_warp": (0.0, 0.0, 0.1, 0.001, 0.005),
    },
    "self_training.Keypoints": {
        "background_clusters": (100, 250),
        "cut": 1.0,
        "generic.descriptors": "auto",
        "generic.nms": 0,
        "iterations": 100,
        "restarts": 1,
    },
    "self_training.Correspondence": _STAGE1 | _RMSPROP | {"assignment": "hungarian", "restarts": 1},
    "self_training.Landmarks": _RMSPROP | {"merge_share": 0.7, "threshold": 0.2},
    "self_training_extended.Correspondence": _STAGE1
    | _RMSPROP
    | {"apart": 5.7, "background": 128, "least_points": 0, "target": "pixel"},
    "self_training_extended.Landmarks": _RMSPROP,
    "zeroshot.ZeroShot": {"iterations": 100},
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
    path, gone = MOVED.get(path, path), {}
    if (path, values.get("variant")) in VARIANTS:
        path, gone = VARIANTS[path, values["variant"]]
        gone = {"variant": ANY} | gone
    gone = CONSTANTS.get(path, {}) | gone
    section = values.get(SECTIONS.get(path))
    if isinstance(section, Mapping):
        values = {key: value for key, value in values.items() if value is not section} | section
    kept = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key, only in gone.items():
        section, _, field = key.rpartition(".")
        found = {field: kept.pop(field, only)}
        if isinstance(kept.get(section), dict):
            found[key] = kept[section].pop(field, only)
        for known, value in found.items():
            value = tuple(value) if isinstance(value, list) else value
            if only is not ANY and value != only:
                raise UserError(f"config.{name}.{known} is {value!r}, which only earlier versions have; use {only!r}")
    return path, kept

"""The feature cache of a stage: maps of its frozen backbone that are read from a folder instead of computed."""

import os
from typing import Any

from uld_jax.backbones import LATENTS, Latents, build
from uld_jax.config import StageSpec
from uld_jax.data import Source
from uld_jax.data.feature_cache import FeatureCache
from uld_jax.errors import UserError


def opened(stage: StageSpec, source: Source, frozen: Any) -> FeatureCache | None:
    """Open the cache that a stage names and check it against its backbone and these images; None if it names none.

    Raises UserError for a cache of another backbone or of other images.
    """
    folder = stage.method.cache
    if not folder:
        return None
    cache = FeatureCache(os.path.expanduser(folder))
    backbone = whole_or_latents(of_stage(stage), cache.description.what, f"{cache.folder} holds")
    cache.check(source, backbone, stage.method.backbone_frozen(frozen))
    return cache


def latents(stage: StageSpec, cache: FeatureCache | None) -> dict[str, Any]:
    """Read the latents of all images as a table for steps; {} for a stage whose steps do not train on its cache.

    Raises UserError if the cache holds maps.
    """
    if cache is None or not stage.method.trains_on_cache:
        return {}
    if cache.description.what != LATENTS:
        raise UserError(
            f"{cache.folder} holds {cache.description.what}, and stage {stage.name} trains on latents "
            "(warped=latents); write them by `uld features --what=latents`"
        )
    return cache.read(range(len(cache)))


def looks_through_one(stage: StageSpec) -> bool:
    """Tell whether a stage uses a frozen backbone."""
    return bool(stage.method.backbone)


def of_stage(stage: StageSpec):
    """Build the frozen backbone of a stage."""
    method = stage.method
    return build.backbone(method.backbone, f"{stage.name}.backbone", method.backbone_kwargs, method.weights)


def whole_or_latents(backbone, what: str, who: str):
    """Return the backbone, or for latents its first step; `who` begins the sentence of the error.

    Raises UserError if the backbone has no latents.
    """
    if what == "maps":
        return backbone
    if not hasattr(backbone, "encode"):
        raise UserError(f"{who} latents, and the backbone {backbone.spec.name} has none; use its maps, by --what=maps")
    return Latents(backbone)

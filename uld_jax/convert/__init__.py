"""`uld convert`: published checkpoints to folders of weights. One small file a network; the rules are strict."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from uld_jax import weights
from uld_jax.convert import (
    dhf_aggregator,
    dinov2,
    fan,
    files,
    gcn_v,
    mallis,
    r2d2,
    self_training,
    stable_diffusion,
    superpoint,
    vgg16,
)
from uld_jax.errors import UserError


class Kind(NamedTuple):
    """What may be converted.

    Attributes:
      convert: takes the entries of the file and `where`, its name in messages; returns a pytree of arrays.
      licence: what is known of the published weights' licence.
      has_core: whether `convert` also takes `core`, the entries of a second file.
      beside: what a PyTorch file of this kind has beside its `state_dict`; None where that is of no interest.
      nested: under which name a PyTorch file of this kind has its tensors, where they are nested.
      facts: takes what `convert` returned; returns what `source.json` also says of it.
      folder: how to read a folder of this kind; None where only a file is taken.
      is_run: whether there is nothing but folders of this kind, and what is after a colon is a stage.
    """

    convert: Callable[..., Any]
    licence: str
    has_core: bool = False
    beside: files.Beside | None = None
    nested: str = "state_dict"
    facts: Callable[[Any], dict[str, Any]] = lambda _: {}
    folder: Callable[[str], files.Opened] | None = None
    is_run: bool = False


KINDS = {
    "dhf_aggregator": Kind(
        dhf_aggregator.convert,
        "these weights were trained SUPERVISED, on the annotated keypoints of SPair-71k, so that what starts from them "
        "is no longer unsupervised; the repository of diffusion hyperfeatures carries no licence",
        nested="aggregation_network",
        facts=dhf_aggregator.facts,
    ),
    "dinov2": Kind(
        dinov2.convert,
        "DINOv2's code and weights are Apache-2.0",
        facts=dinov2.facts,
        folder=dinov2.open_folder,
    ),
    "fan": Kind(
        fan.convert,
        "the weights' publisher decides: SAIC's code and checkpoint are CC BY-NC 4.0 (non-commercial); CGB's "
        "repository, which has the same core network, states no licence",
        has_core=True,
    ),
    "gcn_v": Kind(
        gcn_v.convert,
        "learn-to-cluster is MIT; MS-Celeb-1M, on whose faces its weights were trained, was withdrawn by its publisher "
        "and terms for what was learned from it are not stated",
    ),
    "mallis": Kind(
        mallis.convert,
        "the code of both papers is MIT; for the weights no terms are stated, and the faces that they were trained on "
        "(CelebA, LS3D-W) are for non-commercial research",
        beside=mallis.BESIDE,
        facts=mallis.facts,
    ),
    "r2d2": Kind(
        r2d2.convert,
        "NAVER's code and weights are CC BY-NC-SA 3.0 (non-commercial)",
    ),
    "self_training": Kind(
        self_training.convert,
        "the run's owner decides, within the terms of the images that it was trained on",
        facts=self_training.facts,
        folder=self_training.open_folder,
        is_run=True,
    ),
    "stable_diffusion": Kind(
        stable_diffusion.convert,
        "Stable Diffusion 1.5's weights are CreativeML OpenRAIL-M, 2.1's CreativeML OpenRAIL++-M: free, with "
        "restrictions on use that go with what is made of them",
        facts=stable_diffusion.facts,
        folder=stable_diffusion.open_folder,
    ),
    "superpoint": Kind(
        superpoint.convert,
        "Magic Leap's code and weights are for academic or non-profit, non-commercial research only and may not be "
        "redistributed",
    ),
    "vgg16": Kind(
        vgg16.convert_imagenet,
        "torchvision is BSD-3-Clause; its weights were trained on ImageNet, whose terms are for non-commercial "
        "research and education",
    ),
    "vgg16_colorization": Kind(
        vgg16.convert_colorization,
        "the code of Larsson et al. is BSD-3-Clause; for the weights no licence is stated",
    ),
}


def convert(kind: str, src: str, dst: str, core: str | None = None) -> dict[str, Any]:
    """Converts the checkpoint file `src` into the folder `dst`, which `config.weights.<kind>` then names.

    Args:
      kind: one of `KINDS`.
      src: a PyTorch, safetensors or HDF5 file, or of some kinds a folder, or a finished run; the module of the kind
        says which entries it must have.
      dst: the folder to make; see `uld_jax.weights` for its files. It appears when it is whole, not before.
      core: the core network's file, for SAIC's incremental FAN checkpoints.

    Returns:
      What `dst/source.json` says.

    Raises:
      UserError: for an unknown kind, a file that cannot be read or does not fit, a missing package, or a `dst` that
        holds something else than this very conversion.
    """
    if kind not in KINDS:
        raise UserError(f"--kind={kind} is unknown; use one of {', '.join(KINDS)}")
    src, core = os.path.expanduser(src), os.path.expanduser(core or "")
    if core and not KINDS[kind].has_core:
        raise UserError(f"--core is of no use for --kind={kind}; leave it out")
    if KINDS[kind].is_run or (KINDS[kind].folder and os.path.isdir(src)):
        src = os.path.normpath(src)
        entries, paths, more = KINDS[kind].folder(src)
    else:
        entries, paths, more = files.read(src, beside=KINDS[kind].beside, nested=KINDS[kind].nested), [src], {}
    source = {"file": os.path.basename(src), "sha256": files.sha256(*paths), "entries": len(entries)}
    if core:
        more = more | {"core": files.read(core, "--core")}
        source |= {"core_file": os.path.basename(core), "core_sha256": files.sha256(core)}
    params = KINDS[kind].convert(entries, where=src, **more)
    return weights.save(dst, kind, params, source | KINDS[kind].facts(params) | {"licence": KINDS[kind].licence})

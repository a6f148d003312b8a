"""`uld convert`: published checkpoints to folders of weights, by strict rules in one small file a network."""

import functools
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
    lead,
    mallis,
    ncnet,
    r2d2,
    resnet,
    self_training,
    stable_diffusion,
    superpoint,
    vgg16,
)
from uld_jax.errors import UserError


class Kind(NamedTuple):
    """A kind of checkpoint that can be converted.

    Attributes:
      convert: function of the entries of the file and `where`, its name in messages; returns a pytree of arrays.
      licence: known facts about the published weights' licence.
      has_core: True if `convert` also takes `core`, the entries of a second file.
      beside: entries of a PyTorch file of this kind beside its `state_dict`; None if they are not read.
      nested: names under which a PyTorch file of this kind has its tensors, if they are nested; the first counts.
      text: a text of the trainer's options that is read too, such as "opt.dataset"; see `files.read`.
      trainer: True if a PyTorch file of this kind has options and arrays of its trainer, which are not read.
      facts: function of the result of `convert`; returns further entries of `source.json`.
      source_facts: function of the entries of the file that does the same, for what only these show.
      folder: function that reads a folder of this kind; None if only a file is accepted.
      is_run: True if the source is a finished run, `WORKDIR[:stage]`, not a file.
    """

    convert: Callable[..., Any]
    licence: str
    has_core: bool = False
    beside: files.Beside | None = None
    nested: tuple[str, ...] = ("state_dict",)
    text: str = ""
    trainer: bool = False
    facts: Callable[[Any], dict[str, Any]] = lambda _: {}
    source_facts: Callable[[Any], dict[str, Any]] = lambda _: {}
    folder: Callable[[str], files.Opened] | None = None
    is_run: bool = False


def _resnet(depth: int) -> Kind:
    return Kind(
        functools.partial(resnet.convert, depth=depth),
        "the weights' publisher decides: torchvision is BSD-3-Clause, transformers' networks are Apache-2.0, MoCo's "
        "CC BY-NC 4.0 (non-commercial), and ContrastLandmark states none; ImageNet and CelebA, on which they were "
        "trained, are for non-commercial research",
        nested=resnet.NESTED,
        text=resnet.DATASET,
        source_facts=resnet.facts,
        folder=functools.partial(resnet.open_folder, depth=depth),
    )


KINDS = {
    "dhf_aggregator": Kind(
        dhf_aggregator.convert,
        "these weights were trained SUPERVISED, on the annotated keypoints of SPair-71k, so that what starts from them "
        "is no longer unsupervised; the repository of diffusion hyperfeatures carries no licence",
        nested=("aggregation_network",),
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
    "lead": Kind(
        lead.convert,
        "the run's owner decides, within the terms of the images that it was trained on",
        facts=lead.facts,
        folder=lead.open_folder,
        is_run=True,
    ),
    "mallis": Kind(
        mallis.convert,
        "the code of both papers is MIT; for the weights no terms are stated, and the faces that they were trained on "
        "(CelebA, LS3D-W) are for non-commercial research",
        beside=mallis.BESIDE,
        facts=mallis.facts,
    ),
    "ncnet": Kind(
        ncnet.convert,
        "NC-Net's code is MIT; for its weights no terms are stated, and they start from torchvision's of ImageNet, "
        "whose terms are for non-commercial research and education",
        trainer=True,
        facts=ncnet.facts,
    ),
    "r2d2": Kind(
        r2d2.convert,
        "NAVER's code and weights are CC BY-NC-SA 3.0 (non-commercial)",
    ),
    "resnet101": _resnet(101),
    "resnet18": _resnet(18),
    "resnet50": _resnet(50),
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
    """Convert the checkpoint file `src` into the folder `dst`, for use as `config.weights.<kind>`.

    Args:
      kind: one of `KINDS`.
      src: a PyTorch, safetensors or HDF5 file, or for some kinds a folder or a finished run; the module of the kind
        lists the entries it must have.
      dst: the folder to make; see `uld_jax.weights` for its files. It appears only when it is complete.
      core: the core network's file, for SAIC's incremental FAN checkpoints.

    Returns:
      The contents of `dst/source.json`.

    Raises:
      UserError: an unknown kind, a file that cannot be read or does not fit, a missing package, or a `dst` that
        holds something else than this very conversion.
    """
    if kind not in KINDS:
        raise UserError(f"--kind={kind} is unknown; use one of {', '.join(KINDS)}")
    how = KINDS[kind]
    src, core = os.path.expanduser(src), os.path.expanduser(core or "")
    if core and not how.has_core:
        raise UserError(f"--core is of no use for --kind={kind}; leave it out")
    if how.is_run or (how.folder and os.path.isdir(src)):
        src = os.path.normpath(src)
        entries, paths, more = how.folder(src)
    else:
        entries = files.read(src, beside=how.beside, nested=how.nested, text=how.text, trainer=how.trainer)
        paths, more = [src], {}
    count = len(entries) - (how.text in entries)  # a text is no entry of the network
    source = {"file": os.path.basename(src), "sha256": files.sha256(*paths), "entries": count}
    if core:
        more = more | {"core": files.read(core, "--core")}
        source |= {"core_file": os.path.basename(core), "core_sha256": files.sha256(core)}
    params = how.convert(entries, where=src, **more)
    source |= how.facts(params) | how.source_facts(entries)
    return weights.save(dst, kind, params, source | {"licence": how.licence})

"""A finished run of self-training (`configs/self_training.py`) to the frozen network of its first stage.

`src` is the run's folder, or FOLDER:STAGE; by default the last of its stages that is a `self_training.Correspondence`,
or the extended one.

  config.json                       the network's size, and its view of a frame
  checkpoints/STAGE/final/state     `params`, the network's; other entries (optimiser, labels) are not read

The result is a nested dict,

  params    parameters of a `models.fan.CorrespondenceFAN` with group normalisation
  view      numbers: `image_size`, side of the view in pixels; `zoom`, the fraction of the frame that it showed;
            `downsample`, that of the network
"""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from uld_jax.convert import files
from uld_jax.errors import UserError, flag
from uld_jax.models.fan import CorrespondenceFAN

METHOD = "self_training.Correspondence"
METHODS = (METHOD, "self_training_extended.Correspondence")
_VIEW = ("image_size", "zoom", "downsample")
_SIZE = ("descriptor_size", "width", "depth", "downsample")


def open_folder(path: str) -> files.Opened:
    """Open a run's stage: its parameters by name, joined by `/`, and its settings.

    Raises:
      UserError: there is no run of self-training or no such stage, or it is not finished.
    """
    folder, name = _split(path)
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        stages = {stage: config[stage]["method"] for stage in config["stages"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--src={path} is no run ({type(error).__name__} at its config.json); give the folder of a finished "
            "`uld train --config=configs/self_training.py`"
        ) from error
    known = [stage for stage, method in stages.items() if method in METHODS]
    name = name or (known[-1] if known else "")
    if name not in known:
        what = f"no stage {name!r} that is one" if name else "none"
        raise UserError(f"--src={path}: of its stages {', '.join(stages)} there is {what}; needed is a {METHOD}")
    final = os.path.abspath(os.path.join(folder, "checkpoints", name, "final", "state"))
    if not os.path.isdir(final):
        again = f"give its `uld train` with {flag('workdir', folder)} again, to its end"
        raise UserError(f"--src={path} holds no finished stage {name!r}; {again}")
    paths = sorted(os.path.join(at, file) for at, _, names in os.walk(final) for file in names)
    return files.Opened(_read(final), paths, {"settings": config[name]})


def convert(entries, *, where: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Convert the entries to the dict in the module's docstring, float32.

    Raises:
      UserError: parameters of another network, or parameters that are not finite.
    """
    usual = dict(zip(_SIZE, (256, 256, 4, 4), strict=True)) | dict(image_size=256, zoom=1.0)
    # Runs of earlier versions have these keys without sections.
    settings = {**settings, **settings.get("net", {}), **settings.get("view", {})}
    values = {key: settings.get(key, value) for key, value in usual.items()}
    network = CorrespondenceFAN(*(values[key] for key in _SIZE))
    side = network.downsample * 2**network.depth
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: network.init(key, x), jax.random.key(0), image)["params"]
    wanted = {"/".join(path): leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    found = {key: value.shape for key, value in entries.items()}
    if differs := sorted(key for key in wanted | found if wanted.get(key) != found.get(key)):
        raise UserError(
            f"{where}: its config and its network differ ({differs[0]} has shape {found.get(differs[0])} and should "
            f"have {wanted.get(differs[0])}); give a run as `uld train` left it"
        )
    if broken := [key for key, value in entries.items() if not np.isfinite(value).all()]:
        raise UserError(f"{where}: {broken[0]} holds numbers that are not finite; the run has failed, train another")
    params = traverse_util.unflatten_dict({tuple(key.split("/")): value for key, value in entries.items()})
    return {"params": params, "view": {key: np.float32(values[key]) for key in _VIEW}}


def facts(converted: dict[str, Any]) -> dict[str, Any]:
    """The facts about the network and its view for `source.json`, which can be read without the weights."""
    params, view = converted["params"], converted["view"]
    zoom = round(float(view["zoom"]), 6)  # as it was written before it became float32
    return {
        "width": params["l1"]["kernel"].shape[2],
        "descriptor_size": params["l1"]["kernel"].shape[3],
        "depth": sum(name.startswith("b1_") for name in params["m0"]),
        "downsample": int(view["downsample"]),
        "image_size": int(view["image_size"]),
        "zoom": zoom,
    }


def _split(path) -> tuple[str, str]:
    folder, _, stage = path.rpartition(":")
    return (path, "") if not folder or os.path.isdir(path) else (folder, stage)


def _read(path) -> dict[str, np.ndarray]:
    """Read only the parameters of a state."""
    try:
        handler, path = ocp.PyTreeCheckpointHandler(), epath.Path(path)
        saved = handler.metadata(path)
        wanted = {"params": getattr(saved, "tree", saved)["params"]}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
        found = handler.restore(path, args=args)["params"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); the run is damaged") from error
    return {"/".join(path): value for path, value in traverse_util.flatten_dict(found).items()}

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

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.convert import files, runs
from uld_jax.models.fan import CorrespondenceFAN

METHOD = "self_training.Correspondence"
METHODS = (METHOD, "self_training_extended.Correspondence")
_VIEW = ("image_size", "zoom", "downsample")
_SIZE = ("descriptor_size", "width", "depth", "downsample")


def open_folder(path: str) -> files.Opened:
    """Open a run's stage: its parameters by name, joined by `/`, and its settings; see `runs.open_stage`."""
    return runs.open_stage(path, METHODS, "self_training")


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
    params = runs.as_tree(entries, shapes, where)
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

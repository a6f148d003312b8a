"""A finished run of LEAD (`configs/lead.py`) to the frozen network of one of its stages.

`src` is the run's folder, or FOLDER:STAGE; by default the last of its stages that is one of `METHODS`.

The result is a nested dict,

  params       parameters by part: `encoder`, and after the second stage `fpn`
  model_state  batch statistics by part
  view         numbers: `image_size`, side of the view in pixels; `zoom`, the fraction of the frame that it showed;
               `imagenet`, 1 if images are normalised as for ImageNet, or 0 as for CelebA
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.convert import files, runs
from uld_jax.models import lead_net, resnet

METHODS = ("lead_compact.Compact", "lead.Byol", "lead.Moco")
PARTS = ("encoder", "fpn")  # heads are only for training
TYPICAL = dict(depth=50, width=64, image_size=96, zoom=96 / 136, colours="celeba")
_FPN = dict(size=64, width=256, inner=128)


def open_folder(path: str) -> files.Opened:
    """Open a run's stage: parameters and statistics by name, joined by `/`, and its settings."""
    return runs.open_stage(path, METHODS, "lead", ("params", "model_state"))


def convert(entries, *, where: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Convert the entries to the dict in the module's docstring, float32.

    Raises:
      UserError: parameters of another network, or parameters that are not finite.
    """
    flat = {**settings, **settings.get("encoder", {}), **settings.get("view", {})}
    values = {key: flat.get(key, value) for key, value in TYPICAL.items()}
    fpn = {"size": settings.get("size", _FPN["size"])} | settings.get("fpn", {})
    fpn = {key: fpn.get(key, value) for key, value in _FPN.items()}
    encoder = resnet.ResNet(values["depth"], values["width"])
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shape = lambda network, x: jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), x)
    shapes = {"encoder": shape(encoder, image)}
    if any(key.startswith("params/fpn/") for key in entries):
        maps = jax.eval_shape(lambda variables, x: encoder.apply(variables, x, train=False), shapes["encoder"], image)
        shapes["fpn"] = shape(lead_net.FeaturePyramid(**fpn), maps)
    wanted = {
        "params": {part: variables["params"] for part, variables in shapes.items()},
        "model_state": {part: {"batch_stats": variables["batch_stats"]} for part, variables in shapes.items()},
    }
    kept = {key: value for key, value in entries.items() if key.split("/")[1] in PARTS}
    view = {key: np.float32(values[key]) for key in ("image_size", "zoom")}
    view["imagenet"] = np.float32(values["colours"] == "imagenet")
    return runs.as_tree(kept, wanted, where) | {"view": view}


def facts(converted: dict[str, Any]) -> dict[str, Any]:
    """The facts about the network and its view for `source.json`, which can be read without the weights."""
    params, view = converted["params"], converted["view"]
    blocks = sum(name.startswith("layer1_") for name in params["encoder"])
    found = {
        "depth": {1: 10, 2: 18, 3: 50}[blocks],
        "width": params["encoder"]["conv1"]["kernel"].shape[3],
        "image_size": int(view["image_size"]),
        "zoom": round(float(view["zoom"]), 6),
        "colours": "imagenet" if view["imagenet"] else "celeba",
    }
    if "fpn" in params:
        found["fpn"] = lead_net.sizes(params["fpn"])
    return found

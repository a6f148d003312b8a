"""The shapes of published networks, known without their files, for programs that are compiled or timed without weights.

Kinds are those of `uld convert`. DINOv2 is the base network, Stable Diffusion is 1.5.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.convert import KINDS
from uld_jax.models import dinov2, fan, r2d2, resnet, superpoint
from uld_jax.models.stable_diffusion import schedule, unet, vae

FAN_LANDMARKS = 16  # of MPII's people, on which CGB's checkpoint was trained
DIFFUSION = {"1.5": ((8, 8, 8, 8), 768), "2.1": ((5, 10, 20, 20), 1024)}  # heads, size of the prompt's embedding


def shapes_of(network, *shapes: tuple[int, ...], **options) -> Any:
    """Return the shapes of a network's variables for float32 inputs of these shapes."""
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.eval_shape(lambda key, *given: network.init(key, *given, **options), jax.random.key(0), *inputs)


def vision_transformer(width: int) -> Any:
    """Return the shapes of a DINOv2 network: 384 is small, 768 base, 1024 large (with fewer blocks)."""
    network = dinov2.Dinov2(width, width // dinov2.HEAD_SIZE, 4 * width)
    return shapes_of(network, (1, 28, 28, 3))["params"]


def diffusion(version: str) -> dict[str, Any]:
    """Return the shapes of a version of Stable Diffusion; the noise schedule and two numbers are arrays."""
    heads, prompt = DIFFUSION[version]
    return {
        "unet": shapes_of(unet.UNet(heads=heads), (1, 8, 8, 4), (), (77, prompt))["params"],
        "vae": shapes_of(vae.Encoder(), (1, 16, 16, 3))["params"],
        "empty_prompt": jax.ShapeDtypeStruct((77, prompt), jnp.float32),
        "alphas_cumprod": schedule.alphas_cumprod(),
        "v_prediction": jnp.float32(version == "2.1"),
        "scaling_factor": jnp.float32(0.18215),
    }


def _resnet(depth: int) -> Callable[[], Any]:
    return lambda: shapes_of(resnet.ResNet(depth), (1, 32, 32, 3), train=False)


SHAPES = {
    "dinov2": lambda: vision_transformer(768),
    "fan": lambda: shapes_of(fan.FAN(FAN_LANDMARKS), (1, 64, 64, 3), train=False),
    "r2d2": lambda: shapes_of(r2d2.R2D2(), (1, 32, 32, 3))["params"],
    "resnet101": _resnet(101),
    "resnet18": _resnet(18),
    "resnet50": _resnet(50),
    "stable_diffusion": lambda: diffusion("1.5"),
    "superpoint": lambda: shapes_of(superpoint.SuperPoint(), (1, 32, 32, 1))["params"],
}


def publish() -> None:
    """Name the shapes of all kinds of `SHAPES` to `uld_jax.weights`."""

    def with_facts(kind):
        shapes = SHAPES[kind]()
        return shapes, KINDS[kind].facts(shapes)

    for kind in SHAPES:
        weights.publish(kind, functools.partial(with_facts, kind))

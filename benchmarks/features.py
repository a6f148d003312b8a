"""Timings of frozen backbones: images a second, computed and from the cache of `uld features`; FLOPs; memory an image.

python -m benchmarks.features                                                       without Stable Diffusion
python -m benchmarks.features --backbones=dinov2-base,sd15@512,sd21@512 --batch_size=8                        a GPU

A backbone is NAME or NAME@SIDE, the side of its images in pixels. Networks have the published sizes and random weights,
as neither time nor memory depends on the weights.

`cached` is the time from files to maps on the device, of a cache that was just written and is likely still in memory;
`latents` is the time from files of latents, with the second step of the backbone. FLOPs are XLA's count. The share of
the peak is that of the arithmetic's type: float32 is never rounded to TF32 here. Memory is the program's need for an
image besides its arguments: maps and temporaries, by XLA's analysis, which on CPU seems to leave out the memory of
libraries: it finds hardly any temporaries in R2D2 and SuperPoint.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from uld_jax import sharding
from uld_jax.backbones import Latents, Spec
from uld_jax.backbones.corners import Corners
from uld_jax.backbones.dinov2 import Dinov2
from uld_jax.backbones.gradient import GradientHistograms
from uld_jax.backbones.r2d2 import R2D2
from uld_jax.backbones.stable_diffusion import StableDiffusion
from uld_jax.backbones.superpoint import SuperPoint
from uld_jax.convert import published
from uld_jax.data import feature_cache
from uld_jax.data.specs import Source

DEFAULT = "gradient,corners,r2d2,superpoint,dinov2-small,dinov2-base"


class Known(NamedTuple):
    """A backbone that can be timed.

    Attributes:
      side: side of its images in pixels, unless another is given.
      make: function side -> backbone.
      frozen: shapes of its weights, {} without any.
    """

    side: int
    make: Callable[[int], Any]
    frozen: Callable[[], Any] = dict


def _vit(width: int):
    return Known(448, lambda side: Dinov2(image_size=side), lambda: published.vision_transformer(width))


def _diffusion(version: str):
    return Known(512, lambda side: StableDiffusion(image_size=side), lambda: published.diffusion(version))


BACKBONES = {
    "gradient": Known(256, lambda side: GradientHistograms()),
    "corners": Known(256, lambda side: Corners()),
    "r2d2": Known(256, lambda side: R2D2(), published.SHAPES["r2d2"]),
    "superpoint": Known(256, lambda side: SuperPoint(), published.SHAPES["superpoint"]),
    "dinov2-small": _vit(384),
    "dinov2-base": _vit(768),
    "sd15": _diffusion("1.5"),
    "sd21": _diffusion("2.1"),
}


def random(shapes) -> Any:
    """Random arrays of these shapes, of the size that keeps activations near 1; arrays stay as they are."""
    # Drawing as many numbers as weights would take longer than the measurement.
    some = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)

    def fill(shape):
        if not isinstance(shape, jax.ShapeDtypeStruct):
            return shape
        return np.resize(some, shape.shape) / np.float32(max(1, np.prod(shape.shape[:-1])) ** 0.5)

    return jax.tree.map(fill, shapes)


class _Noise(Source):
    """Images of random noise."""

    def __init__(self, rows: int, side: int):
        self.names, self.frame_size, self.fingerprint = [f"{i}.png" for i in range(rows)], side, "noise"

    def image(self, row):
        return np.random.default_rng(row).integers(0, 256, (self.frame_size,) * 2 + (3,)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class _Shaped:
    """A backbone of given map shapes without their cost, as the time to read maps depends only on their shapes."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def spec(self) -> Spec:
        return Spec("shaped", (), 1, f"shaped {self.shapes}")

    def features(self, frozen, images, rng=None):
        del frozen, rng
        level = jnp.mean(images.astype(jnp.float32), (1, 2))[:, None, None, :1] / 255
        return {name: jnp.broadcast_to(level, (len(images), *shape)) for name, shape in self.shapes}


def read(shapes: dict[str, tuple[int, ...]], batch_size: int, calls: int) -> tuple[float, float]:
    """Seconds from a cache's files to a batch of maps on the device, and MB of an image in the cache."""
    rows, mesh = 4 * batch_size, sharding.make_mesh(jax.devices()[:1])
    with tempfile.TemporaryDirectory() as folder:
        source, shaped = _Noise(rows, 8), _Shaped(tuple(sorted(shapes.items())))
        found = feature_cache.write(source, shaped, {}, folder, mesh, batch_size)
        cache, seconds = feature_cache.FeatureCache(folder), []
        for i in range(1 + calls):  # the first one opens files
            start = time.perf_counter()
            picked = np.arange(i * batch_size, (i + 1) * batch_size) % rows
            jax.block_until_ready(jax.device_put(cache.read(picked)))
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), found.image_bytes / 1e6


def benchmark(name: str, batch_size: int, calls: int) -> list[dict]:
    """Make rows of one backbone, NAME or NAME@SIDE: computed, from cached maps, and from cached latents if any."""
    kind, _, side = name.partition("@")
    known = BACKBONES[kind]
    side = int(side or known.side)
    backbone, frozen = known.make(side), jax.device_put(random(known.frozen()))
    images = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3)).astype(np.uint8)
    dtype = getattr(backbone, "_type", None) or getattr(backbone, "compute", "float32")

    def row(what, seconds, timing=None, megabytes=None):
        return {
            "backbone": kind,
            "side": side,
            "what": what,
            "type": dtype,
            "batch": batch_size,
            "images/s": batch_size / seconds,
            "times computed": computed.median / seconds,
            "GFLOP an image": timing and timing.flops and timing.flops / batch_size / 1e9,
            "share of peak": timing and harness.utilisation(timing, dtype, exact=True, devices=1),
            "MiB an image": timing and timing.own_bytes and timing.own_bytes / batch_size / 2**20,
            "cache, MB an image": megabytes,
        }

    def shapes(maps):
        return {name: tuple(m.shape[1:]) for name, m in maps.items()}

    computed = harness.measure(backbone.features, frozen, images, calls=calls, warmup=1 if calls > 1 else 0)
    maps = shapes(jax.eval_shape(backbone.features, frozen, images))
    seconds, megabytes = read(maps, batch_size, calls)
    rows = [row("computed", computed.median, computed), row("cached", seconds, None, megabytes)]
    if hasattr(backbone, "encode"):
        latents = jax.eval_shape(Latents(backbone).features, frozen, images)
        seconds, megabytes = read(shapes(latents), batch_size, calls)
        (values,) = (np.random.default_rng(1).standard_normal(x.shape).astype(np.float32) for x in latents.values())
        second = harness.measure(backbone.describe, frozen, values, calls=calls, warmup=1 if calls > 1 else 0)
        rows.append(row("latents", seconds + second.median, second, megabytes))
    return rows


def main(argv=None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default=DEFAULT, help=f"NAME or NAME@SIDE; names are {', '.join(BACKBONES)}")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--calls", type=int, default=10, help="timed calls at most; 1 is not warmed up either")
    parser.add_argument("--json", default="", help="file to write the rows to")
    args = parser.parse_args(argv)
    names = [name for name in args.backbones.split(",") if name]
    for name in names:
        kind, at, side = name.partition("@")
        if kind not in BACKBONES or (at and not side.isdecimal()):
            parser.error(f"there is no backbone {name!r}; write NAME or NAME@SIDE with NAME in {', '.join(BACKBONES)}")
    rows = []
    for name in names:
        found = benchmark(name, args.batch_size, args.calls)
        harness.show(found)  # shows progress in a long list
        rows += found
    harness.report(rows, args.json)


if __name__ == "__main__":
    main()

"""Dense descriptors without weights: histograms of the image gradient's orientation around every pixel.

The idea is that of SIFT (Lowe 2004) and HOG (Dalal and Triggs 2005), at every pixel of a grid and without turning to a
dominant orientation. A descriptor is the square root of a normalised histogram, so that the squared distance of two
is twice their squared Hellinger distance and their inner product a similarity in 0..1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.backbones import Spec, Tap
from uld_jax.errors import UserError

COLORS = ("grey", "max")


@dataclasses.dataclass(frozen=True)
class GradientHistograms:
    """Histograms of gradient orientation in n x n cells around each grid point, one map a scale.

    1) gradient of the image: central differences; of the mean of the three channels, or of the one that changes most
    2) its length goes into `bins` directions, full circle, each taking a smooth bump around its own:
         weight_b = max(0, (cos(angle - angle_b) - cos w) / (1 - cos w)),  w = 2 pi / bins
    3) a cell is the triangle-weighted mean over about `cell * scale` pixels
    4) the cells at all pairs of `offsets * scale` from the grid point; zero beyond the image
    5) square root of the histogram over its sum

    Attributes:
      scales: scale factors; each gives a map, named `scale0`, `scale1`, ...
      bins: number of directions, at least 3.
      offsets: offsets of the cells' centres in pixels at scale 1, the same in x and y.
      cell: side of a cell in pixels at scale 1.
      stride: stride of the grid in pixels.
      color: `grey` for the mean of the channels, `max` for the one that changes most; on faces `grey` clusters better.
      floor: mean gradient, of values in 0..1, below which a descriptor fades: noise in flat regions stays small.
    """

    scales: tuple[float, ...] = (1.0, 2.0)
    bins: int = 8
    offsets: tuple[float, ...] = (-8.0, -3.0, 3.0, 8.0)
    cell: float = 6.0
    stride: int = 2
    color: str = "grey"
    floor: float = 1e-3

    def __post_init__(self):
        if self.color not in COLORS:
            raise UserError(f"color of GradientHistograms is {self.color!r}; use one of {', '.join(COLORS)}")
        if self.bins < 3 or not self.scales or not self.offsets:
            raise UserError("GradientHistograms needs at least 3 bins, one scale and one offset")

    @property
    def spec(self) -> Spec:
        channels = len(self.offsets) ** 2 * self.bins
        taps = tuple(Tap(f"scale{i}", channels, self.stride) for i in range(len(self.scales)))
        return Spec("gradient", taps, self.stride, f"gradient-1 {self}")

    def load(self) -> Any:
        """Load nothing, as there are no weights."""
        return {}

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,H,W,3] uint8 to {name: [B,H/stride,W/stride,n*n*bins] float32}."""
        del frozen, rng
        if images.shape[1] % self.stride or images.shape[2] % self.stride:
            raise UserError(
                f"GradientHistograms got images of {images.shape[1]} x {images.shape[2]} pixels; "
                f"both sides must be multiples of the stride, {self.stride}"
            )
        energy = self._directions(images.astype(float) / 255)
        return {f"scale{i}": self._describe(energy, scale) for i, scale in enumerate(self.scales)}

    def _directions(self, images):
        """Compute steps 1 and 2: [B,H,W,3] in 0..1 to [B,H,W,bins]."""
        if self.color == "grey":
            images = jnp.mean(images, -1, keepdims=True)
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        dx = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
        dy = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
        strength = dx * dx + dy * dy
        x, y, most = dx[..., 0], dy[..., 0], strength[..., 0]
        for channel in range(1, images.shape[-1]):
            more = strength[..., channel] > most
            x, y = jnp.where(more, dx[..., channel], x), jnp.where(more, dy[..., channel], y)
            most = jnp.where(more, strength[..., channel], most)
        angle = 2 * np.pi * np.arange(self.bins) / self.bins
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        edge = float(np.cos(2 * np.pi / self.bins))
        # length * cos(angle - angle_b) is an inner product: no arctangent is needed.
        along = x[..., None] * cos + y[..., None] * sin - edge * jnp.sqrt(most)[..., None]
        return jnp.maximum(along, 0) / (1 - edge)

    def _describe(self, energy, scale):
        """Compute steps 3 to 5: [B,H,W,bins] to [B,h,w,n*n*bins]."""
        offsets, window = self._layout(scale)
        before = window // 2 + max(0, -offsets[0])
        after = window // 2 + max(0, offsets[-1]) + self.stride
        smooth = jnp.pad(energy, ((0, 0), (before, after), (before, after), (0, 0)))
        for axis in (1, 2):
            smooth = _triangle(smooth, window, axis)
        # smooth[y] is now the cell whose first pixel is y - before; the grid point's own begins at `start`.
        start = (self.stride - window) // 2 + before
        height, width = energy.shape[1] // self.stride, energy.shape[2] // self.stride

        def cells(values):
            for dy in offsets:
                for dx in offsets:
                    yield values[
                        :,
                        start + dy : start + dy + height * self.stride : self.stride,
                        start + dx : start + dx + width * self.stride : self.stride,
                    ]

        total = sum(cells(jnp.sum(smooth, -1)))
        shrink = jax.lax.rsqrt(total + self.floor)
        return jnp.concatenate(list(cells(jnp.sqrt(smooth))), -1) * shrink[..., None]

    def _layout(self, scale) -> tuple[list[int], int]:
        """Cell offsets and cell side in whole pixels at a scale.

        Grid points of an even stride lie between pixels, and so must the middle of a cell: its side has the parity of
        the stride.
        """
        offsets = sorted(round(o * scale) for o in self.offsets)
        side = max(1, round(self.cell * scale))
        return offsets, side + (side - self.stride) % 2


def _triangle(x, window: int, axis: int):
    """Means with triangular weights over `window` cells along an axis; the result starts with the first whole one.

    The weights are a box of n cells convolved with one of window + 1 - n.
    """
    first = (window + 1) // 2
    return _box(_box(x, first, axis), window + 1 - first, axis)


def _box(x, width: int, axis: int):
    size = x.shape[axis] - width + 1
    return sum(jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(width)) / width

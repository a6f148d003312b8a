"""Dense gradient-orientation histograms: descriptors without weights."""

import dataclasses

import jax
import jax.numpy as jnp

from uld_jax.backbones import Spec, Tap


@dataclasses.dataclass(frozen=True)
class GradientHistograms:
    """Temporary."""

    bins: int = 8
    scales: tuple[float, ...] = (1.0, 2.0)
    offsets: tuple[int, ...] = (-8, -3, 3, 8)
    stride: int = 2

    @property
    def spec(self):
        return Spec(
            "gradient",
            tuple(Tap(f"scale{s:g}", self.bins * len(self.offsets) ** 2, self.stride) for s in self.scales),
            self.stride,
            "x",
        )

    def load(self):
        return {}

    def features(self, frozen, images, rng=None):
        g = images.astype(jnp.float32).mean(-1) / 255
        gp = jnp.pad(g, ((0, 0), (1, 1), (1, 1)), mode="edge")
        gy = (gp[:, 2:, 1:-1] - gp[:, :-2, 1:-1]) / 2
        gx = (gp[:, 1:-1, 2:] - gp[:, 1:-1, :-2]) / 2
        size = jnp.hypot(gx, gy)
        angle = (jnp.arctan2(gy, gx) / (2 * jnp.pi) * self.bins) % self.bins
        low = jnp.floor(angle)
        part = angle - low
        b = jnp.arange(self.bins)
        h = size[..., None] * (
            (low[..., None] == b) * (1 - part[..., None]) + ((low[..., None] + 1) % self.bins == b) * part[..., None]
        )
        out = {}
        for s in self.scales:
            w = max(3, int(5 * s) | 1)
            hs = jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, w, w, 1), (1, 1, 1, 1), "SAME") / w**2
            off = [round(o * s) for o in self.offsets]
            m = max(map(abs, off))
            p = jnp.pad(hs, ((0, 0), (m, m), (m, m), (0, 0)))
            H, W = g.shape[1:]
            cells = jnp.concatenate(
                [
                    p[:, m + dy : m + dy + H : self.stride, m + dx : m + dx + W : self.stride]
                    for dy in off
                    for dx in off
                ],
                -1,
            )
            out[f"scale{s:g}"] = jnp.sqrt(cells / (cells.sum(-1, keepdims=True) + 1e-3))
        return out

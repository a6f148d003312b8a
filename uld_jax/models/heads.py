"""Small modules on top of a detector's feature maps."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers

POOLINGS = ("softmax_pool", "elementwise_max", "matmul_max")


class LandmarkDescriptors(nn.Module):
    """One descriptor a landmark from the hourglass's outermost stages (Awan et al., section 3.2; `cgb.py`).

    The three stages side by side are reduced by a 1x1 convolution, at half the heatmaps' resolution, and pooled:

      softmax_pool      z_k = sum_p softmax(logits_k / temperature)_p f_p            (ours)
      elementwise_max   z_k = max_p logits_kp f_p                                    (the paper's words)
      matmul_max        z_kd = max_ij sum_u f_d[i,u] logits_k[u,j]                   (the published code)

    where p runs over the heatmap's cells and f is brought to their resolution by repetition. The heatmaps are folded
    instead of repeating features, which is exact and takes a fortieth of the published code's arithmetic.

    Attributes:
      width: D, size of a descriptor.
      pooling: one of the three names above.
      temperature: temperature of softmax_pool.
      dtype: type of the convolution; pooling is never below float32.
      param_dtype: type of the parameters.
    """

    width: int = 256
    pooling: str = "softmax_pool"
    temperature: float = 0.1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, taps, logits):
        """Return descriptors [B,K,D], not normalised, from `taps`, three maps [B,h/2,w/2,C], and `logits` [B,h,w,K]."""
        if self.pooling not in POOLINGS:
            raise UserError(f"descriptor is {self.pooling!r}; use one of {', '.join(POOLINGS)}")
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        f = layers.conv(
            jnp.concatenate(taps, -1), self.width, 1, bias=True, name="reduce", precision="highest", **options
        )
        f = f.astype(jnp.promote_types(logits.dtype, jnp.float32))
        logits = logits.astype(f.dtype)
        if self.pooling == "softmax_pool":
            weight = jax.nn.softmax(logits / self.temperature, (1, 2))
            return jnp.einsum("bhwk,bhwd->bkd", jnp.sum(_cells(weight), (2, 4)), f, precision="highest")
        if self.pooling == "elementwise_max":
            cells = _cells(logits)
            high, low = jnp.max(cells, (2, 4))[..., None], jnp.min(cells, (2, 4))[..., None]
            f = f[:, :, :, None]
            return jnp.max(jnp.where(f > 0, f * high, f * low), (1, 2))
        batch, height, width, count = logits.shape
        rows = jnp.sum(logits.reshape(batch, height // 2, 2, width, count), 2)
        return jnp.max(jnp.einsum("biud,bujk->bkdij", f, rows, precision="highest"), (-2, -1))


def _cells(x):
    """Reshape [B,h,w,K] to cells of 2 x 2, [B,h/2,2,w/2,2,K]."""
    batch, height, width, count = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, count)


class DenseHead(nn.Module):
    """A value, or a descriptor, for every cell of a map: 3 x 3 convolutions with group normalisation, then 1 x 1.

    D-ULD (Tourani et al., CVPR 2024) has two such heads; the paper leaves their layers open. From 384 channels with
    width 256 a head has 0.89 million parameters for one number a cell, 0.95 million for 256.

    Attributes:
      features: numbers a cell.
      width: channels in between.
      depth: 3 x 3 convolutions.
      dtype, param_dtype: types of the arithmetic and of the parameters; the result is never below float32.
    """

    features: int
    width: int = 256
    depth: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Maps [B,h,w,C] to [B,h,w,features]."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        for _ in range(self.depth):
            x = layers.conv(x, self.width, 3, **options)
            x = nn.relu(layers.normalize(x, "group", train=False, **options))
        x = layers.conv(x, self.features, 1, bias=True, **options)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

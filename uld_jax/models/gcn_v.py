"""GCN-V: how sure it is that a vertex of a kNN graph lies among others of its kind (Yang et al., CVPR 2020).

CGB (Awan et al., section 3.2) clusters landmark descriptors with it: "the confidence reflects whether a landmark
representation belongs to a specific semantic attribute". One graph convolution with a mean-type aggregator and a head:

  h          = ReLU([x | Âx] W + b)            Â = D^-1 (max(A, A^T) + I): `clustering/affinity.py`
  confidence = w3' PReLU(W2' h + b2) + b3      a slope for each hidden unit; an unbounded number

It is used by `clustering/gcn_v.py`.
"""

import flax.linen as nn
import jax.numpy as jnp

from uld_jax.models import layers

DESCRIPTOR_SIZE = 256  # D of the published and of the shipped weights
HIDDEN = 512


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with a learned slope for each feature; 0.25 at first, as in PyTorch."""

    @nn.compact
    def __call__(self, x):
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


class GcnV(nn.Module):
    """The network on rows whose neighbourhood means are known. Names as in the published checkpoint.

    Attributes:
      hidden: units of both hidden layers.
    """

    hidden: int = HIDDEN

    @nn.compact
    def __call__(self, x, mean):
        """`x` [N,D] rows of length 1, `mean` [N,D] their Âx; returns confidence [N] and hidden h [N,hidden]."""
        options = dict(precision="highest")
        linear = lambda size, name: nn.Dense(
            size, kernel_init=layers.torch_kernel, bias_init=layers.torch_bias(self.hidden), name=name, **options
        )
        # Glorot's uniform kernel and no bias: what graph convolutions start from in the original.
        first = nn.Dense(self.hidden, kernel_init=nn.initializers.glorot_uniform(), name="conv1", **options)
        h = nn.relu(first(jnp.concatenate([x, mean], -1)))
        z = PReLU(name="classifier_1")(linear(self.hidden, "classifier_0")(h))
        return linear(1, "classifier_2")(z)[:, 0], h

"""GCN-V: a confidence that a vertex of a kNN graph lies among others of its kind (Yang et al., CVPR 2020).

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
    """max(x, 0) + slope * min(x, 0), with a learned slope for each feature, initially 0.25 as in PyTorch."""

    @nn.compact
    def __call__(self, x):
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


class GcnV(nn.Module):
    """The network on rows whose neighbourhood means are known, with the names of the published checkpoint.

    Attributes:
      hidden: units of both hidden layers.
    """

    hidden: int = HIDDEN

    @nn.compact
    def __call__(self, x, mean):
        """Return confidence [N] and hidden h [N,hidden] for rows `x` [N,D] of length 1 and their `mean` Âx [N,D]."""
        options = dict(precision="highest")
        linear = lambda size, name: nn.Dense(
            size, kernel_init=layers.torch_kernel, bias_init=layers.torch_bias(self.hidden), name=name, **options
        )
        # The published code initialises its graph convolutions by Glorot's uniform kernel and a bias of 0.
        first = nn.Dense(self.hidden, kernel_init=nn.initializers.glorot_uniform(), name="conv1", **options)
        h = nn.relu(first(jnp.concatenate([x, mean], -1)))
        z = PReLU(name="classifier_1")(linear(self.hidden, "classifier_0")(h))
        return linear(1, "classifier_2")(z)[:, 0], h

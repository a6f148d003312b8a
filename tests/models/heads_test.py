"""Landmark descriptors against the definitions, written with repeated features in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.models import heads

K, WIDTH, D = 3, 8, 5


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1, (2, 4, 6, WIDTH)).astype(np.float32) for _ in range(3)], rng.normal(0, 1, (2, 8, 12, K))


def reference(torch, params, taps, logits, pooling, temperature):
    f = torch.tensor(np.concatenate(taps, -1)).permute(0, 3, 1, 2)
    f = torch.nn.functional.interpolate(f, scale_factor=2, mode="nearest")
    kernel = torch.tensor(np.asarray(params["kernel"])).permute(3, 2, 0, 1)
    f = torch.nn.functional.conv2d(f, kernel, torch.tensor(np.asarray(params["bias"])))
    out = []
    for k in range(K):
        h = torch.tensor(logits[..., k], dtype=torch.float32)[:, None]
        if pooling == "softmax_pool":
            weight = torch.softmax((h / temperature).flatten(1), -1).view_as(h)
            out.append((f * weight).sum((-1, -2)))
        elif pooling == "elementwise_max":
            out.append((f * h).amax((-1, -2)))
        else:
            out.append(torch.matmul(f, h).amax((-1, -2)))  # needs square maps
    return torch.stack(out, 1).numpy()


@pytest.mark.parametrize("pooling", heads.POOLINGS)
def test_equals_the_definition_with_repeated_features(pooling):
    torch = pytest.importorskip("torch")
    taps, logits = inputs()
    if pooling == "matmul_max":
        taps, logits = [t[:, :, :4] for t in taps], logits[:, :, :8]
    module = heads.LandmarkDescriptors(D, pooling, temperature=0.3)
    variables = module.init(jax.random.key(1), taps, jnp.asarray(logits, jnp.float32))
    with jax.default_matmul_precision("highest"):
        found = module.apply(variables, taps, jnp.asarray(logits, jnp.float32))
    want = reference(torch, variables["params"]["reduce"], taps, logits, pooling, 0.3)
    assert found.shape == (2, K, D)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_an_unknown_pooling_is_named():
    taps, logits = inputs()
    with pytest.raises(UserError, match="average"):
        heads.LandmarkDescriptors(D, "average").init(jax.random.key(0), taps, logits)

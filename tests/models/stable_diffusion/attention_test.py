import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax.models.stable_diffusion import attention
from uld_jax.models.stable_diffusion.attention import Device

CPU, T4, V100, A100 = Device("cpu"), Device("gpu", 7.5), Device("gpu", 7.0), Device("gpu", 8.0)
L4, H100, BLACKWELL, P100, AMD = (Device("gpu", c) for c in (8.9, 9.0, 10.0, 6.0, 0.0))
TPU, POD = Device("tpu"), Device("tpu", count=8)


def test_examples():
    result = doctest.testmod(attention)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (CPU, "float32"),
        (P100, "float32"),
        (AMD, "float32"),
        (V100, "float16"),
        (T4, "float16"),
        (A100, "bfloat16"),
        (L4, "bfloat16"),
        (H100, "bfloat16"),
        (BLACKWELL, "bfloat16"),
        (TPU, "bfloat16"),
        (POD, "bfloat16"),
    ],
)
def test_the_type_of_a_device(device, expected):
    assert attention.compute_type(device) == expected


@pytest.mark.parametrize(
    ("device", "dtype", "queries", "keys", "size", "expected"),
    [
        # 512 pixels, version 1.5: heads of 40, 80 and 160 channels; 2.1: 64.
        (H100, "bfloat16", 4096, 4096, 40, "cudnn"),
        (H100, "bfloat16", 1024, 1024, 80, "cudnn"),
        (H100, "float16", 1024, 1024, 160, "cudnn"),
        (H100, "bfloat16", 256, 256, 160, "xla"),  # small
        (H100, "bfloat16", 4096, 77, 40, "xla"),  # the prompt
        (H100, "float32", 4096, 4096, 40, "xla"),
        (H100, "bfloat16", 4096, 4096, 512, "xla"),  # the autoencoder
        (H100, "bfloat16", 4096, 4096, 12, "xla"),
        (BLACKWELL, "bfloat16", 4096, 4096, 160, "cudnn"),
        (A100, "bfloat16", 4096, 4096, 64, "cudnn"),
        (A100, "bfloat16", 1024, 1024, 160, "xla"),
        (L4, "bfloat16", 1024, 1024, 80, "cudnn"),
        (T4, "float16", 4096, 4096, 40, "xla"),
        (V100, "float16", 4096, 4096, 40, "xla"),
        (AMD, "bfloat16", 4096, 4096, 40, "xla"),
        (TPU, "bfloat16", 4096, 4096, 40, "splash"),
        (TPU, "bfloat16", 9216, 9216, 64, "splash"),
        (TPU, "float32", 4096, 4096, 40, "xla"),
        (TPU, "bfloat16", 5184, 5184, 40, "xla"),  # 576 pixels: no multiple of 128 cells
        (TPU, "bfloat16", 1024, 1024, 80, "splash"),
        (TPU, "bfloat16", 256, 256, 160, "xla"),  # small
        (TPU, "bfloat16", 4096, 77, 40, "xla"),
        (TPU, "bfloat16", 4096, 4096, 512, "splash"),  # the autoencoder
        (POD, "bfloat16", 4096, 4096, 40, "xla"),  # the kernel cannot be split over devices
        (CPU, "float32", 4096, 4096, 40, "xla"),
        (CPU, "bfloat16", 4096, 4096, 40, "xla"),
    ],
)
def test_the_way_of_a_device(device, dtype, queries, keys, size, expected):
    assert attention.choose(device, dtype, queries, keys, size) == expected


def parts(queries=12, keys=7, size=5, seed=0, batch=2, heads=3):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(batch, n, heads, size)).astype(np.float32) for n in (queries, keys, keys))


def reference(query, key, value):
    """float64, one head of one image at a time."""
    out = np.zeros(query.shape)
    for b, _, h, _ in np.ndindex(len(query), 1, query.shape[2], 1):
        logits = query[b, :, h].astype(np.float64) @ key[b, :, h].T / query.shape[3] ** 0.5
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out[b, :, h] = weights / weights.sum(1, keepdims=True) @ value[b, :, h]
    return out


@pytest.mark.parametrize("most", [2**30, 400, 1])
def test_xla_whole_and_in_blocks(most):
    q, k, v = parts()
    found = jax.jit(lambda *x: attention.xla(*x, most=most))(q, k, v)
    np.testing.assert_allclose(found, reference(q, k, v), atol=2e-6)


def test_half_precision_has_its_softmax_in_float32():
    q, k, v = parts()
    for dtype in (jnp.bfloat16, jnp.float16):
        # Logits around 1e4: float16 would lose their differences, and exp of them is infinite.
        rounded = [np.asarray(x, dtype) for x in (100 * q, 100 * k, v)]
        found = attention.attend(*map(jnp.asarray, rounded), "xla", "default")
        assert found.dtype == dtype
        expected = reference(*(x.astype(np.float32) for x in rounded))
        np.testing.assert_allclose(found.astype(np.float32), expected, atol=0.02)


def test_keys_of_all_images_are_those_of_each():
    q, k, v = parts()
    each = attention.xla(q, *(np.repeat(x[:1], len(q), 0) for x in (k, v)))
    np.testing.assert_allclose(attention.xla(q, k[:1], v[:1]), each, atol=1e-6)
    np.testing.assert_allclose(attention.xla(q, k[:1], v[:1], most=400), each, atol=1e-6)


@pytest.mark.parametrize("size", [40, 160])
def test_the_splash_kernel_interpreted(size):
    q, k, v = parts(256, 384, size, batch=1, heads=2)
    found = attention.splash(*map(jnp.asarray, (q, k, v)), interpret=True)
    assert found.shape == q.shape
    np.testing.assert_allclose(found, reference(q, k, v), atol=2e-4)


def test_each_way_is_taken(monkeypatch):
    q, k, v = map(jnp.asarray, parts())
    asked = []
    monkeypatch.setattr(attention, "splash", lambda *x: asked.append("splash"))
    monkeypatch.setattr(attention, "xla", lambda *x: asked.append("xla"))
    cudnn = lambda *x, implementation: asked.append(implementation)
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    for way in attention.WAYS[1:]:
        attention.attend(q, k, v, way)
    for device, queries in ((H100, 2048), (TPU, 4096), (CPU, 4096)):
        monkeypatch.setattr(attention, "this_device", lambda device=device: device)
        long = jnp.zeros((1, queries, 1, 8), jnp.bfloat16)
        attention.attend(long, long, long)
    assert asked == ["xla", "cudnn", "splash", "cudnn", "splash", "xla"]


def test_this_device_is_the_one_that_programs_run_on():
    assert attention.this_device() == Device("cpu", 0.0, jax.device_count())


SPLIT = """
import jax, jax.numpy as jnp, numpy as np
from tests.models.stable_diffusion import attention_test as known
from uld_jax import sharding
from uld_jax.models.stable_diffusion import attention

mesh = sharding.make_mesh()
assert mesh.size == 8
asked = []
attention.this_device = lambda: attention.Device("tpu", count=8)
kernel = attention.splash

def seen(query, key, value, mesh=None):
    asked.append(mesh is not None)
    return kernel(query, key, value, mesh, interpret=True)

attention.splash = seen
parts = known.parts(1024, 1024, 8, batch=8, heads=1)
half = [jax.device_put(jnp.asarray(x, jnp.bfloat16), sharding.split(mesh)) for x in parts]
with jax.set_mesh(mesh):
    program = jax.jit(attention.attend).lower(*half).compile()
found = program(*half)
assert asked == [True] and found.sharding.is_equivalent_to(sharding.split(mesh), 4), (asked, found.sharding)
assert "all-gather" not in program.as_text() and "all-reduce" not in program.as_text()
expected = known.reference(*(np.asarray(x, np.float32) for x in half))
np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=0.02)

# Without a mesh, or with a batch that does not divide over it, the compiler splits the program, and the kernel is out.
jax.jit(attention.attend).lower(*half)
with jax.set_mesh(mesh):
    jax.eval_shape(attention.attend, *(x[:4] for x in half))
# In a program that is each device's own, the kernel is taken without a mesh.
own = lambda *x: attention.attend(*x)
where = jax.sharding.PartitionSpec("data")
jax.eval_shape(jax.shard_map(own, mesh=mesh, in_specs=where, out_specs=where, check_vma=False), *half)
assert asked == [True, False], asked
"""


def test_every_device_of_a_mesh_has_the_kernel_for_its_own_images():
    tiny.run("-c", SPLIT, devices=8)

"""Attention and the type of arithmetic, chosen for the device.

Attention over 64 x 64 cells has 4096 x 4096 weights for each head: written out in float32 they are 0.5 GB an image and
layer. cuDNN and splash attention never write them out.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from uld_jax import devices, sharding

WAYS = ("auto", "xla", "cudnn", "splash")
TYPES = ("auto", "float32", "bfloat16", "float16")
_HALF = ("bfloat16", "float16")
_LANES = 128  # lanes of a TPU, of which rows and channels are multiples
_MOST = 2**30  # bytes of attention weights that may exist at once in the way `xla`


class Device(NamedTuple):
    """The properties of a device on which the choice depends.

    Attributes:
      platform: `cpu`, `gpu` or `tpu`.
      capability: NVIDIA's compute capability, such as 7.5 (T4), 8.0 (A100) or 9.0 (H100); 0 where there is none.
      count: devices over which the compiler splits the program.
    """

    platform: str
    capability: float = 0.0
    count: int = 1


def this_device() -> Device:
    """The first of the devices on which programs run."""
    device = devices.first()
    try:
        capability = float(device.compute_capability) if device.platform == "gpu" else 0.0
    except (AttributeError, ValueError):  # an AMD GPU's is a name
        capability = 0.0
    return Device(device.platform, capability, devices.count())


def compute_type(device: Device) -> str:
    """The type of arithmetic that a device is fast at without losing the network's range.

    A T4 has no bfloat16; both versions of Stable Diffusion are commonly run in float16, which its tensor cores have.
    Parameters, normalisations and softmax are float32 in any case.

    >>> compute_type(Device("gpu", 9.0)), compute_type(Device("gpu", 7.5)), compute_type(Device("cpu"))
    ('bfloat16', 'float16', 'float32')
    """
    if device.platform == "tpu" or device.capability >= 8:
        return "bfloat16"
    return "float16" if device.capability >= 7 else "float32"


def choose(device: Device, dtype: str, queries: int, keys: int, size: int) -> str:
    """The way to compute attention: `cudnn`, `splash` or `xla`.

    Args:
      device: device on which attention is computed.
      dtype: type of queries, keys and values.
      queries, keys: numbers of queries and keys; the 77 keys of a prompt are few enough for XLA.
      size: channels of a head: 40, 80 and 160 in Stable Diffusion 1.5, 64 in 2.1, 512 in the autoencoder.

    cuDNN takes half precision and sizes up to 256 from compute capability 9.0 on, up to 128 before, in multiples of 8.
    The compiler cannot split the splash kernel over devices, so it is for programs on a single one, or for the part of
    one that is written for each device by itself; `attend` writes it so on a mesh. From 1024 cells on it saves the
    traffic of the weights, which XLA would write and read again several times. Float32 is used where exactness counts,
    and only XLA then computes in it.

    >>> choose(Device("gpu", 8.0), "bfloat16", 4096, 4096, 40), choose(Device("gpu", 8.0), "bfloat16", 1024, 1024, 160)
    ('cudnn', 'xla')
    """
    fewest = min(queries, keys)
    if device.platform == "gpu" and device.capability >= 8 and dtype in _HALF:
        most = 256 if device.capability >= 9 else 128
        return "cudnn" if fewest >= 1024 and size % 8 == 0 and size <= most else "xla"
    if device.platform == "tpu" and device.count == 1 and dtype in _HALF:
        whole = queries % _LANES == 0 and keys % _LANES == 0
        return "splash" if fewest >= 1024 and whole and size <= 512 else "xla"
    return "xla"


def attend(query, key, value, way: str = "auto", precision="highest"):
    """Compute attention, softmax(query key' / sqrt(D)) value.

    Args:
      query: [B,T,heads,D] queries.
      key, value: [B,S,heads,D] keys and values, or [1,S,heads,D] of the same for all images.
      way: one of `WAYS`.
      precision: precision of XLA's products.

    On a mesh (`jax.set_mesh`) whose devices divide B, `splash` is computed by every device for its own images.

    Returns:
      [B,T,heads,D] in the type of `value`.

    >>> x = jnp.ones((1, 6, 2, 4))
    >>> bool(jnp.allclose(attend(x, x, 3 * x), 3))
    True
    """
    mesh = _mesh(query)
    if way == "auto":
        device = this_device()
        if mesh is not None or _on_one_device():
            device = device._replace(count=1)
        way = choose(device, query.dtype.name, query.shape[1], key.shape[1], query.shape[3])
    if way == "xla":
        return xla(query, key, value, precision)
    key, value = (jnp.broadcast_to(x, (len(query), *x.shape[1:])) for x in (key, value))
    if way == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    return splash(query, key, value, mesh)


def _mesh(x):
    """The mesh whose devices can have equal parts of the batch of x; None if there is none."""
    mesh = sharding.mesh_of(x)
    return None if mesh is None or len(x) % mesh.size else mesh


def _on_one_device() -> bool:
    """Whether what is traced is the program of each device by itself, inside `jax.shard_map`."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def xla(query, key, value, precision="highest", most: int = _MOST):
    """Compute `attend` by XLA, in blocks of queries whose weights have at most `most` bytes at once."""
    batch, queries, heads, size = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    # Keys of all images are one factor of one product, and no copies of them are made.
    shared, keys = len(key) == 1, key.shape[1]
    seen, (key, value) = ("shd", (key[0], value[0])) if shared else ("bshd", (key, value))

    def some(part):
        product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=wide)
        weights = jax.nn.softmax(product(f"bthd,{seen}->bhts", part, key) / math.sqrt(size), -1)
        return product(f"bhts,{seen}->bthd", weights.astype(value.dtype), value).astype(value.dtype)

    needed = batch * heads * queries * keys * wide.itemsize
    blocks = next(n for n in range(1, queries + 1) if queries % n == 0 and (needed <= n * most or n == queries))
    if blocks == 1:
        return some(query)
    parts = jnp.moveaxis(query.reshape(batch, blocks, queries // blocks, heads, size), 1, 0)
    return jnp.moveaxis(jax.lax.map(some, parts), 0, 1).reshape(*query.shape[:3], value.shape[-1])


def splash(query, key, value, mesh=None, interpret: bool = False):
    """Compute `attend` by the TPU kernel, T and S multiples of 128.

    With a mesh, each of its devices computes the part of the batch that it has; `interpret` runs the kernel on any
    device, slowly.
    """
    kernel = functools.partial(_splash, interpret=interpret)
    if mesh is not None:
        parts = P(mesh.axis_names)
        kernel = jax.shard_map(kernel, mesh=mesh, in_specs=parts, out_specs=parts, check_vma=False)
    return kernel(query, key, value)


def _splash(query, key, value, interpret):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, queries, heads, size), keys = query.shape, key.shape[1]
    # Zeros in the unused lanes change no inner product.
    rest = ((0, 0), (0, 0), (0, 0), (0, -size % _LANES))
    q, k, v = (jnp.pad(x, rest).transpose(0, 2, 1, 3) for x in (query / np.sqrt(size).astype(query.dtype), key, value))
    block_q, block_k = math.gcd(queries, 512), math.gcd(keys, 512)
    kernel = kernels.make_splash_mha_single_device(
        mask=masks.MultiHeadMask([masks.FullMask((queries, keys))] * heads),
        block_sizes=kernels.BlockSizes(block_q=block_q, block_kv=block_k, block_kv_compute=block_k),
        interpret=interpret,
    )
    return jax.vmap(kernel)(q, k, v).transpose(0, 2, 1, 3)[..., :size].astype(value.dtype)

"""The only file that handles devices: one mesh with one axis, `data`.

Training is one global-view `jax.jit`: the state is replicated, the batch is split over `data`, and XLA writes the
collectives. (Since JAX 0.8, `jax.pmap` is a wrapper over jit and shard_map; this is its successor.)

The sharding itself gives the rows of a batch that a process feeds, so that any mesh of this one axis works, with its
devices in any order.

Where a function puts arrays on the devices, it takes shapes (`jax.ShapeDtypeStruct`) as well and returns shapes with
the same placement, so that a program can be compiled for devices that are absent (`uld_jax.plan`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uld_jax.errors import UserError

AXIS = "data"


def make_mesh(devices=None) -> Mesh:
    """Make a mesh of all devices of all processes (or those given), those of a slice and of a process side by side.

    `jax.make_mesh` would follow the torus of a TPU slice, where the chips of a host need not be neighbours, and takes a
    single slice only. Here each host reads one run of rows.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=_place)
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _place(device):
    return getattr(device, "slice_index", 0) or 0, device.process_index, device.id


def split(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading axis over all devices."""
    return NamedSharding(mesh, P(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts a copy on every device."""
    return NamedSharding(mesh, P())


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the rows of a global batch that this process feeds, increasing, [n] int64; there may be gaps.

    Raises UserError when the batch does not divide over the devices, or none of them belongs to this process.
    """
    check_divides(mesh, batch_size)
    return _rows_of(mesh, batch_size, jax.process_index())


def check_divides(mesh: Mesh, batch_size: int) -> None:
    """Raise UserError unless a batch of at least one image divides over the devices; name the nearest that does."""
    if batch_size < 1 or batch_size % mesh.size:
        below, above = (size * mesh.size for size in (batch_size // mesh.size, batch_size // mesh.size + 1))
        use = f"{below} or {above}" if below > 0 else f"{above}"
        raise UserError(f"batch_size {batch_size} does not divide over {mesh.size} devices; use {use}")


def nearest_batch(mesh: Mesh, batch_size: int) -> int:
    """Return the nearest number of images that divides over the devices, the larger of two equally near.

    >>> nearest_batch(make_mesh(jax.devices()[:1]), 50)
    50
    """
    return max((batch_size + mesh.size // 2) // mesh.size, 1) * mesh.size


@functools.lru_cache(maxsize=256)
def _rows_of(mesh, batch_size, process):
    where = split(mesh).devices_indices_map((batch_size,))
    mine = [np.arange(batch_size)[index] for device, index in where.items() if device.process_index == process]
    if not mine:
        raise UserError(f"process {process} has no device in the mesh; give the mesh one, or leave the process out")
    rows = np.sort(np.concatenate(mine))
    rows.setflags(write=False)  # all callers share it
    return rows


class OnMesh:
    """A jitted program that is traced and called under `jax.set_mesh`.

    While such a program is traced, `mesh_of` and `gathered` know the devices of arrays whose sharding XLA has yet to
    choose.

    Args:
      mesh: the devices.
      program: the result of `jax.jit`.
    """

    def __init__(self, mesh: Mesh, program):
        self._mesh, self._program = mesh, program

    def __call__(self, *given):
        with jax.set_mesh(self._mesh):
            return self._program(*given)

    def trace(self, *given):
        """Trace the program for such arguments, arrays or shapes, as `jax.jit(f).trace`."""
        with jax.set_mesh(self._mesh):
            return self._program.trace(*given)

    def lower(self, *given):
        """Lower the program for such arguments, as `jax.jit(f).lower`."""
        return self.trace(*given).lower()


def gathered(x: jax.Array) -> jax.Array:
    """Return rows [B,...] of all devices on every device, in a program of `OnMesh`; in another program x itself.

    Gather what is computed of a batch before it is written into a table that every device holds whole. Otherwise XLA
    splits the table for the write and then sends all of it to every device.
    """
    mesh = mesh_of(x)
    return x if mesh is None else jax.lax.with_sharding_constraint(x, replicated(mesh))


def put_batch(mesh: Mesh, tree, axis: int = 0):
    """Make global arrays, split over `data` along `axis`, of this process's rows (NumPy, as `local_rows` orders)."""
    where = NamedSharding(mesh, P(*(None,) * axis, AXIS))
    here = len(local_rows(mesh, mesh.size))  # number of this process's devices

    def put(x):
        x = x if isinstance(x, jax.ShapeDtypeStruct) else np.asarray(x)
        shape = list(x.shape)
        shape[axis] = shape[axis] // here * mesh.size
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(tuple(shape), x.dtype, sharding=where)
        return jax.make_array_from_process_local_data(where, x, tuple(shape))

    return jax.tree.map(put, tree)


def put_replicated(mesh: Mesh, tree):
    """Make replicated global arrays of host values that are the same on every process."""

    def put(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(replicated(mesh), x.ndim):
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, replicated(mesh), lambda i: x[i])

    return jax.tree.map(put, tree)


def to_host(tree):
    """Copy whole global arrays to NumPy on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def get(x):
        # For an array that is whole on this process, `process_allgather` would return one copy per process.
        here = x.is_fully_replicated or x.is_fully_addressable
        return np.asarray(x) if here else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(get, tree)


def put_key(mesh: Mesh, key: jax.Array) -> jax.Array:
    """Replicate a typed PRNG key."""
    if isinstance(key, jax.ShapeDtypeStruct):
        return put_replicated(mesh, key)
    return jax.random.wrap_key_data(put_replicated(mesh, jax.random.key_data(key)))


def arrays(*values):
    """Convert arguments of a public function to arrays: lists and NumPy arrays are put on the device, None stays None.

    Arrays on a mesh of explicit axes, the default of `jax.make_mesh`, are viewed with automatic axes, so that XLA
    chooses the sharding of results, as everywhere in this library. Nothing is copied.
    """

    def one(x):
        x = None if x is None else jnp.asarray(x)
        if x is None or isinstance(x, jax.core.Tracer):  # inside jit a NumPy array becomes a tracer, too
            return x
        where = x.sharding
        if isinstance(where, NamedSharding) and set(where.mesh.axis_types) != {AxisType.Auto}:
            where = NamedSharding(Mesh(where.mesh.devices, where.mesh.axis_names), where.spec)
            x = jax.device_put(x, where)
        return x

    return tuple(map(one, values))


def mesh_of(x):
    """Return the mesh that an array is split over, or while tracing that of `jax.set_mesh`; None for a single device.

    The result is also None inside `jax.shard_map`, where a function sees only the rows of its own device.
    """
    if isinstance(x, jax.core.Tracer):
        mesh = jax.sharding.get_abstract_mesh()
        mesh = None if AxisType.Manual in mesh.axis_types else mesh
    else:
        mesh = x.sharding.mesh if isinstance(getattr(x, "sharding", None), NamedSharding) else None
    return None if mesh is None or mesh.empty or mesh.size == 1 else mesh

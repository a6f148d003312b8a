"""One ordered pass over the training data into a bank that is sharded over the devices.

Host code that walks the data lives here alone, so a method's file holds only mathematics: `observe` sees one batch,
`refresh` sees the whole bank.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax import sharding
from uld_jax.method import Bank, Labels, Method, TrainState
from uld_jax.ops import keypoints

OBSERVE = 1 << 20  # of a step's keys, the first that passes observe by; `refresh` has those from 0


class Rounds:
    """The compiled passes of one stage.

    Args:
      method: the stage.
      reader: the training data (see `data.pipeline`).
      mesh: all devices.
      check: called between batches; it may raise to stop the pass, which leaves the state as it was.
      cache: maps or latents of a frozen backbone by row (`data.feature_cache.FeatureCache`), which `observe` finds in
        its batch as `features`, {tap: [B,h,w,C]}; or None.
    """

    def __init__(self, method: Method, reader, mesh, check: Callable[[], None] = lambda: None, cache=None):
        self._method, self._reader, self._mesh, self._check, self._cache = method, reader, mesh, check, cache
        # The bank is [B,T,P,...], not [T,B,P,...]: written along an unsharded axis, read by a local flattening.
        self._write = jax.jit(self._observe_into, donate_argnums=0, out_shardings=sharding.split(mesh))
        self._refresh = jax.jit(method.refresh, out_shardings=sharding.replicated(mesh))

    def run(self, state: TrainState, frozen, key: jax.Array, passes: int) -> TrainState:
        """`passes` times: collect a bank if the stage observes, refresh the state; keys differ from time to time."""
        for i in range(passes):
            seen_by = jax.random.fold_in(key, OBSERVE + i)
            bank = self.collect(state, frozen, seen_by) if self._method.observes else None
            with jax.set_mesh(self._mesh):  # what refresh spreads over the devices by hand finds them there
                state = self._refresh(state, frozen, bank, jax.random.fold_in(key, i))
        return state

    def collect(self, state: TrainState, frozen, key: jax.Array) -> Bank:
        """Every training row once; `key` is the pass's."""
        bank, key = None, sharding.put_key(self._mesh, key)
        for t, payload in enumerate(self._reader.ordered()):
            self._check()
            more = self._cached(payload)
            if bank is None:
                bank = self._empty(state, frozen, payload, more, key)
            t = sharding.put_replicated(self._mesh, np.int32(t))
            bank = self._write(bank, state, frozen, self._reader.store, payload, more, t, key)
        return bank

    def _cached(self, payload):
        """What the cache has for a batch; padding is given the last row."""
        if self._cache is None:
            return {}
        rows = sharding.to_host(payload["index"])
        mine = rows[sharding.local_rows(self._mesh, len(rows))]
        maps = self._cache.read(np.minimum(mine, self._reader.rows - 1))
        return {"features": sharding.put_batch(self._mesh, maps)}

    def _observe(self, state, frozen, store, payload, more, key):
        batch = self._reader.fetch(store, payload) | more
        rows = self._method.observe(state, frozen, batch, key)
        real = batch["index"] < self._reader.rows
        return Bank(rows._replace(mask=rows.mask & real[:, None]), batch["index"])

    def _observe_into(self, bank, state, frozen, store, payload, more, t, key):
        found = self._observe(state, frozen, store, payload, more, key)
        return jax.tree.map(lambda all_, one: all_.at[:, t].set(one.astype(all_.dtype)), bank, found)

    def _empty(self, state, frozen, payload, more, key) -> Bank:
        shapes = jax.eval_shape(self._observe, state, frozen, self._reader.store, payload, more, key)
        batch = shapes.index.shape[0]
        passes = -(-self._reader.rows // batch)
        make = jax.jit(
            lambda: jax.tree.map(lambda s: jnp.zeros((batch, passes, *s.shape[1:]), s.dtype), shapes),
            out_shardings=sharding.split(self._mesh),
        )
        return make()


def flatten(bank: Bank) -> tuple[jax.Array, jax.Array]:
    """All descriptors [B*T*P, D] of a bank and their mask [B*T*P]; local to every device."""
    descriptors, mask = bank.rows.descriptors, bank.rows.mask
    return descriptors.reshape(-1, descriptors.shape[-1]), mask.reshape(-1)


def table(bank: Bank, values: jax.Array, rows: int) -> jax.Array:
    """Values [B,T,...] of a pass as a table [rows, ...] by dataset row; padding falls away.

    >>> bank = Bank(Rows(*[jnp.zeros((2, 2, 1))] * 3), jnp.array([[0, 2], [1, 3]]))
    >>> table(bank, jnp.array([[5., 7.], [6., 8.]]), 3).tolist()
    [5.0, 6.0, 7.0]
    """
    flat = values.reshape(-1, *values.shape[2:])
    return jnp.zeros((rows, *flat.shape[1:]), flat.dtype).at[bank.index.reshape(-1)].set(flat, mode="drop")


def by_batch(function, *parts):
    """`function` of pytrees of [B,...], for each of the T batches of [B,T,...]; its results are [B,T,...].

    One batch after the other, so that no table of all keypoints by all clusters is ever needed.
    """
    given = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), parts)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.lax.map(lambda part: function(*part), given))


def label_table(bank: Bank, xy: jax.Array, slots: jax.Array, rows: int) -> Labels:
    """Labels [N,C] of keypoints xy [B,T,P,2] at slots [B,T,C], -1 for none."""
    there = slots >= 0
    points = jnp.where(there[..., None], keypoints.take_slots(xy, slots), 0)
    return Labels(table(bank, points, rows), table(bank, there.astype(xy.dtype), rows))

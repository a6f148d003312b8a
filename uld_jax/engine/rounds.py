"""Ordered passes over the training data, each into a bank that is sharded over the devices.

All host code that walks the data is here, so that a method's file holds only mathematics: `observe` sees one batch,
`refresh` sees the whole bank. If the descriptors of all images do not fit, a `Clustering` gets those of a sample, and
then sees all images batch after batch.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax import interrupts, sharding
from uld_jax.bank import Bank, masked
from uld_jax.engine.program import Program
from uld_jax.method import Clustering, Method, Round, TrainState

OBSERVE = 1 << 20  # first number that folds a step's key for `observe`; those for `refresh` start at 0


class Rounds:
    """The compiled passes of one stage.

    Args:
      method: the stage.
      reader: the training data (see `data.pipeline`).
      mesh: all devices.
      check: function called between batches, and several times a second while a program is compiled or the bank is
        processed; it may raise to stop the pass, which leaves the state as it was.
      cache: maps or latents of a frozen backbone by row (`data.feature_cache.FeatureCache`), which `observe` finds in
        its batch as `features`, {tap: [B,h,w,C]}; or None.
      tables: tables of the images, {name: [N,...] host array} (`data.objects.tables`), whose rows `observe` finds in
        its batch.
      say: function called with messages about the progress of a pass, the time spent on its bank, and the size of a
        sample.
    """

    def __init__(
        self,
        method: Method,
        reader,
        mesh,
        check: Callable[[], None] = lambda: None,
        cache=None,
        tables: Mapping[str, np.ndarray] = MappingProxyType({}),
        say: Callable[[str], None] = lambda text: None,
    ):
        self._method, self._reader, self._mesh, self._check, self._cache = method, reader, mesh, check, cache
        self._tables, self._say = tables, say
        # The bank is [B,T,P,...], not [T,B,P,...], so that writes go along an unsharded axis and flattening is local.
        writer = lambda f: sharding.OnMesh(mesh, jax.jit(f, donate_argnums=0, out_shardings=sharding.split(mesh)))
        worker = lambda f: sharding.OnMesh(mesh, jax.jit(f, out_shardings=sharding.replicated(mesh)))
        self._write, self._refresh = writer(self._observe_into), worker(method.refresh)
        if isinstance(method, Clustering):
            self._form, self._settle = worker(method.form), worker(method.settle)
            self._write_located = writer(self._locate_into)

    def run(self, state: TrainState, frozen, key: jax.Array, due: Round | None) -> TrainState:
        """Return the state after a round, or the given state if no round is due. Each pass has its own key."""
        if due is not None and not due.passes:
            given = state, frozen, None, jax.random.fold_in(key, 0)
            return self._work(self._refresh, *given, about="the state")
        for i in range(due.passes if due else 0):
            worked_by, seen_by = jax.random.fold_in(key, i), jax.random.fold_in(key, OBSERVE + i)
            rows = self._sample(state, frozen, seen_by)
            bank = self.collect(state, frozen, seen_by, rows)
            if rows is None:
                state = self._work(self._refresh, state, frozen, bank, worked_by)
                continue
            found = self._work(self._form, state, frozen, bank, worked_by)
            del bank
            placed = self._placed(state, frozen, found, seen_by)
            state = self._work(self._settle, state, found, placed)
        return state

    def programs(self, state: TrainState, frozen, key, due: Round) -> dict[str, tuple[Program, int]]:
        """Return the programs of a round by name, and how often each runs in one pass (in one round without passes).

        These are `refresh`; or with passes `write`, which puts a batch into the bank, and then `refresh`; or `form`,
        `locate` (batch after batch) and `settle` for a stage that forms its clusters from a sample. Nothing is
        computed: all arguments may be shapes, and the reader one of `data.absent`.
        """
        if not due.passes:
            return {"refresh": (Program(self._refresh, (state, frozen, None, key)), 1)}
        key = sharding.put_key(self._mesh, key)
        at = sharding.put_replicated(self._mesh, jax.ShapeDtypeStruct((), np.int32))
        payload = next(iter(self._reader.ordered()))
        seen = self._reader.store, payload, self._beside(payload)
        most = self._most(state, frozen, key)
        passes = self._reader.passes() if most is None else -(-most // len(payload["index"]))
        bank = self._shapes(self._observe, (state, frozen, key, *seen), passes)
        found = {"write": (Program(self._write, (bank, state, frozen, key, *seen, at)), passes)}
        if most is None:
            return found | {"refresh": (Program(self._refresh, (state, frozen, bank, key)), 1)}
        form, where = Program(self._form, (state, frozen, bank, key)), sharding.replicated(self._mesh)
        place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
        clusters = jax.tree.map(place, form.trace().out_info)
        given, passes = (state, frozen, key, clusters, *seen), self._reader.passes()
        placed = self._shapes(self._locate, given, passes)
        found |= {"form": (form, 1), "locate": (Program(self._write_located, (placed, *given, at)), passes)}
        return found | {"settle": (Program(self._settle, (state, clusters, placed)), 1)}

    def collect(self, state: TrainState, frozen, key: jax.Array, rows: np.ndarray | None = None) -> Bank:
        """Collect every training row once, or only `rows`, increasing row numbers; `key` is the key of the pass."""
        given = state, frozen, sharding.put_key(self._mesh, key)
        return self._walk(self._write, self._observe, given, rows)

    def _placed(self, state, frozen, found, key) -> Bank:
        """Assign all images to the clusters."""
        given = state, frozen, sharding.put_key(self._mesh, key), found
        return self._walk(self._write_located, self._locate, given, None)

    def _walk(self, write, observe, given, rows):
        """Write the results of `observe` for every batch into one table."""
        table, patience, passes = None, interrupts.Patience(), self._reader.passes(rows=rows)
        for t, payload in enumerate(self._reader.ordered(rows=rows)):
            self._check()
            if patience.due():
                self._say(f"{t} of {passes} batches of images seen")
            seen = *given, self._reader.store, payload, self._beside(payload)
            at = sharding.put_replicated(self._mesh, np.int32(t))
            if table is None:
                table = self._empty(observe, seen, passes)
                table = self._work(write, table, *seen, at, about="the first batch")  # includes compilation
            else:
                table = write(table, *seen, at)
        return table

    def _work(self, program, *given, about: str = ""):
        """Return the results of a program that may take long."""
        about = about or f"{self._reader.rows} images"
        say = lambda seconds: self._say(f"working on {about}, {seconds:.0f} s so far")
        return interrupts.attended(lambda: jax.block_until_ready(program(*given)), self._check, say)

    def _sample(self, state, frozen, key) -> np.ndarray | None:
        """Draw the rows that clusters are formed from, increasing, [n] int64; None for all."""
        most = self._most(state, frozen, key)
        if most is None:
            return None
        self._say(f"clusters are formed from {most} of {self._reader.rows} images")
        # NumPy keeps raw bits stable across versions, but not the numbers that its generators derive from them.
        seed = np.random.SeedSequence(np.asarray(jax.random.key_data(key)).ravel().tolist())
        return np.sort(np.argsort(np.random.Philox(seed).random_raw(self._reader.rows), kind="stable")[:most])

    def _most(self, state, frozen, key) -> int | None:
        """Return the number of images whose descriptors clusters are formed from; None for all."""
        if not isinstance(self._method, Clustering):
            return None
        payload = next(iter(self._reader.ordered()))
        shapes = jax.eval_shape(self._observe, state, frozen, key, self._reader.store, payload, self._beside(payload))
        each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes.values)) // len(shapes.index)
        most = max(1, int(self._method.bank_gib * 2**30) // each)
        return None if most >= self._reader.rows else most

    def _beside(self, payload):
        """Read the rows of a batch from cache and tables; padding gets the last row. Of shapes, return shapes."""
        if self._cache is None and not self._tables:
            return {}
        if isinstance(payload["index"], jax.ShapeDtypeStruct):
            count = len(sharding.local_rows(self._mesh, len(payload["index"])))
            cut = lambda table: jax.ShapeDtypeStruct((count, *table.shape[1:]), table.dtype)
            found = jax.tree.map(cut, dict(self._tables))
            if self._cache is not None:
                found["features"] = self._cache.shapes(count)
            return sharding.put_batch(self._mesh, found)
        rows = sharding.to_host(payload["index"])
        mine = np.minimum(rows[sharding.local_rows(self._mesh, len(rows))], self._reader.rows - 1)
        found = {name: jax.tree.map(lambda table: table[mine], table) for name, table in self._tables.items()}
        if self._cache is not None:
            found["features"] = self._cache.read(mine)
        return sharding.put_batch(self._mesh, found)

    def _observe(self, state, frozen, key, store, payload, more):
        batch = self._reader.fetch(store, payload) | more
        real = batch["index"] < self._reader.rows
        return Bank(masked(self._method.observe(state, frozen, batch, key), real), batch["index"], real)

    def _locate(self, state, frozen, key, found, store, payload, more):
        bank = self._observe(state, frozen, key, store, payload, more)
        return bank._replace(values=self._method.locate(state, found, bank.values))

    def _observe_into(self, bank, state, frozen, key, store, payload, more, t):
        return _written(bank, self._observe(state, frozen, key, store, payload, more), t)

    def _locate_into(self, bank, state, frozen, key, found, store, payload, more, t):
        return _written(bank, self._locate(state, frozen, key, found, store, payload, more), t)

    def _shapes(self, observe, seen, passes: int):
        """Return the shapes of a table [B,T,...] of the results of `observe` on T batches, with their placement."""
        where = sharding.split(self._mesh)
        whole = lambda s: jax.ShapeDtypeStruct((s.shape[0], passes, *s.shape[1:]), s.dtype, sharding=where)
        return jax.tree.map(whole, jax.eval_shape(observe, *seen))

    def _empty(self, observe, seen, passes: int):
        shapes = self._shapes(observe, seen, passes)
        make = jax.jit(
            lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
            out_shardings=sharding.split(self._mesh),
        )
        return make()


def _written(table, one, t):
    """Replace batch t of a table [B,T,...]."""
    return jax.tree.map(lambda all_, one: all_.at[:, t].set(one.astype(all_.dtype)), table, one)

"""What a compiled program sends between devices, read from its text."""

from typing import NamedTuple

from uld_jax.plan import hlo


class Collective(NamedTuple):
    """One array of one operation: its kind, the dtype in XLA's short form, and the shape of the result per device."""

    kind: str
    dtype: str
    shape: tuple[int, ...]


def list_collectives(compiled) -> list[Collective]:
    """All collective operations of `jax.jit(f).lower(...).compile()`, or of its HLO text, sorted.

    Those of loops and of asynchronous operations count once, and those of every branch. XLA may combine several arrays
    into one operation; each array is an entry of its own.

    >>> list_collectives("ENTRY %main () -> () {\\n  %r = (f32[8,4]{1,0}, s32[]) all-reduce(%a, %b), replica_groups={}")
    [Collective(kind='all-reduce', dtype='f32', shape=(8, 4)), Collective(kind='all-reduce', dtype='s32', shape=())]
    """
    module = hlo.Module(compiled if isinstance(compiled, str) else compiled.as_text())
    found = []
    for body in module.computations.values():
        names = {one.name: one for one in body}
        for one in body:
            kind, _ = hlo.exchange(one, names)
            found += [Collective(kind, array.dtype, array.shape) for array in one.arrays if kind]
    return sorted(found)

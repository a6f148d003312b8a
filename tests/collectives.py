"""What a compiled program sends between devices, read from its text."""

import re
from typing import NamedTuple

_KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast", "reduce-scatter")
_LINE = re.compile(rf"= (?P<result>\(.*?\)|\S+) (?P<kind>{'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,]*)\]")


class Collective(NamedTuple):
    """One array of one operation: its kind, the dtype in XLA's short form, and the shape of the result per device."""

    kind: str
    dtype: str
    shape: tuple[int, ...]


def list_collectives(compiled) -> list[Collective]:
    """All collective operations of `jax.jit(f).lower(...).compile()`, or of its HLO text, sorted; loops count once.

    XLA may combine several arrays into one operation; each array is an entry of its own.

    >>> list_collectives("%r = (f32[8,4]{1,0}, s32[]) all-reduce(%a, %b), replica_groups={}")
    [Collective(kind='all-reduce', dtype='f32', shape=(8, 4)), Collective(kind='all-reduce', dtype='s32', shape=())]
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    found = []
    for line in _LINE.finditer(text):
        for array in _ARRAY.finditer(line["result"]):
            shape = tuple(int(n) for n in array["shape"].split(",") if n)
            found.append(Collective(line["kind"], array["dtype"], shape))
    return sorted(found)

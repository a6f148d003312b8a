"""What an optimised program does, read from its text (HLO): bytes, copies, collectives, kernels, estimated cycles.

Everything is of one device. An instruction of a loop counts as often as the loop turns, where the text tells; of the
branches of a conditional the one with the most bytes counts. A fusion is one instruction; of what it reads, an array
that it only cuts or gathers from counts with the parts it takes, and one that it updates in place with the new part.

The form of the text:

    %fusion.3 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%a, %b), kind=kLoop, calls=%fused.3, metadata={op_name="..."}

`{1,0:...}` is the layout, the fastest axis first; `T(8,128)` the tile, to whose multiples a TPU pads the fastest axes;
`S(1)` a memory other than the device's main memory. Arrays there cost no bytes.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b(?P<dtype>pred|bf16|[a-z]+\d+[a-z0-9]*)\[(?P<sizes>[\d,<=]*)\](?:\{(?P<layout>[^}]*)\})?")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# Instructions without work of their own. The start of an asynchronous operation does the work, its `done` waits.
_IDLE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_IDLE_CALLS = {"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
_MOVES = {"concatenate", "copy", "copy-start", "reshape", "slice", "transpose"}
_NOTHING = {"bitcast", "fusion", "get-tuple-element", "parameter", "tuple"}  # in a fusion that only moves data
_CUTS = {"dynamic-slice", "gather", "slice"}  # read of their first operand only what they return
_WRITES = {"dynamic-update-slice": 1, "scatter": 2}  # write into their first operand; the place of the new part


class Array(NamedTuple):
    """An array of the text.

    Attributes:
      dtype: XLA's short name.
      shape: sizes on one device.
      bytes: without padding.
      padded: bytes with the padding of the layout.
      main: True in the device's main memory.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: float
    padded: float
    main: bool


def arrays(text: str) -> list[Array]:
    """Read the arrays of a type, a tuple's in order.

    >>> arrays("(f32[20,6]{0,1:T(8,128)}, bf16[3]{0:T(256)S(1)})")[0]
    Array(dtype='f32', shape=(20, 6), bytes=480.0, padded=4096.0, main=True)
    """
    found = []
    for match in _ARRAY.finditer(text):
        dtype, layout = match["dtype"], match["layout"] or ""
        bits = _BITS.get(dtype) or _width(dtype)
        if bits is None:
            continue
        if override := re.search(r"E\((\d+)\)", layout):
            bits = int(override[1])
        shape = tuple(int(size.lstrip("<=")) for size in match["sizes"].split(",") if size)
        space = re.search(r"S\((\d+)\)", layout)
        sizes = [bits / 8 * math.prod(sides) for sides in (shape, _padded(shape, layout))]
        found.append(Array(dtype, shape, *sizes, space is None or space[1] == "0"))
    return found


def _width(dtype: str) -> int | None:
    match = re.fullmatch(r"[sufc](\d+)\w*", dtype)
    return int(match[1]) if match else None


def _padded(shape, layout) -> list[int]:
    """Round the fastest axes up to the sides of the layout's first tile."""
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,*]+)\)", rest)
    sides, axes = list(shape), [int(axis) for axis in order.split(",") if axis]
    if tile:
        for axis, side in zip(axes, reversed(tile[1].split(","))):
            if side != "*":
                sides[axis] = -(-sides[axis] // int(side)) * int(side)
    return sides


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation: `name = type op(operands), rest`; `root` is the computation's result."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @functools.cached_property
    def arrays(self) -> list[Array]:
        """The arrays of the result."""
        return arrays(self.type)

    def called(self, *keys: str) -> list[str]:
        """The computations that the attributes of these names call."""
        found = []
        for key in keys:
            for match in re.finditer(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest):
                found += [name.strip().lstrip("%") for name in (match[1] or match[2]).split(",")]
        return found

    @property
    def label(self) -> str:
        """The place in the traced function, as JAX writes it."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return match[1].replace("\\'", "'") if match else ""

    @property
    def cycles(self) -> int | None:
        """The TPU compiler's estimate; None without one."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(match[1]) if match else None


class Collective(NamedTuple):
    """An array that devices exchange: the operation, the dtype and shape of the result on one device, and how often."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    times: int
    bytes: float


class Copy(NamedTuple):
    """An instruction that only moves data: its name and type, its share of the program, its origin, and how often."""

    name: str
    type: str
    share: float
    label: str
    times: int


class Costs(NamedTuple):
    """What a program does on one device.

    Attributes:
      bytes, padded: read and written in main memory, without and with padding.
      collectives: what is exchanged, in the order of the text.
      copies: instructions that only move data, those with at least 1 % of the program, largest first. The share is of
        the cycles where the compiler estimates them, else of the padded bytes.
      kernels: number of instructions with work of their own, the kernels that a GPU starts.
      cycles: sum of the TPU compiler's estimates; None without any.
      unestimated: number of instructions with work, but without an estimate.
      loops_unknown: number of loops whose number of turns the text does not tell; they count as one turn.
      arguments: padded bytes of the program's arguments by the name of the function's argument.
    """

    bytes: float
    padded: float
    collectives: list[Collective]
    copies: list[Copy]
    kernels: int
    cycles: int | None
    unestimated: int
    loops_unknown: int
    arguments: dict[str, float]


class Module:
    """A program's text, parsed.

    Attributes:
      computations: {name: instructions}.
      entry: name of the computation that is the program.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            if not line.startswith(" "):
                current = None
                if (head := _HEAD.match(line)) and not line.startswith("HloModule"):
                    current = self.computations.setdefault(head["name"], [])
                    self.entry = head["name"] if head["entry"] else self.entry
            elif current is not None and (instruction := _instruction(line.strip())):
                current.append(instruction)
        self._named = {name: {i.name: i for i in body} for name, body in self.computations.items()}

    def costs(self) -> Costs:
        """Add up what the program does."""
        ran = list(self.executed(self.entry))
        total, padded, cycles, kernels, unestimated = 0.0, 0.0, 0, 0, 0
        moves, estimated = [], False
        for home, instruction, times in ran:
            if not _works(instruction):
                continue
            read, with_padding = self._traffic(home, instruction)
            estimate = instruction.cycles
            total, padded, kernels = total + times * read, padded + times * with_padding, kernels + times
            cycles, estimated = cycles + times * (estimate or 0), estimated or estimate is not None
            unestimated += estimate is None
            if self._moves(home, instruction):
                moves.append((instruction, times, times * (estimate or 0), times * with_padding))
        whole = cycles if estimated else padded
        copies = [
            Copy(i.name, i.type, (spent if estimated else moved) / whole, i.label, times)
            for i, times, spent, moved in moves
            if whole and (spent if estimated else moved) >= 0.01 * whole
        ]
        return Costs(
            total,
            padded,
            list(self._collectives(ran)),
            sorted(copies, key=lambda copy: -copy.share),
            kernels,
            cycles if estimated else None,
            unestimated,
            sum(i.op == "while" and self._turns(home, i) is None for home, i, _ in ran),
            self._arguments(),
        )

    def executed(self, name: str, times: int = 1) -> Iterator[tuple[str, Instruction, int]]:
        """Iterate over (computation, instruction, how often) of what runs in a computation; a fusion is one of them."""
        for instruction in self.computations.get(name, ()):
            yield name, instruction, times
            if instruction.op == "while":
                turns = self._turns(name, instruction)
                for body in instruction.called("body"):
                    yield from self.executed(body, times * (1 if turns is None else turns))
            elif instruction.op == "conditional":
                keys = ("branch_computations", "true_computation", "false_computation")
                branches = [list(self.executed(branch, times)) for branch in instruction.called(*keys)]
                yield from max(branches, key=self._weight, default=())
            elif instruction.op in ("call", "async-start"):
                for target in instruction.called("to_apply", "calls", "called_computations"):
                    yield from self.executed(target, times)

    def _collectives(self, ran) -> Iterator[Collective]:
        seen = set()
        for home, instruction, times in ran:
            inside = [instruction]
            if instruction.op == "fusion":
                inside = [i for name in self.within(instruction) for i in self.computations.get(name, ())]
            for one in inside:
                kind, channel = exchange(one, self._named[home])
                if not kind or channel in seen:
                    continue
                seen |= {channel} - {""}
                yield from (Collective(kind, a.dtype, a.shape, times, a.bytes) for a in one.arrays)

    def _weight(self, executed) -> float:
        return sum(times * self._traffic(home, i)[1] for home, i, times in executed if _works(i))

    def within(self, fusion: Instruction) -> Iterator[str]:
        """Iterate over the computations inside a fusion."""
        for name in fusion.called("calls"):
            yield name
            for inner in self.computations.get(name, ()):
                if inner.op == "fusion":
                    yield from self.within(inner)

    def _turns(self, home: str, loop: Instruction) -> int | None:
        """The turns of a loop: as noted, or of a counter in steps of one below a constant; None if unknown.

        The counter starts at the constant that the text shows, or at 0 where the text does not show the start.
        """
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        return int(noted[1]) if noted else self._counted(home, loop)

    def _counted(self, home, loop) -> int | None:
        condition = self._named.get(next(iter(loop.called("condition")), ""), {})
        test = next((i for i in condition.values() if i.root), None)
        if test is None or test.op != "compare" or "direction=LT" not in test.rest or len(test.operands) != 2:
            return None
        counter, bound = (condition.get(name) for name in test.operands)
        if counter is None or counter.op != "get-tuple-element":
            return None
        place = int(re.search(r"index=(\d+)", counter.rest)[1])
        last = self._constant(condition, bound)
        start = self._named[home].get(loop.operands[0]) if loop.operands else None
        if last is None:
            return None
        if start is None or start.op != "tuple":
            return last
        first = self._constant(self._named[home], self._named[home].get(start.operands[place]))
        return max(last - (first or 0), 0)

    def _constant(self, names, instruction) -> int | None:
        """The value of an integer constant, also behind copies and bitcasts."""
        while instruction is not None and instruction.op in ("bitcast", "copy", "copy-start", "copy-done"):
            instruction = names.get(instruction.operands[0]) if instruction.operands else None
        if instruction is None or instruction.op != "constant":
            return None
        value = re.match(r"-?\d+$", instruction.rest.partition("\0")[0])
        return int(value[0]) if value else None

    def _arguments(self) -> dict[str, float]:
        found = collections.defaultdict(float)
        for instruction in self.computations.get(self.entry, ()):
            if instruction.op == "parameter":
                name = re.match(r"\w+", instruction.label)
                found[name[0] if name else ""] += sum(a.padded for a in instruction.arrays)
        return dict(found)

    def _moves(self, home: str, instruction: Instruction) -> bool:
        """Tell whether an instruction only moves data from main memory to main memory."""
        names = self._named[home]
        given = [a for name in instruction.operands if name in names for a in names[name].arrays]
        if not all(a.main for a in (*instruction.arrays[:1], *given)):
            return False
        if instruction.op != "fusion":
            return instruction.op in _MOVES
        inside = {i.op for name in self.within(instruction) for i in self.computations.get(name, ())}
        return bool(inside & _MOVES) and inside <= _MOVES | _NOTHING

    def _traffic(self, home: str, instruction: Instruction) -> tuple[float, float]:
        """The bytes that an instruction reads and writes in main memory, without and with padding."""
        names, op, read = self._named[home], instruction.op, []
        written = instruction.arrays
        if op == "copy-start":
            written = written[:1]
        operands = [names[name].arrays if name in names else [] for name in instruction.operands]
        if op == "fusion":
            body = next(iter(instruction.called("calls")), "")
            for number, given in enumerate(operands):
                parts = self._taken(body, number)
                read += given if parts is None or not all(a.main for a in given) else parts
            written = self._changed(body, written)
        elif op in _CUTS:
            read = [*written, *(a for given in operands[1:] for a in given)]
            read = read if operands and all(a.main for a in operands[0]) else operands[-1]
        elif op in _WRITES:
            read = [a for given in operands[1:] for a in given]
            part = operands[_WRITES[op]] if len(operands) > _WRITES[op] else []
            written = [a._replace(main=b.main) for a, b in zip(part, written)]
        else:
            read = [a for given in operands for a in given]
        moved = [a for a in (*read, *written) if a.main]
        return sum(a.bytes for a in moved), sum(a.padded for a in moved)

    def _taken(self, body: str, number: int) -> list[Array] | None:
        """The parts that a fusion takes of a parameter, in main memory; None for all of it."""
        instructions = self.computations.get(body, ())
        parameter = next((i for i in instructions if i.op == "parameter" and _number(i) == number), None)
        if parameter is None:
            return None
        parts, names = [], [parameter.name]
        for user in instructions:
            used = [place for place, name in enumerate(user.operands) if name in names]
            if not used:
                continue
            if user.op == "bitcast":
                names.append(user.name)
            elif user.op in _CUTS and used == [0]:
                parts += [a._replace(main=True) for a in user.arrays]
            elif user.op in _WRITES and used == [0]:
                continue  # changed in place
            elif user.op == "fusion":
                for place in used:
                    inner = self._taken(next(iter(user.called("calls")), ""), place)
                    if inner is None:
                        return None
                    parts += inner
            else:
                return None
        return parts

    def _changed(self, body: str, written: list[Array]) -> list[Array]:
        """What a fusion writes: of a result that is a parameter changed in place, the new part alone."""
        names = self._named.get(body, {})
        root = next((i for i in names.values() if i.root), None)
        if root is None:
            return written
        results = [names.get(name) for name in root.operands] if root.op == "tuple" else [root]
        if len(results) != len(written):
            return written
        return [self._part(names, result, whole) for result, whole in zip(results, written)]

    def _part(self, names, result, whole: Array) -> Array:
        while result is not None and result.op in ("bitcast", "copy") and result.operands:
            result = names.get(result.operands[0])
        if result is None:
            return whole
        if result.op == "fusion":
            inner = self._changed(next(iter(result.called("calls")), ""), [whole])
            return inner[0]
        if result.op not in _WRITES or len(result.operands) <= _WRITES[result.op]:
            return whole
        given, part = names.get(result.operands[0]), names.get(result.operands[_WRITES[result.op]])
        while given is not None and given.op == "bitcast" and given.operands:
            given = names.get(given.operands[0])
        if given is None or given.op != "parameter" or part is None or len(part.arrays) != 1:
            return whole
        return part.arrays[0]._replace(main=whole.main)


def exchange(instruction: Instruction, names: dict[str, Instruction]) -> tuple[str, str]:
    """Return the kind of a collective operation and its channel; "" for none.

    An asynchronous operation is told by its `done`, whose result is that of the operation; `names` are the instructions
    of the computation, among them the operation's `start`.
    """
    kind = instruction.op.removesuffix("-done")
    if kind not in COLLECTIVES:
        return "", ""
    begun = instruction
    if kind != instruction.op and instruction.operands:
        begun = names.get(instruction.operands[0], instruction)
    channel = re.search(r"channel_id=(\d+)", begun.rest)
    return kind, channel[1] if channel else ""


def _number(parameter: Instruction) -> int:
    return int(parameter.rest.partition("\0")[0])


def _works(instruction: Instruction) -> bool:
    """Tell whether an instruction has work of its own."""
    op = instruction.op
    if op in _IDLE or op.endswith("-done") or op in ("async-start", "async-update"):
        return False
    if op == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
        return not target or target[1] not in _IDLE_CALLS
    return True


def _instruction(line: str) -> Instruction | None:
    """Parse a line. For parameters and constants, `rest` begins with their content, up to a zero character."""
    head = _NAME.match(line)
    if not head:
        return None
    start = head.end()
    stop = _closing(line, start) if line[start] == "(" else line.find(" ", start)
    op, paren, _ = line[stop:].strip().partition("(")
    if stop <= start or not paren:
        return None
    opened = line.index("(", stop)
    closed = _closing(line, opened)
    inside, rest = line[opened + 1 : closed - 1], line[closed:]
    if op in ("constant", "parameter"):
        return Instruction(head["name"], line[start:stop], op, (), f"{inside}\0{rest}", bool(head["root"]))
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(head["name"], line[start:stop], op, operands, rest, bool(head["root"]))


def _closing(line: str, opened: int) -> int:
    """The place behind the parenthesis that closes the one at `opened`."""
    depth = 0
    for match in re.finditer(r"[()]", line[opened:]):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return opened + match.end()
    return len(line)

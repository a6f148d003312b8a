"""What the text of a compiled program says of its arguments and operations."""

import re


def donated(compiled) -> set[int]:
    """Numbers of the arguments whose memory results take over, of `jax.jit(f).lower(...).compile()` or its text.

    >>> sorted(donated("HloModule f, input_output_alias={ {0}: (2, {}, may-alias), {1}: (0, {}, must-alias) }, entry"))
    [0, 2]
    """
    aliases = re.search(r"input_output_alias=\{(.*?) \}, ", _text(compiled))
    return {int(number) for number in re.findall(r": \((\d+),", aliases[1])} if aliases else set()


def count(compiled, operation: str) -> int:
    """Number of operations of a kind, such as `while`; an asynchronous one counts once.

    >>> count("%a = f32[] all-reduce-start(%b), x\\n %c = f32[] all-reduce-done(%a)", "all-reduce")
    1
    """
    return len(re.findall(rf" {operation}(?:-start)?\(", _text(compiled)))


def _text(compiled) -> str:
    return compiled if isinstance(compiled, str) else compiled.as_text()

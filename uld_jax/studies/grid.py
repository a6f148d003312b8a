"""Grids of values, and the runs (cells) that they make of a config."""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from uld_jax import config as config_lib
from uld_jax.config import Config
from uld_jax.errors import UserError

SEED = "seed"


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
      name: name of the run's folder within the study's folder, `key=value,...`.
      values: value of each grid's key, as it was written.
      config: config of the run.
    """

    name: str
    values: dict[str, str]
    config: Config


def cells(spec: str, grids: Sequence[str], overrides: Sequence[str] = ()) -> list[Cell]:
    """Build one cell for each combination of the grids' values.

    A key is either an argument of the config (`dataset`, `k`, `preset` or another argument of its file), with which the
    config is rebuilt, or a key within the config (`seed`, `cgb.bottleneck`), whose type the value takes.

    Args:
      spec: `FILE_OR_NAME:arguments` of a config.
      grids: `KEY=VALUE,VALUE,...` each.
      overrides: `KEY=VALUE` each, for keys of the config, the same in all cells.

    Raises:
      UserError: no grid, an unknown or repeated key, or a value that the config does not take.
    """
    if not grids:
        raise UserError("a sweep needs --grid=KEY=VALUE,VALUE,...; it may be given several times")
    values = {}
    for text in grids:
        key, some = parse_grid(text)
        if key in values:
            raise UserError(f"--grid={key} is given twice; put all its values into one")
        values[key] = some
    fixed = {text.partition("=")[0] for text in overrides}
    if both := sorted(fixed & set(values)):
        raise UserError(f"{both[0]} is set by --grid={both[0]} and by --config.{both[0]}; leave one of them out")
    arguments = {key for key in values if _is_argument(spec, key)}
    known = config_lib.load(spec)
    for key in values:
        if "." not in key and key not in arguments and key not in known:
            raise UserError(f"--grid={key}: the config has no key {key!r} and takes no argument of that name")

    out, folders = [], {}
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination))
        cell_spec = spec
        for key in arguments:
            cell_spec = with_argument(cell_spec, key, chosen[key])
        changes = [*overrides, *(f"{key}={value}" for key, value in chosen.items() if key not in arguments)]
        name = ",".join(f"{key}={short(value)}" for key, value in chosen.items())
        if name in folders:
            raise UserError(f"{folders[name]} and {chosen} would share the folder {name}; leave one of them out")
        folders[name] = chosen
        try:
            out.append(Cell(name, chosen, build("uld sweep", cell_spec, changes)))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return out


def build(command: str, spec: str, changes: Sequence[str]) -> Config:
    """Build the config that a command line with these changes would give.

    Args:
      command: name of the command, for messages.
      spec: `FILE_OR_NAME:arguments` of a config.
      changes: `KEY=VALUE` each, for keys of the config.

    Raises:
      UserError: an unknown key, or a value that the config does not take.
    """
    flags = [f"--config={config_lib.resolve(spec)}", *(f"--config.{change}" for change in changes)]
    return config_lib.parse_flags([command, *flags])


def parse_grid(text: str) -> tuple[str, list[str]]:
    """Split `KEY=VALUE,VALUE,...` into the key and its values; commas within brackets or quotes do not separate.

    Raises UserError for no key, no value, a value given twice, or brackets and quotes that do not come in pairs.

    >>> parse_grid("stages=('a','b'),('c',)")
    ('stages', ["('a','b')", "('c',)"])
    >>> parse_grid("data.normaliser='36,45',box")
    ('data.normaliser', ['36,45', 'box'])
    """
    key, equals, rest = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--grid={text} is not understood; write --grid=KEY=VALUE,VALUE,...")
    values = [part.strip() for part in _split(rest, text)]
    if "" in values:
        where = "" if len(values) == 1 else " beside one of its commas"
        raise UserError(f"--grid={text} has no value{where}; write '' for an empty one")
    # Quotes around a whole value only protect its commas, so they are dropped.
    values = [v[1:-1] if len(v) > 1 and v[0] == v[-1] and v[0] in "'\"" and v[0] not in v[1:-1] else v for v in values]
    if twice := [v for i, v in enumerate(values) if v in values[:i]]:
        raise UserError(f"--grid={key} has the value {twice[0]} twice; leave one of them out")
    return key, values


def _split(text: str, whole: str) -> Iterator[str]:
    """Yield the parts between the commas that are outside of brackets and quotes."""
    start, closing = 0, []
    for i, letter in enumerate(text):
        if closing and closing[-1] in "'\"":
            if letter == closing[-1]:
                closing.pop()
        elif letter in "([{'\"":
            closing.append({"(": ")", "[": "]", "{": "}"}.get(letter, letter))
        elif letter in ")]}":
            if not closing or closing.pop() != letter:
                closing.append(letter)
                break
        elif letter == "," and not closing:
            yield text[start:i]
            start = i + 1
    if closing:
        raise UserError(f"--grid={whole} lacks or has too many of {closing[-1]}; quotes and brackets come in pairs")
    yield text[start:]


def _is_argument(spec: str, key: str) -> bool:
    """Tell whether a config takes an argument `key`; False for a file that accepts any name."""
    return "." not in key and _takes(spec, key) and not _takes(spec, "no_such_argument")


def _takes(spec: str, key: str) -> bool:
    try:
        config_lib.load(with_argument(spec, key, "0"))
    except config_lib.UnknownArgument:
        return False
    except UserError:  # the config has the argument and refuses only the trial value 0
        return True
    return True


def with_argument(spec: str, key: str, value: str) -> str:
    """Replace or add an argument of a config's spec.

    >>> with_argument("zeroshot:k=5,preset=tiny", "k", "8")
    'zeroshot:preset=tiny,k=8'
    """
    if "," in value:
        raise UserError(f"--grid={key}: {value!r} cannot be an argument of the config; leave out the comma")
    path, _, arguments = spec.partition(":")
    kept = [a for a in arguments.split(",") if a and a.partition("=")[0] != key]
    return f"{path}:{','.join([*kept, f'{key}={value}'])}"


def short(value: str) -> str:
    """Shorten a value for use in a folder's name: `('a','b')` becomes `a+b`."""
    inner = re.sub(r"[\s'\"()\[\]{}]", "", value).strip(",")
    return re.sub(r"[^\w.+-]", "_", inner.replace(",", "+")) or "none"

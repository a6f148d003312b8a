"""Many runs of one config: every combination of some keys' values, and a table of how they compare.

    uld sweep --config=cgb:dataset=folder,k=10 --config.data_dir=PHOTOS --grid=cgb.bottleneck=fixed,adaptive \
        --grid=seed=0,1,2 --workdir=runs/guidance

A cell is one combination. It is just the run that `uld train` makes of it, in a folder of its own,
`WORKDIR/cgb.bottleneck=fixed,seed=0`, and so can be evaluated, resumed and predicted with by itself. After every cell
the table is written anew: `table.md`, `table.json` and `curves.png`, one row for each combination without `seed`, with
mean and spread over seeds; and where two keys beside `seed` are varied, both of them numbers, the heat map `grid.png`.
The same command goes on where it was stopped.
"""

import gc
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import config as config_lib
from uld_jax import files, sharding, viz
from uld_jax.config import Config
from uld_jax.data.open import open_split
from uld_jax.engine import checkpoint, loop, runs, stopping
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError

SEED = "seed"
COLUMNS = ("forward_nme", "backward_nme", "mean_shape_nme", "stability_px")
NMES = {"forward_nme": "forward NME, %", "backward_nme": "backward NME, %"}
IF_MEASURED = ("clusters", "silhouette", "calinski_harabasz", "consistency")
LAST = ("steps", "minutes")


class Cell(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: its folder below the sweep's, `key=value,...`.
      values: the value of each grid's key, as it was written.
      config: of the run.
    """

    name: str
    values: dict[str, str]
    config: Config


class Table(NamedTuple):
    """What is known of a sweep so far.

    Attributes:
      record: what `table.json` holds. Its `rows` have `values` (key -> value), `columns` (name -> mean, spread, n) and
        `cells` (name, seed, status, error, columns), whose status is done, failed, started or waiting. `spread` is the
        sample standard deviation, None for a single run; cells that are not done take no part.
      markdown: what `table.md` holds.
      failed: names of the cells that failed.
      files: names of the files that were written.
    """

    record: dict[str, Any]
    markdown: str
    failed: list[str]
    files: tuple[str, ...] = ("table.md", "table.json", "curves.png")


def run(
    spec: str,
    grids: Sequence[str],
    workdir,
    *,
    overrides: Sequence[str] = (),
    columns: Sequence[str] = (),
    mesh=None,
) -> Table:
    """Trains all cells that are not finished, one after the other, and tabulates them.

    Args:
      spec: `FILE_OR_NAME:arguments` of a config.
      grids: `KEY=VALUE,VALUE,...` each, see `cells`.
      workdir: the sweep's folder, local or gs://.
      overrides: `KEY=VALUE` each, for keys of the config, the same in all cells.
      columns: of the table, in place of the usual ones; names in metrics.json or metrics.jsonl.
      mesh: the devices; all of them by default.

    Raises:
      UserError: a grid or a cell's config that cannot be used, before any compute. A cell that fails later, such as by
        a loss that is not finite, is written down as failed and the others go on.
      stopping.Stopped: after SIGTERM, when the state of the cell under way is saved.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    workdir, every = epath.Path(workdir), cells(spec, grids, overrides)
    config_lib.check_weights_are_read(_check(every, workdir, mesh))
    todo = [cell for cell in every if not _finished(cell, workdir / cell.name)]
    errors: dict[str, str] = {}

    def written():
        return _write(spec, every, workdir, columns, errors)

    table = written()
    with stopping.Sigterm() as stop:
        for i, cell in enumerate(todo):
            if stop.agreed(True):
                raise stopping.Stopped(f"stopped before {cell.name}; the same command goes on")
            _say(f"{cell.name}: {i + 1} of {len(todo)} runs")
            try:
                loop.run(cell.config, workdir / cell.name, mesh=mesh, stop=stop, alone=False)
            except (UserError, jax.errors.JaxRuntimeError) as error:  # the latter: out of memory, say
                errors[cell.name] = str(error)
                _say(f"{cell.name} failed: {error}")
            finally:
                table = written()
            jax.clear_caches()  # nothing compiled for a cell serves the next one
            gc.collect()
    return table


# From grids to configs


def cells(spec: str, grids: Sequence[str], overrides: Sequence[str] = ()) -> list[Cell]:
    """The product of the grids.

    A key is an argument of the config (`dataset`, `k`, `preset`, what else its file takes), which is then built anew;
    or else a key in it (`seed`, `cgb.bottleneck`), whose value takes the type of the present one.

    Raises UserError: no grid, an unknown or repeated key, or a value that the config does not take.
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
        name = ",".join(f"{key}={_short(value)}" for key, value in chosen.items())
        if name in folders:
            raise UserError(f"{folders[name]} and {chosen} would share the folder {name}; leave one of them out")
        folders[name] = chosen
        argv = ["uld sweep", f"--config={config_lib.resolve(cell_spec)}", *(f"--config.{c}" for c in changes)]
        try:
            out.append(Cell(name, chosen, config_lib.parse_flags(argv)))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return out


def parse_grid(text: str) -> tuple[str, list[str]]:
    """`KEY=VALUE,VALUE,...` to the key and its values; commas within brackets or quotes do not separate.

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
    # Quotes around a whole value are there for its commas alone.
    values = [v[1:-1] if len(v) > 1 and v[0] == v[-1] and v[0] in "'\"" and v[0] not in v[1:-1] else v for v in values]
    if twice := [v for i, v in enumerate(values) if v in values[:i]]:
        raise UserError(f"--grid={key} has the value {twice[0]} twice; leave one of them out")
    return key, values


def _split(text: str, whole: str) -> Iterator[str]:
    """Parts between the commas that stand outside of brackets and quotes."""
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
    """Whether a config takes an argument `key`. Of a file that takes any name it cannot be told, so it takes none."""
    return "." not in key and _takes(spec, key) and not _takes(spec, "no_such_argument")


def _takes(spec: str, key: str) -> bool:
    try:
        config_lib.load(with_argument(spec, key, "0"))
    except config_lib.UnknownArgument:
        return False
    except UserError:  # it knows the name and does not like the value, which is not one of the grid's
        return True
    return True


def with_argument(spec: str, key: str, value: str) -> str:
    """A config's spec with an argument replaced or added.

    >>> with_argument("zeroshot:k=5,preset=tiny", "k", "8")
    'zeroshot:preset=tiny,k=8'
    """
    if "," in value:
        raise UserError(f"--grid={key}: {value!r} cannot be an argument of the config; leave out the comma")
    path, _, arguments = spec.partition(":")
    kept = [a for a in arguments.split(",") if a and a.partition("=")[0] != key]
    return f"{path}:{','.join([*kept, f'{key}={value}'])}"


def _short(value: str) -> str:
    """A value as part of a folder's name: `('a','b')` becomes `a+b`."""
    inner = re.sub(r"[\s'\"()\[\]{}]", "", value).strip(",")
    return re.sub(r"[^\w.+-]", "_", inner.replace(",", "+")) or "none"


def _check(every: Sequence[Cell], workdir, mesh) -> list[tuple[Config, list[config_lib.StageSpec]]]:
    """Everything that can be found wrong before the first computation, naming the cell; configs and stages of all.

    What cells share is looked at once: their data, and their stages, which are traced.
    """
    rows, traced, origins, built = {}, set(), {}, []
    for cell in every:
        config = cell.config
        try:
            stages, _ = loop.check(config, workdir / cell.name, mesh)
            built.append((config, stages))
            data = json.dumps([config.dataset, config.data_dir, config.data.to_dict()], default=str)
            if data not in rows:
                train = open_split(config, "train")
                if "test" in train.spec.splits:
                    open_split(config, "test")
                rows[data] = len(train)
            first = config.init_from
            if first and first not in origins:
                origins[first] = runs.load(first, mesh).origin
            what = (data, first, tuple(stages))
            if what not in traced:
                origin = {"stage": stages[-1].name, "config": config.to_dict(), "rows": rows[data]}
                runs.shapes(origin | {"init_from": origins.get(first)})
                traced.add(what)
        except UserError as error:
            raise UserError(f"{cell.name}: {error}") from error
    return built


# What the runs left


def _lines(folder) -> list[dict[str, Any]]:
    return workdir_lib.read_lines(folder / "metrics.jsonl")


def _finished(cell: Cell, folder) -> bool:
    """Whether all stages have done their steps, which may have grown since."""
    last, stages = (_lines(folder) or [{}])[-1], cell.config.stages
    steps = sum(cell.config[name].steps for name in stages)
    return bool(last.get("done")) and last["step"] == steps and checkpoint.has_final(folder, stages[-1])


def measured(folder, columns: Sequence[str]) -> dict[str, float | None]:
    """Columns of one run: from its evaluation, or else from the last line of metrics.jsonl that has the name.

    `steps` and `minutes` (of wall time, without that between a stop and its resumption) are those of the last line.
    """
    lines, report = _lines(folder), _report(folder)
    last = lines[-1] if lines else {}
    out = {"steps": last.get("step"), "minutes": last["seconds"] / 60 if "seconds" in last else None}
    for name in columns:
        if name not in out:
            logged = (line[name] for line in reversed(lines) if _is_number(line.get(name)))
            out[name] = report[name] if _is_number(report.get(name)) else next(logged, None)
    return {name: out[name] for name in columns}


def _report(folder) -> dict[str, Any]:
    """The numbers of a run's last evaluation; {} if there is none."""
    paths = [folder / "eval" / split / "metrics.json" for split in ("test", "train")]
    return next((workdir_lib.read_json(path) for path in paths if path.exists()), {})


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# The table


def _write(spec, every: Sequence[Cell], workdir, columns, errors) -> Table:
    """The table of all cells as they are now, written by process 0."""
    found, state, protocols = {}, {}, {}
    for cell in every:
        folder = workdir / cell.name
        done = cell.name not in errors and _finished(cell, folder)
        started = "started" if (folder / "config.json").exists() else "waiting"
        state[cell.name] = "failed" if cell.name in errors else "done" if done else started
        found[cell.name] = measured(folder, columns or (*COLUMNS, *IF_MEASURED, *LAST)) if done else {}
        protocols[cell.name] = _report(folder).get("protocol") if done else None
    names = list(columns) or [
        name
        for name in (*COLUMNS, *IF_MEASURED, *LAST)
        if name not in IF_MEASURED or any(values.get(name) is not None for values in found.values())
    ]
    rows = []
    for values, group in _rows(every):
        rows.append(
            {
                "values": values,
                "columns": {name: _statistics([found[c.name].get(name) for c in group]) for name in names},
                "cells": [
                    {
                        "name": cell.name,
                        "seed": cell.values.get(SEED),
                        "status": state[cell.name],
                        "error": errors.get(cell.name),
                        "protocol": protocols.get(cell.name),
                        "columns": {name: found[cell.name].get(name) for name in names},
                    }
                    for cell in group
                ],
            }
        )
    grids = {key: list(dict.fromkeys(cell.values[key] for cell in every)) for key in every[0].values}
    record = {"config": spec, "grids": grids, "columns": names, "rows": rows}
    table = Table(record, _markdown(record), [name for name in state if name in errors])
    if jax.process_index() == 0:
        workdir_lib.write_json(workdir / "table.json", record)
        files.write(workdir / "table.md", table.markdown)
        curves = {
            _label(values): [_lines(workdir / cell.name) for cell in group if state[cell.name] == "done"]
            for values, group in _rows(every)
        }
        viz.save(viz.sweep_plot({label: some for label, some in curves.items() if some}), workdir / "curves.png")
    if (shown := grid(record)) is not None:
        table = table._replace(files=(*table.files, "grid.png"))
        if jax.process_index() == 0:
            viz.save(viz.grid_plot(**shown), workdir / "grid.png")
    return table


def grid(record: dict[str, Any]) -> dict[str, Any] | None:
    """What `viz.grid_plot` draws of a table, the means of both errors; None unless two keys with numbers are varied.

    If the table has neither error, its first measured column takes their place. Columns are the key given first.
    """
    values = {key: some for key, some in record["grids"].items() if key != SEED}
    if len(values) != 2 or any(len(some) < 2 for some in values.values()):
        return None
    try:
        at = {key: sorted(some, key=float) for key, some in values.items()}
    except ValueError:
        return None
    names = [name for name in NMES if name in record["columns"]] or record["columns"][:1]
    (x, columns), (y, rows) = at.items()
    panels = {name: np.full((len(rows), len(columns)), np.nan) for name in names}
    for row in record["rows"]:
        place = rows.index(row["values"][y]), columns.index(row["values"][x])
        for name, panel in panels.items():
            mean = row["columns"][name]["mean"]
            panel[place] = np.nan if mean is None else mean
    panels = {NMES.get(name, name): panel for name, panel in panels.items()}
    return {"panels": panels, "x": x, "y": y, "at": (columns, rows)}


def _rows(every: Sequence[Cell]) -> list[tuple[dict[str, str], list[Cell]]]:
    """Cells that differ in their seed alone, with what they have in common."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in every:
        groups.setdefault(tuple((k, v) for k, v in cell.values.items() if k != SEED), []).append(cell)
    return [(dict(values), group) for values, group in groups.items()]


def _label(values: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "all seeds"


def _statistics(values: Sequence[float | None]) -> dict[str, float | int | None]:
    known = np.array([v for v in values if v is not None], np.float64)
    return {
        "mean": float(known.mean()) if len(known) else None,
        "spread": float(known.std(ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }


def _markdown(record: dict[str, Any]) -> str:
    keys = [key for key in record["grids"] if key != SEED]
    lines = [[*keys, "runs", *record["columns"]]]
    for row in record["rows"]:
        done = sum(cell["status"] == "done" for cell in row["cells"])
        count = f"{done}" if done == len(row["cells"]) else f"{done} of {len(row['cells'])}"
        numbers = [_number(value, done) for value in row["columns"].values()]
        lines.append([*(row["values"][key] for key in keys), count, *numbers])
    body = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
    body.insert(1, "|" + " --- |" * len(keys) + " ---: |" * (len(lines[0]) - len(keys)))
    notes = [f"* `{c['name']}`: {c['error'] or c['status']}" for r in record["rows"] for c in r["cells"]]
    notes = [note for note in notes if not note.endswith(": done")]
    caption = (
        f"`{record['config']}`: mean ± sample standard deviation over the runs, which differ in their seed; NME in "
        "percent of the normaliser, stability in pixels of an image of 128."
    )
    caption += _protocols(record)
    return "\n".join([*body, "", caption, *(["", "Not in the table:", "", *notes] if notes else [])]) + "\n"


def _protocols(record: dict[str, Any]) -> str:
    """The sentence of a caption that names the protocol of the errors; "" without errors."""
    used: dict[str, list[str]] = {}
    for cell in (cell for row in record["rows"] for cell in row["cells"] if cell["protocol"]):
        used.setdefault(cell["protocol"], []).append(cell["name"])
    if len(used) > 1:
        named = "; ".join(f"`{protocol}` ({', '.join(names)})" for protocol, names in used.items())
        return f" Errors of different protocols may not be compared: {named}."
    return f" Protocol `{next(iter(used))}`." if used else ""


def _number(value: dict[str, Any], done: int) -> str:
    """Four digits of a mean, as many decimals of its spread; how many runs have it where it is not all of them."""
    mean, spread, n = value["mean"], value["spread"], value["n"]
    if mean is None:
        return ""
    decimals = 0 if mean == round(mean) else max(0, min(6, 3 - math.floor(math.log10(abs(mean)))))
    text = f"{mean:.{decimals}f}" + (f" ± {spread:.{decimals}f}" if spread else "")
    return text if n == done else f"{text} ({n})"


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)

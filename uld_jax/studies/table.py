"""The table of a study: measured numbers of its runs, mean and spread over seeds, as Markdown, JSON and pictures."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from uld_jax import files, viz
from uld_jax.engine import workdir as workdir_lib
from uld_jax.studies import runner
from uld_jax.studies.grid import SEED, Cell

COLUMNS = ("forward_nme", "backward_nme", "mean_shape_nme", "stability_px")
NMES = {"forward_nme": "forward NME, %", "backward_nme": "backward NME, %"}
IF_MEASURED = ("clusters", "silhouette", "calinski_harabasz", "consistency")
LAST = ("steps", "minutes")


class Table(NamedTuple):
    """The current state of a study.

    Attributes:
      record: content of `table.json`. Its `rows` have `values` (key -> value), `columns` (name -> mean, spread, n) and
        `cells` (name, seed, status, error, columns), whose status is done, failed, started or waiting. `spread` is the
        sample standard deviation, None for a single run; cells that are not done are ignored.
      markdown: content of `table.md`.
      failed: names of the cells that failed.
      files: names of the files that were written.
    """

    record: dict[str, Any]
    markdown: str
    failed: list[str]
    files: tuple[str, ...] = ("table.md", "table.json", "curves.png")


def write(spec: str, every: Sequence[Cell], workdir, columns: Sequence[str], errors: dict[str, str]) -> Table:
    """Write the table of all cells in their current state, by process 0.

    Args:
      spec: the config's spec, for the caption.
      every: all cells of the study.
      workdir: folder of the study.
      columns: names of the table's columns; () for the default ones.
      errors: {name of a failed cell: its error}.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for cell in every:
        folder = workdir / cell.name
        done = cell.name not in errors and runner.finished(cell, folder)
        found[cell.name] = measured(folder, columns or (*COLUMNS, *IF_MEASURED, *LAST)) if done else None
    names = list(columns) or [
        name
        for name in (*COLUMNS, *IF_MEASURED, *LAST)
        if name not in IF_MEASURED or any((values or {}).get(name) is not None for values in found.values())
    ]

    def entry(cell: Cell) -> dict[str, Any]:
        values = found[cell.name]
        out = state(cell, workdir / cell.name, values is not None, errors.get(cell.name))
        out["protocol"] = None if values is None else _report(workdir / cell.name).get("protocol")
        return out | {"columns": {name: (values or {}).get(name) for name in names}}

    grids = {key: list(dict.fromkeys(cell.values[key] for cell in every)) for key in every[0].values}
    record = {"config": spec, "grids": grids, "columns": names, "rows": rows(every, names, entry)}
    table = Table(record, _markdown(record), [cell.name for cell in every if cell.name in errors])
    if jax.process_index() == 0:
        workdir_lib.write_json(workdir / "table.json", record)
        files.write(workdir / "table.md", table.markdown)
        curves = {
            _label(values): [runner.lines(workdir / cell.name) for cell in group if found[cell.name] is not None]
            for values, group in _grouped(every)
        }
        viz.save(viz.sweep_plot({label: some for label, some in curves.items() if some}), workdir / "curves.png")
    if (shown := heat_map(record)) is not None:
        table = table._replace(files=(*table.files, "grid.png"))
        if jax.process_index() == 0:
            viz.save(viz.grid_plot(**shown), workdir / "grid.png")
    return table


# Cells and rows


def measured(folder, columns: Sequence[str]) -> dict[str, float | None]:
    """Read columns of one run: from its evaluation, or else from the last line of metrics.jsonl that has the name.

    `steps` and `minutes` come from the last line; `minutes` is wall time, without the time between a stop and its
    resumption.
    """
    lines, report = runner.lines(folder), _report(folder)
    last = lines[-1] if lines else {}
    out = {"steps": last.get("step"), "minutes": last["seconds"] / 60 if "seconds" in last else None}
    for name in columns:
        if name not in out:
            logged = (line[name] for line in reversed(lines) if _is_number(line.get(name)))
            out[name] = report[name] if _is_number(report.get(name)) else next(logged, None)
    return {name: out[name] for name in columns}


def _report(folder) -> dict[str, Any]:
    """Read the numbers of a run's last evaluation; {} if there is none."""
    paths = [folder / "eval" / split / "metrics.json" for split in ("test", "train")]
    return next((workdir_lib.read_json(path) for path in paths if path.exists()), {})


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def state(cell: Cell, folder, done: bool, error: str | None) -> dict[str, Any]:
    """Describe a cell for its table: name, seed, status (done, failed, started or waiting) and error."""
    started = "started" if (folder / "config.json").exists() else "waiting"
    status = "failed" if error is not None else "done" if done else started
    return {"name": cell.name, "seed": cell.values.get(SEED), "status": status, "error": error}


def rows(
    every: Sequence[Cell], columns: Sequence[str], entry: Callable[[Cell], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Make the rows of a record, one for each combination of values without `seed`.

    Args:
      every: all cells of the study.
      columns: names of the table's columns.
      entry: function that returns a cell's `state` together with `columns` (name -> number or None).

    Returns:
      `values`, `columns` (name -> mean, spread, n over the row's cells) and `cells` of each row.
    """
    out = []
    for values, group in _grouped(every):
        cells = [entry(cell) for cell in group]
        found = {name: statistics(cell["columns"].get(name) for cell in cells) for name in columns}
        out.append({"values": values, "columns": found, "cells": cells})
    return out


def _grouped(every: Sequence[Cell]) -> list[tuple[dict[str, str], list[Cell]]]:
    """Group the cells that differ only in their seed: the values that they share, and the cells."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in every:
        groups.setdefault(tuple((k, v) for k, v in cell.values.items() if k != SEED), []).append(cell)
    return [(dict(values), group) for values, group in groups.items()]


def statistics(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Compute mean, sample standard deviation (None for fewer than two) and count of the values that are not None."""
    known = np.array([v for v in values if v is not None], np.float64)
    return {
        "mean": float(known.mean()) if len(known) else None,
        "spread": float(known.std(ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }


# Pictures and Markdown


def heat_map(record: dict[str, Any]) -> dict[str, Any] | None:
    """Collect a table's data for `viz.grid_plot`: the means of both errors over two keys.

    The first of the given keys goes along the columns. If the table has neither error, its first column takes their
    place. The result is None unless exactly two keys beside `seed` are varied, and both have numbers.
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


def _label(values: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "all seeds"


def markdown_rows(record: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """Lay out a record's rows as the lines of a Markdown table: varied keys, number of runs, columns."""
    lines = [[*keys, "runs", *record["columns"]]]
    for row in record["rows"]:
        done = sum(cell["status"] == "done" for cell in row["cells"])
        count = f"{done}" if done == len(row["cells"]) else f"{done} of {len(row['cells'])}"
        numbers = [number(value, done) for value in row["columns"].values()]
        lines.append([*(row["values"][key] for key in keys), count, *numbers])
    body = list(map(piped, lines))
    body.insert(1, "|" + " --- |" * len(keys) + " ---: |" * (len(lines[0]) - len(keys)))
    return body


def missing_notes(record: dict[str, Any]) -> list[str]:
    """List the cells that are not done, each with its error or status, as lines of Markdown."""
    notes = [f"* `{c['name']}`: {c['error'] or c['status']}" for r in record["rows"] for c in r["cells"]]
    return [note for note in notes if not note.endswith(": done")]


def page(body: Sequence[str], caption: str, notes: Sequence[str]) -> str:
    """Join a table's lines, its caption and the notes on missing cells into a page of Markdown."""
    return "\n".join([*body, "", caption, *(["", "Not in the table:", "", *notes] if notes else [])]) + "\n"


def _markdown(record: dict[str, Any]) -> str:
    caption = (
        f"`{record['config']}`: mean ± sample standard deviation over the runs, which differ in their seed; NME in "
        "percent of the normaliser, stability in pixels of an image of 128."
    )
    keys = [key for key in record["grids"] if key != SEED]
    return page(markdown_rows(record, keys), caption + _protocols(record), missing_notes(record))


def _protocols(record: dict[str, Any]) -> str:
    """Name the protocols of the errors in a sentence for the caption; "" without errors."""
    used = by_protocol((c["name"], c["protocol"]) for row in record["rows"] for c in row["cells"])
    if len(used) > 1:
        return f" {not_comparable(used)}"
    return f" Protocol `{next(iter(used))}`." if used else ""


def piped(cells: Sequence[str]) -> str:
    r"""Format the cells of a row of a Markdown table.

    >>> print(piped(["a|b", "1"]))
    | a\|b | 1 |
    """
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def by_protocol(measured: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """Group the names of runs by the protocol of their errors, None for a run without errors, which is left out."""
    used: dict[str, list[str]] = {}
    for name, protocol in measured:
        if protocol:
            used.setdefault(protocol, []).append(name)
    return used


def not_comparable(used: dict[str, list[str]]) -> str:
    """Say which runs have errors of which protocol, in a sentence."""
    named = "; ".join(f"`{protocol}` ({', '.join(names)})" for protocol, names in used.items())
    return f"Errors of different protocols may not be compared: {named}."


def number(value: dict[str, Any], done: int) -> str:
    """Format a column of a row: four digits of the mean, and the spread with as many decimals.

    The number of runs that have a value follows in brackets if it differs from `done`, the number of finished runs.
    """
    mean, spread, n = value["mean"], value["spread"], value["n"]
    if mean is None:
        return ""
    decimals = 0 if mean == round(mean) else max(0, min(6, 3 - math.floor(math.log10(abs(mean)))))
    text = f"{mean:.{decimals}f}" + (f" ± {spread:.{decimals}f}" if spread else "")
    return text if n == done else f"{text} ({n})"

"""Finished runs in a table of a paper, beside the paper's own numbers: `uld table`.

The tables and their rows are those of `studies.paper_rows`; the numbers of the papers, with their sources, are the
tables of quotations in `studies/published/` (see `studies.results`). A column of a table is a measure, a number of
landmarks, the id of a protocol, and a part where the measure has several, such as a number of labels: a number stands
under that of a paper only if all four are equal, and in a column of its own otherwise. A paper whose method finds the
number of landmarks has columns without one, in which any number stands. The protocol of some published numbers is not
known, and then no run stands in their column.

Files:

  table.md, table.json   the table of errors
  figure.png             curves of the runs, if they have any: the error over the number of labelled images, and both
                         errors over the number of landmarks (`curves.ced_over_landmarks`), a panel for each protocol
  table_NAME.md, .json   any other table
"""

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from uld_jax import files, viz
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.studies import paper_runs, results, table
from uld_jax.studies.paper_rows import DIGITS, ERRORS, MEASURES, PAPERS, Table, chosen, protocol_of, repeats
from uld_jax.studies.paper_runs import CED, LABELS, Curve, LeftOut, Run

_AXES = {"forward": "forward NME, %", "backward": "backward NME, %", "regression": "regression error, %"}


def write(
    paper: str, folder: str, out: str = "", name: str = "", say: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], str]:
    """Write a table of a paper with the finished runs below a folder.

    Args:
      paper: name of the paper, a key of `PAPERS`.
      folder: folder of the runs.
      out: folder for the files; empty for `folder`.
      name: name of the table; empty for the errors.
      say: function that tells the user which runs are left out, and which other tables the runs fill.

    Returns:
      The contents of the table's JSON file and of its Markdown file.

    Raises:
      UserError: an unknown paper or table, no finished run of the paper, or an `out` that has another table or cannot
        be written to.
    """
    of, name = chosen(paper, name), name or ERRORS
    root, target = epath.Path(folder), epath.Path(out or folder)
    if not root.is_dir():
        raise UserError(f"--runs={folder} is no folder; give one that holds finished runs, at any depth")
    files.check_writable(target, "out" if out else "runs", "out")
    stem = "table" if name == ERRORS else f"table_{name}"
    _check_out(target, stem, paper)
    every, left = paper_runs.find(root, lambda config: _elsewhere(config, paper))
    for one in left:
        say(f"left out: {one.name} {one.why}")
    if not every:
        some = f"; the first one, {left[0].name}, {left[0].why}" if left else ""
        raise UserError(f"--runs={folder} holds no finished run of --paper={paper}{some}")
    found = paper_runs.groups(every)
    named = paper_runs.names(found)
    record = {"paper": paper, "table": name} | _record(paper, of, found, named, left)
    for one in record["left_out"][len(left) :]:
        say(f"left out: {one['name']} {one['why']}")
    panels = _panels(paper, found, named) if name == ERRORS else {"panels": {}}
    record["files"] = [f"{stem}.md", f"{stem}.json", *(["figure.png"] if panels["panels"] else [])]
    markdown = _markdown(record)
    target.mkdir(parents=True, exist_ok=True)
    workdir_lib.write_json(target / f"{stem}.json", record)
    files.write(target / f"{stem}.md", markdown)
    if name == ERRORS:
        (target / "figure.png").unlink(missing_ok=True)
    if panels["panels"]:
        viz.save(viz.lines_plot(**panels), target / "figure.png")
    others = [one for one in PAPERS[paper].tables if one != name and _fills(paper, one, found, named)]
    if others:
        say(f"these runs also fill --table={', --table='.join(others)}")
    return record, markdown


def _check_out(out: epath.Path, stem: str, paper: str) -> None:
    """Raise UserError if the folder has another table, for example that of a sweep."""
    for name in {"table", stem}:
        path = out / f"{name}.json"
        old = workdir_lib.read_json(path) if path.exists() else {"paper": paper}
        if old.get("paper") != paper:
            what = f"of --paper={old['paper']}" if "paper" in old else "of something else, such as a sweep"
            raise UserError(f"{out} holds the {name}.json {what}; give another folder with --out=DIR")


def _fills(paper: str, name: str, found: Sequence[Sequence[Run]], names: Sequence[str]) -> bool:
    """Tell whether a run has a number in a column of a paper's table, in a row that the table has."""
    record = _record(paper, PAPERS[paper].tables[name], found, names, [])
    ours = [row for row in record["rows"] if row["of"] == "runs"]
    if not any(column["published"] for column in record["columns"]):
        return bool(ours)
    return any(row["row"] and record["columns"][cell["column"]]["published"] for row in ours for cell in row["cells"])


def _elsewhere(config: dict[str, Any], paper: str) -> str:
    """The reason why a run is not of a paper, as the end of a sentence; empty if it is."""
    last = _module(config, config["stages"][-1])
    if last in PAPERS[paper].methods:
        return ""
    others = [name for name, one in PAPERS.items() if last in one.methods]
    return f"is not of {paper}: its last stage is of {others[0] if others else last}"


def _module(config: dict[str, Any], stage: str) -> str:
    return config[stage]["method"].partition(".")[0]


# The table


def _record(
    paper: str, of: Table, found: Sequence[Sequence[Run]], names: Sequence[str], left: Sequence[LeftOut]
) -> dict[str, Any]:
    """The contents of a table's JSON file: columns, rows with cells, and runs that were left out."""
    columns: dict[tuple, dict[str, Any]] = {}
    published = {name: _published(name, columns) for name in of.quoted}
    measures = {column["measure"] for column in columns.values()} | {*of.measures}
    measured = [
        row
        for group, name in zip(found, names, strict=True)
        for row in _measured(paper, of, group, name, columns, measures)
    ]
    shown = {run for row in measured for run in row["runs"]}
    how = f"; measure it by `uld {of.measured[0]}`" if of.measured else ""
    bare = [run for group in found for run in group if run.name not in shown]
    left = [*left, *(LeftOut(run.name, f"has no number of this table{how}") for run in bare)]
    rows, left_over = [], measured
    for row in (row for name in of.quoted for row in published[name]):
        place = row["table"], row.pop("key")
        of_row = [one for one in left_over if place in one["repeats"]]
        rows += [row, *(one | {"name": row["name"], "row": True} for one in of_row)]
        left_over = [one for one in left_over if one not in of_row]
    rows += left_over
    for row in rows:
        row.pop("repeats", None)
    kept = [{"name": one.name, "why": one.why} for one in left]
    return {"columns": list(columns.values()), "rows": rows, "left_out": kept}


def _published(name: str, columns: dict[tuple, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table of quotations; their columns are added to `columns`."""
    quoted, rows = results.quoted(name), []
    for record in quoted["records"]:
        cells = []
        for column in quoted["columns"]:
            key = column["keys"][0]
            value = record["numbers"].get(key)
            if value is None:
                continue
            protocol = protocol_of(record, column)
            where = column["measure"], column["landmarks"], protocol, column.get("part", "")
            at, spread = _column(columns, *where, column["data"]), record["numbers"].get(f"{key}_std")
            cells.append({"column": at, "protocol": protocol, "mean": value, "spread": spread, "n": 1})
        labels = record["row"]
        if len(labels) > 1:
            labels = [f"{title} {label}" for title, label in zip(quoted["labels"], labels, strict=True)]
        row = {"name": ", ".join(labels), "of": "paper", "source": record["source"], "note": record["note"] or ""}
        rows.append(row | {"table": name, "key": ", ".join(record["row"]), "cells": cells})
    return rows


def _column(
    columns: dict[tuple, dict[str, Any]], measure: str, landmarks, protocol: str | None, part: str, data: str = ""
) -> int:
    """The number of a column, which is added if it is new; `data` is that of a published number."""
    key = measure, landmarks, protocol, part, *(() if protocol else (data,))
    if not data and key not in columns and (of_any := (measure, None, *key[2:])) in columns:
        key = of_any  # the paper's method finds the number of landmarks, and so its column has none
    if key not in columns:
        columns[key] = {"measure": measure, "landmarks": landmarks, "protocol": protocol, "part": part, "data": data}
        columns[key]["published"] = bool(data)
    return list(columns).index(key)


def _measured(
    paper: str,
    of: Table,
    group: Sequence[Run],
    name: str,
    columns: dict[tuple, dict[str, Any]],
    measures: set[str],
) -> list[dict[str, Any]]:
    """The rows of runs that differ in their seed, one for each of the paper's stages and each data set.

    Only numbers of the table's measures are taken.
    """
    rows, config = [], group[0].config
    for stage in config["stages"]:
        if _module(config, stage) not in PAPERS[paper].methods:
            continue
        wanted = [[n for n in run.numbers if n.stage == stage and n.measure in measures] for run in group]
        for on in dict.fromkeys(n.on for some in wanted for n in some):
            values: dict[tuple[int, str], dict[str, float]] = {}
            for run, some in zip(group, wanted, strict=True):
                for n in some:
                    if n.on == on:
                        at = _column(columns, n.measure, n.landmarks, n.protocol, n.part)
                        values.setdefault((at, n.protocol), {})[str(run.seed)] = n.value
            cells = [
                {"column": at, "protocol": protocol} | table.statistics(each.values()) | {"by_seed": each}
                for (at, protocol), each in values.items()
            ]
            rows.append(
                {
                    "name": f"stage {stage}",
                    "of": "runs",
                    "row": False,
                    "config": name + ("" if on == "test" else f", on {on}"),
                    "stage": stage,
                    "runs": [run.name for run in group],
                    "seeds": [run.seed for run in group],
                    "cells": cells,
                    "repeats": [(r.table, r.name) for r in of.rows if repeats(config, stage, r)],
                }
            )
    return rows


# Markdown and curves


def _markdown(record: dict[str, Any]) -> str:
    titles = ["row", "numbers of", "seeds", *map(_title, record["columns"])]
    lines = [table.piped(titles), "| --- | --- | --- |" + " ---: |" * len(record["columns"])]
    for row in record["rows"]:
        cells = {cell["column"]: cell for cell in row["cells"]}
        ours = row["of"] == "runs"
        head = [
            row["name"],
            row["config"] if ours else row["source"],
            ", ".join(map(str, row["seeds"])) if ours else "",
        ]
        runs = len(row["seeds"]) if ours else 1
        digits = [DIGITS.get(column["measure"], 2) for column in record["columns"]]
        numbers = [_number(cells.get(i), runs, count) for i, count in enumerate(digits)]
        lines.append(table.piped([*head, *numbers]))
    notes: dict[str, list[str]] = {}
    for row in record["rows"]:
        if row.get("note"):
            notes.setdefault(row["note"], []).append(row["name"])
    caption = (
        "Numbers of runs: mean ± sample standard deviation over seeds. Numbers of different columns may not be "
        "compared: another id is another protocol or other data."
    )
    told = [f"{'; '.join(dict.fromkeys(names))}: {note}" for note, names in notes.items()]
    left = [f"* `{one['name']}` {one['why']}" for one in record["left_out"]]
    return table.page(lines, " ".join([caption, *told, *_told(record)]), left)


def _told(record: dict[str, Any]) -> list[str]:
    """Say that no run stands under a published number, if it is so."""
    both = [i for i, column in enumerate(record["columns"]) if column["published"] and column["protocol"]]
    used = {cell["column"] for row in record["rows"] if row["of"] == "runs" for cell in row["cells"]}
    if used & set(both):
        return []
    if not any(column["published"] for column in record["columns"]):
        return ["The paper has no numbers of these measures, or has them only in a figure."]
    return ["No run was measured as the paper's numbers were: its data, K or protocol differ."]


def _title(column: dict[str, Any]) -> str:
    landmarks = "" if column["landmarks"] is None else f"K = {column['landmarks']}"
    unknown = "the protocol is not recorded" if column["data"] else ""
    protocol = f"`{column['protocol']}`" if column["protocol"] else unknown
    return "; ".join(filter(None, (MEASURES[column["measure"]], column["part"], landmarks, column["data"], protocol)))


def _number(cell: dict[str, Any] | None, runs: int, digits: int) -> str:
    """Format a cell, with the number of runs in brackets if some lack the number."""
    if cell is None:
        return ""
    text = f"{cell['mean']:.{digits}f}" + ("" if cell["spread"] is None else f" ± {cell['spread']:.{digits}f}")
    return text if cell["n"] == runs else f"{text} ({cell['n']})"


def _panels(paper: str, found: Sequence[Sequence[Run]], names: Sequence[str]) -> dict[str, Any]:
    """The arguments of `viz.lines_plot` for the curves of the paper's stages: means over seeds, with their spread."""
    panels: dict[str, dict[str, list]] = {}
    axes: dict[str, str] = {}
    for group, name in zip(found, names, strict=True):
        stages = [s for s in group[0].config["stages"] if _module(group[0].config, s) in PAPERS[paper].methods]
        curves = [curve for run in group for curve in run.curves if curve.stage in stages]
        for key in dict.fromkeys(curve[:6] for curve in curves):
            same = [dict(curve.points) for curve in curves if curve[:6] == key]
            title = _panel(Curve(*key, ()))
            axes[title] = {LABELS: "labelled images", CED: "best landmarks, their mean error"}[key[5]]
            shared = sorted(set.intersection(*map(set, same)))
            of_all = [(x, table.statistics(points[x] for points in same)) for x in shared]
            label = f"{name}, {key[0]}" + ("" if key[1] == "test" else f", on {key[1]}")
            panels.setdefault(title, {})[label] = [(x, s["mean"], s["spread"]) for x, s in of_all]
    logarithmic = [title for title, x in axes.items() if x == "labelled images"]
    return {"panels": panels, "x": axes, "logarithmic": logarithmic}


def _panel(curve: Curve) -> str:
    """The title of the panel of a curve, its y axis."""
    over = "" if curve.kind == LABELS else ", best landmarks"
    landmarks = "" if curve.landmarks is None else f"K = {curve.landmarks}, "
    return f"{_AXES[curve.measure]}{over}\n{landmarks}{curve.protocol}"

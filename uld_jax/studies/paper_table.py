"""Finished runs in the table of a paper, beside the paper's own numbers: `uld table`.

The numbers of the papers, with their sources, are the tables of quotations in `studies/published/` (see
`studies.results`). A column of the table is a measure, a number of landmarks and the id of a protocol: a number stands
under that of a paper only if all three are equal, and in a column of its own otherwise. The protocol of some published
numbers is not known, and then no run stands in their column.

Files:

  table.md, table.json   the table
  figure.png             curves of the runs, if they have any: the error over the number of labelled images, and both
                         errors over the number of landmarks (`curves.ced_over_landmarks`), a panel for each protocol
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from uld_jax import files, viz
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.studies import paper_runs, results, table
from uld_jax.studies.paper_runs import CED, LABELS, Curve, LeftOut, Run

MEASURES = {  # titles of the columns
    "forward_nme": "forward, %",
    "backward_nme": "backward, %",
    "regression": "regression of all labels, %",
    "matching_same": "same, px",
    "matching_different": "another, px",
    "pck": "PCK at 0.1, %",
}
_AXES = {"forward": "forward NME, %", "backward": "backward NME, %", "regression": "regression error, %"}


class Row(NamedTuple):
    """A row of a paper that a stage of a run repeats.

    Attributes:
      table: table of quotations that has the row.
      name: labels of the row, separated by commas.
      stage: name of the stage.
      keys: keys of the stage's section and their values; True and False stand for a number that is above 0 or not.
    """

    table: str
    name: str
    stage: str
    keys: dict[str, Any]


class Paper(NamedTuple):
    """The tables of a paper.

    Attributes:
      tables: tables of quotations.
      methods: modules of the paper's stages. A run belongs to the paper if its last stage is one of them.
      rows: rows that runs may repeat.
    """

    tables: tuple[str, ...]
    methods: tuple[str, ...]
    rows: tuple[Row, ...]


_C3 = ("c3/published", "c3/published_ablation", "c3/published_alignment")
_ZEROSHOT = Row("zeroshot/published", "ZeroShot", "zeroshot", {})
PAPERS = {
    "imm": Paper(("imm/published",), ("imm",), (Row("imm/published", "IMM", "imm", {}),)),
    "cgb": Paper(
        ("cgb/published",),
        ("cgb",),
        (
            Row("cgb/published", "baseline", "cgb", {"bottleneck": "fixed"}),
            Row("cgb/published", "CGB", "cgb", {"bottleneck": "adaptive"}),
        ),
    ),
    "self_training": Paper(
        ("self_training/published",),
        ("self_training", "self_training_extended"),
        (Row("self_training/published", "self-training", "stage2", {"method": "self_training.Landmarks"}),),
    ),
    "zeroshot": Paper(("zeroshot/published",), ("zeroshot", "heatmap_detector"), (_ZEROSHOT,)),
    "duld": Paper(
        ("zeroshot/published", "duld/published"),
        ("zeroshot", "heatmap_detector", "duld"),
        (
            _ZEROSHOT,
            Row("duld/published", "D-ULD", "duld", {"train_clusters": 0}),
            Row("duld/published", "+ proxy", "proxy", {}),
            Row("duld/published", "+ full VAE", "duldpp", {"code_loss": "elbo"}),
            Row("duld/published", "D-ULD++", "duldpp", {"code_loss": "contrast"}),
            Row("duld/published", "Mallis et al. on these features", "duld", {"train_clusters": 100}),
        ),
    ),
    "c3": Paper(
        _C3,
        ("c3", "c3_pose"),
        (
            Row(_C3[0], "C3", "joint", {"losses.cycle": True, "losses.equivariance": True}),
            *(
                Row(
                    _C3[1],
                    f"{word[cycle]}, {word[flow]}",
                    "joint",
                    {"losses.cycle": cycle, "losses.equivariance": flow},
                )
                for word in ({True: "yes", False: "no"},)
                for cycle in (False, True)
                for flow in (False, True)
            ),
        ),
    ),
    "lead": Paper(
        ("lead/published",),
        ("lead", "lead_compact"),
        (
            Row("lead/published", "LEAD, hypercolumns", "byol", {}),
            Row("lead/published", "LEAD, 64 numbers", "compact", {}),
        ),
    ),
}


def write(
    paper: str, folder: str, out: str = "", say: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, Any], str]:
    """Write the table of a paper with the finished runs below a folder.

    Args:
      paper: name of the paper, a key of `PAPERS`.
      folder: folder of the runs.
      out: folder for the files; empty for `folder`.
      say: function that tells the user which runs are left out.

    Returns:
      The contents of `table.json` and of `table.md`.

    Raises:
      UserError: an unknown paper, no finished run of it, or an `out` that has another table or cannot be
        written to.
    """
    if paper not in PAPERS:
        raise UserError(f"--paper is {paper!r}; use one of {', '.join(PAPERS)}")
    root, target = epath.Path(folder), epath.Path(out or folder)
    if not root.is_dir():
        raise UserError(f"--runs={folder} is no folder; give one that holds finished runs, at any depth")
    files.check_writable(target, "out" if out else "runs", "out")
    _check_out(target, paper)
    every, left = paper_runs.find(root, lambda config: _elsewhere(config, paper))
    for one in left:
        say(f"left out: {one.name} {one.why}")
    if not every:
        some = f"; the first one, {left[0].name}, {left[0].why}" if left else ""
        raise UserError(f"--runs={folder} holds no finished run of --paper={paper}{some}")
    found = paper_runs.groups(every)
    record = _record(paper, found, paper_runs.names(found), left)
    panels = _panels(paper, found, paper_runs.names(found))
    record["files"] = ["table.md", "table.json", *(["figure.png"] if panels["panels"] else [])]
    markdown = _markdown(record)
    target.mkdir(parents=True, exist_ok=True)
    workdir_lib.write_json(target / "table.json", record)
    files.write(target / "table.md", markdown)
    (target / "figure.png").unlink(missing_ok=True)
    if panels["panels"]:
        viz.save(viz.lines_plot(**panels), target / "figure.png")
    return record, markdown


def _check_out(out: epath.Path, paper: str) -> None:
    """Raise UserError if the folder has another table, for example that of a sweep."""
    old = workdir_lib.read_json(out / "table.json") if (out / "table.json").exists() else {"paper": paper}
    if old.get("paper") != paper:
        what = f"of --paper={old['paper']}" if "paper" in old else "of something else, such as a sweep"
        raise UserError(f"{out} holds the table.json {what}; give another folder with --out=DIR")


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
    paper: str, found: Sequence[Sequence[Run]], names: Sequence[str], left: Sequence[LeftOut]
) -> dict[str, Any]:
    """The contents of `table.json`: columns, rows with cells, and runs that were left out."""
    columns: dict[tuple, dict[str, Any]] = {}
    published = {name: _published(name, columns) for name in PAPERS[paper].tables}
    measured = [row for group, name in zip(found, names, strict=True) for row in _measured(paper, group, name, columns)]
    rows, left_over = [], measured
    for row in (row for name in PAPERS[paper].tables for row in published[name]):
        place = row["table"], row.pop("key")
        of_row = [one for one in left_over if place in one["repeats"]]
        rows += [row, *(one | {"name": row["name"]} for one in of_row)]
        left_over = [one for one in left_over if one not in of_row]
    rows += left_over
    for row in rows:
        row.pop("repeats", None)
    kept = [{"name": one.name, "why": one.why} for one in left]
    return {"paper": paper, "columns": list(columns.values()), "rows": rows, "left_out": kept}


def _published(name: str, columns: dict[tuple, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table of quotations; their columns are added to `columns`."""
    quoted, rows = results.quoted(name), []
    for record in quoted["records"]:
        cells = []
        for column in quoted["columns"]:
            value = record["numbers"].get(column["keys"][0])
            if value is None:
                continue
            protocol = record["protocol"] or column["protocol"]
            at = _column(columns, column["measure"], column["landmarks"], protocol, column["data"])
            cells.append({"column": at, "protocol": protocol, "mean": value, "spread": None, "n": 1})
        labels = record["row"]
        if len(labels) > 1:
            labels = [f"{title} {label}" for title, label in zip(quoted["labels"], labels, strict=True)]
        row = {"name": ", ".join(labels), "of": "paper", "source": record["source"], "note": record["note"] or ""}
        rows.append(row | {"table": name, "key": ", ".join(record["row"]), "cells": cells})
    return rows


def _column(columns: dict[tuple, dict[str, Any]], measure: str, landmarks, protocol: str | None, data: str = "") -> int:
    """The number of a column, which is added if it is new."""
    key = measure, landmarks, protocol, *(() if protocol else (data,))
    if key not in columns:
        columns[key] = {"measure": measure, "landmarks": landmarks, "protocol": protocol, "data": data}
        columns[key]["published"] = bool(data)
    return list(columns).index(key)


def _measured(
    paper: str, group: Sequence[Run], name: str, columns: dict[tuple, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of runs that differ in their seed, one for each of the paper's stages and each data set."""
    rows, config = [], group[0].config
    for stage in config["stages"]:
        if _module(config, stage) not in PAPERS[paper].methods:
            continue
        for on in dict.fromkeys(n.on for run in group for n in run.numbers if n.stage == stage):
            numbers = [[n for n in run.numbers if (n.stage, n.on) == (stage, on)] for run in group]
            cells = []
            for key in dict.fromkeys(n[2:5] for some in numbers for n in some):
                values = {str(run.seed): n.value for run, some in zip(group, numbers) for n in some if n[2:5] == key}
                cell = {"column": _column(columns, *key), "protocol": key[2]} | table.statistics(values.values())
                cells.append(cell | {"by_seed": values})
            rows.append(
                {
                    "name": f"stage {stage}",
                    "of": "runs",
                    "config": name + ("" if on == "test" else f", on {on}"),
                    "stage": stage,
                    "runs": [run.name for run in group],
                    "seeds": [run.seed for run in group],
                    "cells": cells,
                    "repeats": [(r.table, r.name) for r in PAPERS[paper].rows if _repeats(config, stage, r)],
                }
            )
    return rows


def _repeats(config: dict[str, Any], stage: str, row: Row) -> bool:
    """Tell whether a stage of a run repeats a row of the paper."""
    if stage != row.stage:
        return False
    for key, wanted in row.keys.items():
        value = config[stage]
        for part in key.split("."):
            value = value[part]
        if (value > 0 if isinstance(wanted, bool) else value) != wanted:
            return False
    return True


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
        numbers = [_number(cells.get(i), len(row["seeds"]) if ours else 1) for i in range(len(record["columns"]))]
        lines.append(table.piped([*head, *numbers]))
    notes = [f"{row['name']}: {row['note']}" for row in record["rows"] if row.get("note")]
    caption = (
        "Numbers of runs: mean ± sample standard deviation over seeds. Numbers of different columns may not be "
        "compared: another id is another protocol or other data."
    )
    left = [f"* `{one['name']}` {one['why']}" for one in record["left_out"]]
    return table.page(lines, " ".join([caption, *notes, *_told(record)]), left)


def _told(record: dict[str, Any]) -> list[str]:
    """Say that no run stands under a published number, if it is so."""
    both = [i for i, column in enumerate(record["columns"]) if column["published"] and column["protocol"]]
    used = {cell["column"] for row in record["rows"] if row["of"] == "runs" for cell in row["cells"]}
    if used & set(both):
        return []
    return ["No run was measured as the paper's numbers were: its data, K or protocol differ."]


def _title(column: dict[str, Any]) -> str:
    landmarks = "" if column["landmarks"] is None else f"K = {column['landmarks']}"
    unknown = "the protocol is not recorded" if column["data"] else ""
    protocol = f"`{column['protocol']}`" if column["protocol"] else unknown
    return "; ".join(filter(None, (MEASURES[column["measure"]], landmarks, column["data"], protocol)))


def _number(cell: dict[str, Any] | None, runs: int) -> str:
    """Format a cell, with the number of runs in brackets if some lack the number."""
    if cell is None:
        return ""
    text = f"{cell['mean']:.2f}" + ("" if cell["spread"] is None else f" ± {cell['spread']:.2f}")
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

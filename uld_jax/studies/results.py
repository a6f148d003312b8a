"""Measured numbers: records in `results/`, and the tables of README.md and docs/ that are made from them.

`results/<paper>/<table>.json` holds a table: the titles of its columns and its records, one for each cell. A record
gives the command, the machine and the numbers of a run (`FIELDS`). A record without command, commit and device is
refused. Two kinds are exempt: `history`, numbers older than the records, which name the commit of README.md that wrote
them down; and quotations, whose `source` names the paper and its table. Tables of quotations,
`<paper>/published*`, lie in the package, in `uld_jax/studies/published/`, because `uld table` reads them where there is
no `results/`. Their columns also say what a number is, for `studies.paper_table`: `measure`, `landmarks` (K, or null
if it does not matter), `data`, `protocol`, the id under which the paper measured or null if it is not known, and
`part`, if a measure has several numbers. A record's own `protocol` goes before that of its column; it is empty for
numbers whose protocol is not known. The note of a record says why a protocol is not known.

A Markdown file takes a table between two markers, or one number inside a sentence:

    <!-- results: duld/ytf_faces -->
    <!-- /results -->
    <!-- results: duld/ytf_faces | D-ULD++ | forward --><!-- /results -->

The registry of protocols (`evaluation/protocols.py`) is a table between `<!-- protocols -->` and `<!-- /protocols -->`,
the official data sets (`data/builders`) are one between `<!-- datasets -->` and `<!-- /datasets -->`, and the tables of
the papers (`studies/paper_rows.py`) are one between `<!-- tables -->` and `<!-- /tables -->`.

`python -m uld_jax.studies.results` (`make results`) fills them in; `--check` only lists the files that would change.
`--add=RUN --table=duld/ytf_faces --row=D-ULD --command="uld train ..."` adds the record of a finished run.
"""

import argparse
import datetime
import json
import math
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from uld_jax import files
from uld_jax.data import builders
from uld_jax.errors import UserError
from uld_jax.evaluation import protocols
from uld_jax.studies import paper_rows

# The fields of a record and their meanings. All are required; None stands for an unknown value.
FIELDS = {
    "row": "list of texts, one for each of the table's labels",
    "config": "config file and arguments, as --config takes them",
    "overrides": "list of KEY=VALUE, as --config.KEY=VALUE takes them",
    "seed": "the run's seed, or a list of seeds if the numbers are means over these",
    "command": "the whole command",
    "commit": "commit of the code that was run",
    "recorded_in": "history: the commit that wrote the numbers down",
    "date": "YYYY-MM-DD",
    "device": "what computed",
    "busy": "whether other programs ran on the machine at the same time",
    "minutes": "duration, evaluations and compilation included",
    "numbers": "name -> number or list of numbers; NAME_std is the standard deviation of NAME over seeds",
    "digits": "decimals of the numbers, where these have fewer than the table's columns",
    "protocol": "id of the protocol of the errors",
    "source": "quotations: the paper and its table",
    "history": "whether the record is from before there were records",
    "note": "what else a reader must know",
}
NEEDED = ("command", "commit", "device", "date", "busy")
UNKNOWN = "The commit that was run was not written down."  # the note of history without a commit
ERRORS = ("forward", "backward")  # numbers that have no meaning without a protocol
QUOTED = pathlib.Path("uld_jax", "studies", "published")  # folder of the tables of quotations, in the working tree
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_MARKED = re.compile(r"<!-- results: (?P<name>[^>]*?) -->(?P<body>.*?)<!-- /results -->", re.DOTALL)

_LISTS = {  # tables that are made from the code
    "protocols": protocols.markdown,
    "datasets": builders.markdown,
    "tables": lambda: paper_rows.markdown(quoted),
}
_LISTED = re.compile(rf"<!-- (?P<name>{'|'.join(_LISTS)}) -->.*?<!-- /(?P=name) -->", re.DOTALL)

Record = dict[str, Any]
Table = dict[str, Any]


def read(name: str, root=".") -> Table:
    """Read and check the table `PAPER/TABLE` of `root/results`, or of quotations.

    Raises UserError when there is no such table, or when one of its records is refused.
    """
    return _read(_path(name, root), name)


def quoted(name: str) -> Table:
    """Read and check the table of quotations `PAPER/TABLE` that ships with the package. Raises UserError as `read`."""
    return _read(pathlib.Path(__file__).parent / QUOTED.name / f"{name}.json", name)


def _path(name: str, root) -> pathlib.Path:
    """Return the file of a table, there or not."""
    quotations = pathlib.Path(root, QUOTED, f"{name}.json")
    return quotations if quotations.is_file() else pathlib.Path(root, "results", f"{name}.json")


def _read(path: pathlib.Path, name: str) -> Table:
    """Read and check a file of a table. Raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no table {name!r}: {path} is missing")
    try:
        table = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    check(table, name)
    return table


def names(root=".") -> list[str]:
    """List the names of all tables, those of quotations too."""
    folders = pathlib.Path(root, "results"), pathlib.Path(root, QUOTED)
    return sorted(path.relative_to(at).with_suffix("").as_posix() for at in folders for path in at.rglob("*.json"))


def check(table: Table, name: str) -> None:
    """Check a table and its records. Raises UserError, naming table, row and field, for the first error."""
    if not isinstance(table.get("labels"), list) or not table.get("columns"):
        raise UserError(f"results/{name}.json needs `labels` and `columns`")
    if "rows" in table:  # the table collects numbers of other tables
        return
    cells = set()
    for record in table.get("records", []):
        check_record(record, f"results/{name}.json, row {record.get('row')}")
        if len(record["row"]) != len(table["labels"]):
            raise UserError(f"results/{name}.json: row {record['row']} needs {len(table['labels'])} labels")
        cell = json.dumps([record["row"], record["seed"]])
        if cell in cells:
            raise UserError(f"results/{name}.json has two records for row {record['row']}, seed {record['seed']}")
        cells.add(cell)
    for column in table["columns"] if cells else ():  # a new table has no records yet
        if not any(_cell(record, column) for record in table["records"]):
            raise UserError(f"results/{name}.json: no record has {' or '.join(column['keys'])}")


def check_record(record: Record, where: str) -> None:
    """Raise UserError for a record that lacks a field or value that its kind requires; `where` begins the message."""
    if wrong := sorted(set(FIELDS) ^ set(record)):
        what = "lacks" if wrong[0] in FIELDS else "has an unknown"
        raise UserError(f"{where} {what} field {wrong[0]!r}; the fields are {', '.join(FIELDS)}")
    if not record["numbers"] and record["minutes"] is None:
        raise UserError(f"{where} has no numbers")
    for key, value in record["numbers"].items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one):
                raise UserError(f"{where}: {key} is {one!r}, which is not a number")
    for key in ("commit", "recorded_in"):
        if record[key] is not None and not _COMMIT.fullmatch(record[key]):
            raise UserError(f"{where}: {key} is {record[key]!r}; give 7 to 40 hexadecimal digits")
    if record["source"]:
        return
    if record["history"]:
        if not record["recorded_in"]:
            raise UserError(f"{where} is history and lacks recorded_in, the commit that wrote its numbers down")
        if not record["commit"] and not record["note"]:
            raise UserError(f"{where} is history without a commit; say in its note what is known instead")
        return
    for key in NEEDED:
        if record[key] in (None, ""):
            raise UserError(f"{where} lacks {key}; a number without {', '.join(NEEDED)} cannot enter")
    if not record["protocol"] and set(ERRORS) & set(record["numbers"]):
        raise UserError(f"{where} has errors without a protocol")


def record_of(
    workdir, row: Sequence[str], command: str, *, busy: bool, stage: str = "", split="test", commit="", note=""
) -> Record:
    """Make the record of a finished run.

    Args:
      workdir: folder of the run.
      row: labels of the record in its table.
      command: command that trained the run; `config` and `overrides` are read from it.
      busy: True if other programs ran on the machine at the same time.
      stage: name of an earlier stage, which `uld evaluate --stage=NAME` has measured; the last stage by default.
      split: name of the split that was measured.
      commit: commit of the library; by default that of the working tree, which then must have no changes.
      note: other facts that a reader must know.

    Raises:
      UserError: the folder lacks a file, or the record is refused.
    """
    folder = pathlib.Path(workdir)
    config, run = (_json(folder / name) for name in ("config.json", "run.json"))
    report = _json(folder / "eval" / split / stage / "metrics.json")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line.strip()]
    lines = [line for line in lines if "seconds" in line and (not stage or _until(line, stage, config))]
    words = shlex.split(command)
    specs = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    devices = run["devices"]
    named = {"forward": "forward_nme", "backward": "backward_nme", "stability": "stability_px"}
    named |= {"carried": "px", "moved": "same_place_px"}  # of `evaluation.carried.Carried`
    measured = report | (report.get("carried") or {})
    record = dict.fromkeys(FIELDS) | {
        "row": list(row),
        "config": specs[0] if specs else None,
        "overrides": [word.removeprefix("--config.") for word in words if word.startswith("--config.")],
        "seed": config["seed"],
        "command": command,
        "commit": commit or _commit(),
        "date": datetime.date.fromtimestamp(lines[-1]["time"]).isoformat() if lines else None,
        "device": f"{devices['count']} x {devices['kind']}",
        "busy": busy,
        "minutes": round(lines[-1]["seconds"] / 60, 1) if lines else None,
        "numbers": {key: measured[name] for key, name in named.items() if measured.get(name) is not None},
        "protocol": report.get("protocol"),
        "history": False,
        "note": note,
    }
    check_record(record, str(folder))
    return record


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing; give a finished run that `uld evaluate` has measured")
    return json.loads(path.read_text())


def _until(line: dict[str, Any], stage: str, config: dict[str, Any]) -> bool:
    """Tell whether a line of metrics.jsonl belongs to `stage` or an earlier stage."""
    stages = list(config["stages"])
    return line.get("stage") in stages[: stages.index(stage) + 1]


def _commit() -> str:
    """Return the commit of the working tree. Raises UserError if there is none, or if the tree has changes."""
    commands = (["git", "status", "--porcelain", "--untracked-files=no"], ["git", "rev-parse", "--short", "HEAD"])
    changed, commit = (subprocess.run(one, capture_output=True, text=True, check=False) for one in commands)
    if commit.returncode or changed.stdout.strip():
        raise UserError("the code is no commit: commit the changes of the working tree, or give --commit")
    return commit.stdout.strip()


def add(name: str, record: Record, root=".") -> None:
    """Add a record to a table, replacing one of the same row and seed. Raises UserError if the record is refused."""
    table = read(name, root)
    same = [record["row"], record["seed"]]
    kept = [old for old in table["records"] if [old["row"], old["seed"]] != same]
    table["records"] = [*kept, record]
    check(table, name)
    write(name, table, root)


def write(name: str, table: Table, root=".") -> None:
    """Write a table in the format of `read`."""
    files.write(_path(name, root), json.dumps(table, indent=1, ensure_ascii=False) + "\n")


def markdown(name: str, root=".") -> str:
    """Format a table in Markdown, with the origin of its numbers below."""
    table = read(name, root)
    titles = [*table["labels"], *(column["title"] for column in table["columns"]), *table.get("after", [])]
    lines = [_line(titles), "|" + "---|" * len(titles)]
    if "rows" in table:
        return "\n".join([*lines, *(_line(_view(row, root)) for row in table["rows"])])
    rows = []
    for record in table["records"]:
        if record["row"] not in rows:
            rows.append(record["row"])
    for row in rows:
        cells = list(row)
        for column in table["columns"]:
            found = [_cell(one, column) for one in table["records"] if one["row"] == row]
            cells.append(" ".join(filter(None, found)))
        lines.append(_line(_bold(cells, row, table)))
    return "\n".join([*lines, "", *_provenance(table["records"])])


def number(name: str, row: str, keys: Sequence[str], root=".") -> str:
    """Format numbers of one record, separated by slashes; `row` holds the record's labels, separated by commas.

    Of records of several seeds the means are formatted. Raises UserError if no record has the numbers, or records of
    one seed.
    """
    table = read(name, root)
    digits = {column["keys"][0]: column.get("digits") for column in reversed(table["columns"]) if column["keys"]}
    column = {"keys": list(keys), "digits": digits.get(keys[0])}
    found = [record for record in table["records"] if _label(record) == row and _cell(record, column)]
    if not found or len({str(record["seed"]) for record in found}) < len(found):
        raise UserError(f"results/{name}.json has {len(found)} records of row {row!r} with {', '.join(keys)}")
    if len(found) == 1:
        return _cell(found[0], column)
    means = {key: sum(record["numbers"][key] for record in found) / len(found) for key in keys if key != "minutes"}
    return _cell(found[0] | {"numbers": found[0]["numbers"] | means}, column)


def _view(row: dict[str, Any], root) -> list[str]:
    """Format a row that takes its numbers from other tables; a cell without a number is a dash."""
    taken = [number(cell["table"], cell["row"], cell["keys"], root) if cell else "–" for cell in row["cells"]]
    return [*row["row"], *taken, *row.get("after", [])]


def _cell(record: Record, column: dict[str, Any]) -> str:
    """Format a record's numbers in a column; an empty string if there are none."""
    if any(record[key] != value for key, value in column.get("where", {}).items()):
        return ""
    known = {"minutes": record["minutes"]} | record["numbers"]
    if record["digits"] is not None:
        column = column | {"digits": record["digits"]}
    texts = []
    for key in column["keys"]:
        value = known.get(key)
        if value is None:
            continue
        text = ", ".join(_text(one, column) for one in (value if isinstance(value, list) else [value]))
        spread = known.get(f"{key}_std")
        texts.append(text if spread is None else f"{text} ± {_text(spread, column)}")
    return column.get("join", " / ").join(texts)


def _text(value: float, column: dict[str, Any]) -> str:
    digits = column.get("digits")
    return (f"{value:,}" if abs(value) >= 10_000 else str(value)) if digits is None else f"{value:.{digits}f}"


def _bold(cells: list[str], row: list[str], table: Table) -> list[str]:
    """Set cells of a row in bold that are the best of a column with `best` (min or max)."""
    for i, column in enumerate(table["columns"], len(row)):
        values = {tuple(r["row"]): r["numbers"].get(column["keys"][0]) for r in table["records"] if _cell(r, column)}
        measured = [value for value in values.values() if value is not None]
        if "best" in column and values.get(tuple(row)) == {"min": min, "max": max}[column["best"]](measured):
            cells[i] = f"**{cells[i]}**"
    return cells


def _provenance(records: Sequence[Record]) -> list[str]:
    """List machine, day and commit of the rows, one line for each origin; the most common is for "other rows"."""
    groups: dict[str, list[str]] = {}
    for record in records:
        rows = groups.setdefault(_origin(record), [])
        if _label(record) not in rows:
            rows.append(_label(record))
    most = max(groups, key=lambda origin: len(groups[origin]))
    lines = []
    for origin, rows in groups.items():
        if len(groups) > 1 and origin != most:
            lines.append(f"- {'; '.join(row or 'the first row' for row in rows)}: {origin}")
    return [*lines, f"- {'Other rows: ' if lines else ''}{most}"]


def _origin(record: Record) -> str:
    if record["source"]:
        return ". ".join(filter(None, (f"{record['source']}.", record["note"]))).replace("..", ".")
    state = {True: ", busy with other work", False: ", idle", None: ""}[record["busy"]]
    commit = f"commit {record['commit']}" if record["commit"] else f"recorded in {record['recorded_in']}"
    seeds = record["seed"]
    if isinstance(seeds, list):
        seeds = f"seeds {', '.join(map(str, seeds))}"
    elif seeds is not None:
        seeds = f"seed {seeds}"
    protocol = f"protocol `{record['protocol']}`" if record["protocol"] else None
    device = record["device"] and record["device"] + state
    parts = (device, record["date"], commit, seeds, protocol)
    note = (record["note"] or "").replace(UNKNOWN, "").strip()
    return "; ".join(filter(None, parts)) + "." + (f" {note}" if note else "")


def _label(record: Record) -> str:
    return ", ".join(filter(None, record["row"]))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def filled(text: str, root=".") -> str:
    """Fill all marked tables and numbers of a Markdown text, from the tables of `root` and from the code."""

    def fill(match: re.Match) -> str:
        name, *where = (part.strip() for part in match["name"].split("|"))
        body = f"\n{markdown(name, root)}\n" if not where else number(name, where[0], where[1:], root)
        return f"<!-- results: {match['name']} -->{body}<!-- /results -->"

    def listed(match: re.Match) -> str:
        name = match["name"]
        return f"<!-- {name} -->\n{_LISTS[name]()}\n<!-- /{name} -->"

    return _LISTED.sub(listed, _MARKED.sub(fill, text))


def pages(root=".") -> list[pathlib.Path]:
    """List the Markdown files that may hold tables."""
    root = pathlib.Path(root)
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def update(root=".", write_files: bool = True) -> list[pathlib.Path]:
    """Fill in all pages; return those that changed, or without `write_files` those that would change."""
    for name in names(root):
        read(name, root)
    changed = []
    for page in pages(root):
        text = page.read_text()
        new = filled(text, root)
        if new != text:
            changed.append(page)
            if write_files:
                files.write(page, new)
    return changed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 1 for bad input, or if with `--check` a page would change."""
    parser = argparse.ArgumentParser(prog="python -m uld_jax.studies.results", description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=".", help="folder of README.md, docs/ and results/")
    parser.add_argument("--check", action="store_true", help="write nothing, and end with 1 if something would change")
    parser.add_argument("--add", metavar="RUN", help="folder of a finished run, whose record is added to --table")
    parser.add_argument("--table", help="PAPER/TABLE of --add")
    parser.add_argument("--row", action="append", default=[], help="label of the record; again for the next label")
    parser.add_argument("--command", default="", help="what trained the run")
    parser.add_argument("--commit", default="", help="commit of its code; by default that of the working tree")
    parser.add_argument("--stage", default="", help="an earlier stage of the run")
    parser.add_argument("--busy", action="store_true", help="other programs ran on the machine at the same time")
    parser.add_argument("--note", default="", help="what else a reader must know")
    args = parser.parse_args(argv)
    try:
        if args.add:
            if not args.table:
                raise UserError("--add needs --table=PAPER/TABLE")
            options = dict(busy=args.busy, stage=args.stage, commit=args.commit, note=args.note)
            add(args.table, record_of(args.add, args.row, args.command, **options), args.root)
        changed = update(args.root, write_files=not args.check)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    for page in changed:
        print(f"{'would change' if args.check else 'written'}: {page}")
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The page of a run as a file: data and small photos put into the HTML, or photos in sheets beside it."""

import base64
import hashlib
import importlib.resources
import io
import json
import os
import re
import urllib.parse
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from uld_jax import files, viz
from uld_jax.errors import UserError
from uld_jax.studies.page.gather import Gathered, Shown, numeric
from uld_jax.version import __version__

SIDE = 160  # px, most that a small photo has
_ACROSS = 8  # small photos in a row of a sheet, and rows in a sheet
_QUALITY = 82
_FINE = 16  # coordinates are kept in 16ths of a pixel of the frame
_ABSENT = -32768


def write(gathered: Gathered, out, *, link: bool = False, names: tuple[str, ...] = ()) -> list[epath.Path]:
    """Write the page.

    Args:
      gathered: what it shows.
      out: the file, `....html`, local or gs://.
      link: False puts the photos into the file; True into sheets in the folder `NAME_files` beside it, which the page
        loads when they are looked at.
      names: names of the first run's landmarks; () for none.

    Returns:
      The files written; sheets of an earlier page that are not needed any more are removed.

    Raises:
      UserError: `out` is not called `.html`, or its folder cannot be written to.
    """
    out = epath.Path(out)
    check_out(out)
    beside, earlier = out.parent / f"{out.stem}_files", _sheets_of(out)
    written, addresses = [], []
    for number, sheet in enumerate(_sheets(gathered)):
        if not link:
            addresses.append("data:image/jpeg;base64," + base64.b64encode(sheet).decode())
            continue
        path = beside / f"photos_{number:03d}.jpg"
        files.write(path, sheet)
        written.append(path)
        addresses.append(f"{urllib.parse.quote(beside.name)}/{path.name}")
    files.write(out, page(gathered, addresses, names))
    # Only what the page of before named is removed, because others make folders of this name, too.
    for name in earlier - {path.name for path in written}:
        (beside / name).unlink(missing_ok=True)
    if earlier and beside.is_dir() and not any(beside.iterdir()):
        beside.rmdir()
    return [out, *written]


def check_out(out) -> None:
    """Raise UserError unless `out` is called as a page and its folder can be written to."""
    out = epath.Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out={out} is no page; give a name that ends in .html")
    files.check_writable(out.parent, "out")


def _sheets_of(out) -> set[str]:
    """Names of the sheets beside a page that was written earlier; none where there is no such page."""
    try:
        text = out.read_bytes().decode("utf-8", "replace")
    except OSError:
        return set()
    return set(re.findall(r'_files/(photos_\d{3,}\.jpg)"', text))


def page(gathered: Gathered, addresses: list[str], names: tuple[str, ...] = ()) -> str:
    """Make the HTML of the page; `addresses` are those of the sheets of small photos."""
    assets = importlib.resources.files("uld_jax.studies.page")
    text = assets.joinpath("page.html").read_text("utf-8")
    # What ends a script, or begins a comment in one, is written as JSON escapes.
    data = json.dumps(_data(gathered, addresses, names), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"/*STYLE*/": assets.joinpath("page.css").read_text("utf-8"), "/*DATA*/": data}
    parts["/*SCRIPT*/"] = assets.joinpath("page.js").read_text("utf-8")
    return "".join(parts.get(piece, piece) for piece in re.split(r"(/\*[A-Z]+\*/)", text))


def _data(gathered: Gathered, addresses: list[str], names: tuple[str, ...]) -> dict[str, Any]:
    source, rows = gathered.source, gathered.rows
    columns = {
        name: _column(cells)
        for name, cells in gathered.columns.items()
        if any(str(cell).strip() for cell in cells if cell is not None)
    }
    shown = json.dumps([[source.names[row] for row in rows], *((r.name, r.stage) for r in gathered.runs)])
    points = b"".join(np.ascontiguousarray(run.xy).tobytes() for run in gathered.runs)
    most = max(run.xy.shape[1] for run in gathered.runs)
    return {
        "id": hashlib.sha256(shown.encode("utf-8", "surrogateescape") + points).hexdigest()[:16],
        "version": __version__,
        "split": _split_of(gathered),
        "photos": [files.printable(source.names[row]) for row in rows],
        "of": len(source),
        "frame": source.frame_size,
        "maps": np.round(source.frame_maps[rows], 6).tolist(),
        "sizes": source.file_sizes[rows].tolist(),
        "sheets": {"side": _side(source.frame_size), "across": _ACROSS, "addresses": addresses},
        "fine": _FINE,
        "absent": _ABSENT,
        "colours": ["#" + bytes(colour).hex() for colour in viz.palette(most)],
        "columns": columns,
        "names": list(names),
        "runs": [_run(run) for run in gathered.runs],
    }


def _run(run: Shown) -> dict[str, Any]:
    there = run.score > 0
    xy = np.clip(np.round(run.xy * _FINE), _ABSENT + 1, 32767)
    # Ranks would hide how scores are spread; a share of the highest fits a byte.
    score = np.round(255 * run.score / max(float(run.score.max(initial=0)), 1e-9))
    moved = np.where(np.isfinite(run.moved), np.clip(np.round(run.moved * _FINE), 0, 32767), _ABSENT)
    return {
        "name": run.name,
        "stage": run.stage,
        "k": run.xy.shape[1],
        "xy": _packed(np.where(there[..., None], xy, _ABSENT), np.int16),
        "score": _packed(np.where(there, np.maximum(score, 1), 0), np.uint8),
        "moved": _packed(moved, np.int16),
        "errors": None if run.errors is None else [_cell(float(e)) if np.isfinite(e) else None for e in run.errors],
        "table": run.table,
        "numbers": run.numbers,
        "training": run.training,
        "ced": run.ced,
        "about": json.loads(json.dumps(run.about, default=str)),
    }


def _packed(values: np.ndarray, dtype) -> str:
    """Numbers as base64 of little-endian bytes."""
    return base64.b64encode(np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def _cell(value):
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return files.printable(value) if isinstance(value, str) else value


def _column(cells) -> dict[str, Any]:
    numbers = numeric(cells)
    return {"numeric": numbers, "cells": list(map(_number if numbers else _cell, cells))}


def _number(cell) -> float | None:
    return None if cell is None or not str(cell).strip() else _cell(float(cell))


def _split_of(gathered: Gathered) -> str:
    return str(gathered.runs[0].numbers.get("split") or "")


def _side(frame: int) -> int:
    return min(frame, SIDE)


def _sheets(gathered: Gathered):
    """Sheets of small photos, encoded as JPEG, in the order of the rows."""
    source, side, each = gathered.source, _side(gathered.source.frame_size), _ACROSS**2
    for start in range(0, len(gathered.rows), each):
        images = source.images(gathered.rows[start : start + each])
        high = -(-len(images) // _ACROSS)
        sheet = Image.new("RGB", (_ACROSS * side, high * side))
        for i, image in enumerate(images):
            small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
            sheet.paste(small, (i % _ACROSS * side, i // _ACROSS * side))
        data = io.BytesIO()
        sheet.save(data, "JPEG", quality=_QUALITY, optimize=True)
        yield data.getvalue()


def default_out(workdir) -> epath.Path:
    """Return the path of a run's page where no other is asked for."""
    return epath.Path(os.fspath(workdir)) / "report.html"

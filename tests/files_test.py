"""Whole files or none, and text that holds any name."""

import ast
import csv
import doctest
import io
import os

import pytest

from tests import tiny
from uld_jax import files


def test_doctests():
    assert doctest.testmod(files).attempted == 3
    assert doctest.testmod(files).failed == 0


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    files.write(path, "é\udce9\n")
    assert path.read_bytes() == b"\xc3\xa9\\xe9\n"
    files.write(path, b"second")

    def full(self, *_):
        raise OSError(28, "No space left on device")

    part = type(files.epath.Path(path))
    with monkeypatch.context() as patch:
        patch.setattr(part, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            files.write(path, b"third")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_folder_is_tried_before_work_starts(tmp_path, uld):
    files.check_writable(tmp_path / "a/b", "out")
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    (tmp_path / "file").write_text("x")
    bad = tmp_path / "file/out"
    for name, *words in (
        ("data_dir", "prepare", "--dataset=synthetic"),
        ("out", "evaluate", f"--predictions={tmp_path / 'none.csv'}", "--data_dir=/none"),
        ("out", "table", "--paper=imm", f"--runs={tmp_path}"),
    ):
        code, out, err = uld(*words, f"--{name}={bad}")
        assert (code, out) == (1, "")
        assert f"--{name}={bad} cannot be written to (not a directory); give another folder with --{name}=DIR" in err
    assert os.listdir(tmp_path) == ["file"]


def test_names_of_the_greatest_length(tmp_path):
    for name in ("a" * 251 + ".png", "é" * 125 + ".txt"):
        files.write(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    assert len(os.listdir(tmp_path)) == 2


def test_nothing_else_writes_files():
    """But for lines that are appended, and records of libraries."""
    package = tiny.ROOT / "uld_jax"
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or path == package / "files.py":
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            values = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
            opens = name == "open" and any(isinstance(v, str) and v[:1] in "wx" for v in values)
            wrong = opens or name in ("write_text", "write_bytes")
            assert not wrong, f"{path}, line {node.lineno}: use files.write"


NAMES = ["plain", "com,ma", 'quo"te', "new\nline", "re\rturn", "both\r\n", "-dash", " space ", "a;b\tc", "", "=1+1"]


def test_cells_of_any_kind_come_back():
    text = files.csv_text([[n, i] for i, n in enumerate(NAMES)])
    assert [r[0] for r in csv.reader(io.StringIO(text, newline=""), strict=True)] == NAMES


def test_rows_are_there_as_they_come(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    growing = files.GrowingCsv(path, ["file", "x"])
    growing.add([[name, 1] for name in NAMES])
    with open(growing.partial, newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["file", *NAMES]
    assert growing.partial.name == "rows.partial.csv"
    assert not path.exists()
    growing.add([["bad\udce9", 2]])
    growing.finish()
    assert path.read_text(encoding="utf-8").endswith("bad\\xe9,2\n")
    assert os.listdir(path.parent) == ["rows.csv"]

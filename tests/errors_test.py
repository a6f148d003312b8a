"""Sentences that name commands, flags and keys name those that there are."""

import ast
import doctest
import re
import subprocess

import pytest

from tests import tiny
from uld_jax import cli, errors
from uld_jax import config as config_lib
from uld_jax.cli.flags import Flags
from uld_jax.studies import results

PACKAGE = tiny.ROOT / "uld_jax"
NAME = r"[a-z][a-z_]*"


def test_doctests():
    assert doctest.testmod(errors).attempted == 2
    assert doctest.testmod(errors).failed == 0


@pytest.mark.parametrize(
    "value", ["plain", "my run", "it's", 'a"b$c`d\\e', "*?[1]", "-dash", "new\nline", "caf\udce9 'x\\y", "é ü"]
)
def test_a_command_is_understood_by_a_shell(value):
    said = errors.shell_command("show", out=value).replace("uld show", "printf %s", 1)
    assert said.encode("utf-8").isascii() or value == "é ü"
    assert "\n" not in said
    out = subprocess.run(["bash", "-c", said], capture_output=True, check=True).stdout
    assert out == f"--out={value}".encode("utf-8", "surrogateescape")


def flags_of(command: str) -> set[str]:
    flags = Flags()
    cli.COMMANDS[command].define(flags)
    config = {"config"} if cli.COMMANDS[command].overrides else set()
    return {name for name in flags.values if len(name) > 1} | config


ALL_FLAGS = set().union(*map(flags_of, cli.COMMANDS))


def sentences():
    """(file, text) of every string of the package but docstrings; what is filled in stands as `@`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inside = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                inside.add(id(node.value))
            elif isinstance(node, ast.JoinedStr):
                inside |= {id(part) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in inside:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "@" for p in node.values)
                yield path.relative_to(PACKAGE), "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.relative_to(PACKAGE), node.value


def calls(text: str):
    """(command, its flags) of every `uld COMMAND --flag ...` in a text."""
    for found in re.finditer(rf"\buld ({NAME})\b([^`\n]*(?:\\\n[^`\n]*)*)", text):
        if found[1] in cli.COMMANDS:
            yield found[1], set(re.findall(rf"--({NAME})", found[2]))


def test_flags_in_sentences_exist():
    for path, text in sentences():
        for name in re.findall(rf"--({NAME})\b", text):
            assert name in ALL_FLAGS | {"flags", "name"} | ELSEWHERE, f"{path}: --{name} in {text!r}"
        for command, names in calls(text):
            assert names <= flags_of(command), f"{path}: uld {command} has no {names - flags_of(command)}: {text!r}"


ELSEWHERE = {"upgrade", "porcelain", "short", "untracked"}  # of pip and git
ELSEWHERE |= {"root", "check", "add", "table", "row", "command", "commit", "busy", "note"}  # of studies/results.py
ELSEWHERE |= {"bias"}  # of IMM's published program


def test_commands_in_the_readme_and_the_docs_exist():
    text = "\n".join(page.read_text() for page in results.pages(tiny.ROOT))
    found = list(calls(text))
    assert len(found) > 15
    for command, names in found:
        assert names <= flags_of(command), f"uld {command} has no {names - flags_of(command)}"
    assert {command for command, _ in calls(cli.USAGE)} == set(cli.COMMANDS)


def test_keys_in_sentences_exist():
    """`data.x`, `eval.x` and `config.stage.x`."""
    config = {name: config_lib.load(f"{name}:dataset=folder,preset=tiny") for name in tiny.SHIPPED}
    keys = set().union(*(c.keys() for c in config.values()))
    for path, text in sentences():
        for top, key in re.findall(r"\b(data|eval)\.([a-z_]+)\b(?!\()", text):
            if path.parts[0] == "data" and top == "data" and key in {"builders", "mdb"}:
                continue
            assert all(key in c[top] for c in config.values()), f"{path}: {top}.{key} in {text!r}"
        for key in re.findall(rf"config\.({NAME})\b(?!\()", text):
            if key != "json":
                assert key in keys, f"{path}: config.{key} in {text!r}"

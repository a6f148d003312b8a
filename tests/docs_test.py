"""The pages: every command parses, every link leads somewhere, every public name of the API pages is documented."""

import ast
import contextlib
import io
import re
import shlex
import sys
import tomllib
from unittest import mock

import pytest

from tests import tiny
from uld_jax import cli
from uld_jax import config as config_lib
from uld_jax.cli.flags import Flags
from uld_jax.data import builders
from uld_jax.errors import UserError
from uld_jax.evaluation import protocols
from uld_jax.studies import grid as grid_lib
from uld_jax.studies import results

PAGES = [*results.pages(tiny.ROOT), tiny.ROOT / "CONTRIBUTING.md", tiny.ROOT / "CHANGELOG.md"]
API = sorted((tiny.ROOT / "docs" / "api").glob("*.md"))
PROGRAMS = ("uld", ".venv/bin/uld")
# Packages of which every module has a place on the API pages.
COMPLETE = ("clustering", "evaluation", "ops")


def commands(text):
    """The `uld` commands of the fenced blocks of a Markdown text, each a list of words without `uld`."""
    for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.split(" ")[0] in PROGRAMS:
                yield shlex.split(line, comments=True)[1:]


def parse(words):
    """Reads a command as the command line does, up to where it would begin to work. Raises UserError."""
    command, *arguments = words
    if command not in cli.COMMANDS:
        raise UserError(f"there is no command {command!r}")
    how, argv = cli.COMMANDS[command], ["uld", *arguments]
    with mock.patch.object(sys, "argv", argv):  # where the flags of a config look for its name
        flags = Flags()
        how.define(flags)
        values = flags.parse(argv, overrides=how.overrides, positional=how.positional)
    if command == "sweep":
        assert grid_lib.cells(values.config, values.grid, values.override)
    elif command == "figure":
        config = config_lib.load(values.config)
        with config.unlocked():
            config_lib.override(config, values.override)
        for grid in values.grid:
            grid_lib.parse_grid(grid)


EVERY = [(page, words) for page in PAGES for words in commands(page.read_text())]


@pytest.mark.parametrize(("page", "words"), EVERY, ids=[f"{p.stem}-{i}-{w[0]}" for i, (p, w) in enumerate(EVERY)])
def test_command_parses(page, words):
    with contextlib.redirect_stderr(io.StringIO()):
        parse(words)


def test_wrong_commands_do_not_parse():
    good = "uld train --config=zeroshot:dataset=folder,preset=tiny --config.seed=3 --workdir=RUN"
    wrong = {
        good.replace("train", "learn"): "no command",
        good.replace("zeroshot", "nothing"): "no config",
        good.replace("preset", "size"): "not understood",
        good.replace("config.seed", "config.sede"): "sede",
        good.replace(" --workdir=RUN", ""): "workdir",
        good + " --k=3": "k",
        good + " photos": "photos",
        "uld sweep --config=zeroshot:preset=tiny --grid=detector.sede=1,2 --workdir=DIR": "sede",
    }
    text = "```\n" + "\n".join(wrong) + "\n```\n"
    for words, message in zip(commands(text), wrong.values(), strict=True):
        with pytest.raises(UserError, match=message):
            parse(words)
    broken = good.replace(" --workdir", " \\\n    --workdir")
    parse(next(commands(f"```\n{broken}    # a comment\n```\n")))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is missing"


def test_readme_is_short_and_its_picture_small():
    text = (tiny.ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 170
    pictures = re.findall(r"!\[.+\]\((.+)\)", text)
    assert len(pictures) == 1
    assert (tiny.ROOT / pictures[0]).stat().st_size < 200_000


def test_every_table_is_shown_on_a_page():
    text = "".join(page.read_text() for page in results.pages(tiny.ROOT))
    for name in results.names(tiny.ROOT):
        assert f"<!-- results: {name} " in text, f"no page shows results/{name}.json"


def test_every_method_has_a_page():
    pages = {page.stem for page in (tiny.ROOT / "docs" / "methods").glob("*.md")}
    assert pages == set(tiny.SHIPPED)


def documented():
    """The modules that the API pages show, with their files."""
    for page in API:
        for name in re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), re.MULTILINE):
            path = tiny.ROOT / name.replace(".", "/")
            yield name, path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


MODULES = dict(documented())


def undocumented(tree):
    """Public names without a docstring; of a method, a protocol in the same module may say what it does."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    functions = [one for node in classes if not node.bases for one in node.body]
    protocol = [one for node in classes if node.bases for one in node.body]
    said = {one.name for one in protocol if isinstance(one, ast.FunctionDef) and ast.get_docstring(one)}
    for node in [*tree.body, *functions]:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if public and not ast.get_docstring(node) and node.name not in said:
            yield node.name


@pytest.mark.parametrize("name", MODULES)
def test_public_names_of_the_api_pages_are_documented(name):
    path = MODULES[name]
    assert path.is_file(), f"docs/api shows {name}, which is gone; take it out or give its new name"
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{name} has no docstring"
    missing = list(undocumented(tree))
    assert not missing, f"{name}: write docstrings for {', '.join(missing)}"


def test_packages_are_complete_on_the_api_pages():
    for room in COMPLETE:
        for path in sorted((tiny.ROOT / "uld_jax" / room).rglob("*.py")):
            name = ".".join(path.relative_to(tiny.ROOT).with_suffix("").parts)
            assert path.stem == "__init__" or name in MODULES, f"add `.. automodule:: {name}` to docs/api/{room}.md"


def test_groups_of_packages_are_those_of_the_project():
    text = (tiny.ROOT / "docs/quickstart.md").read_text().partition("| group |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE))))
    assert named == set(tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_official_data_sets_are_prepared_before_they_are_read():
    """In the blocks of pages that prepare some; a user's own photos have no name of an official data set."""
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash)?\n.*?^```", page.read_text(), re.DOTALL | re.MULTILINE):
            prepared, read = set(), set()
            for command, *words in commands(block):
                text = " ".join(words)
                names = set(re.findall(r"dataset=(\w+)", text)) & set(builders.DATASETS)
                (prepared if command == "prepare" else read).update(names)
                assert not names or "--crop_objects" not in text, f"{page.name}: {names} is official in `{text}`"
            assert not prepared or read <= prepared, f"{page.name}: {read - prepared} are read, but not prepared"


def test_ids_of_protocols_on_the_pages_are_in_the_registry():
    text = (tiny.ROOT / "docs/evaluation.md").read_text()
    named = set(re.findall(r"`((?:mafl|aflw|ls3d|cat)_\d+_\w+)[`+]", text))
    assert len(named) > 10
    assert named <= set(protocols.BY_ID)

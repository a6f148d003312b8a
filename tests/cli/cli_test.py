"""What holds for every command: its usage, its flags, its file, and what it costs to be asked for help."""

import ast
import re

import pytest

from tests import tiny
from uld_jax import cli
from uld_jax.cli.flags import Flags

FOLDER = tiny.ROOT / "uld_jax/cli"
SHARED = {"__init__", "flags", "shared"}
MOST_LINES = 120
SLOW = {"jax", "flax", "orbax", "grain", "tensorflow_datasets", "matplotlib", "sklearn"}


def flags_of(name):
    flags = Flags()
    cli.COMMANDS[name].define(flags)
    return flags.values


def test_every_command_is_a_file_and_every_file_a_command():
    assert {path.stem for path in FOLDER.glob("*.py")} - SHARED == set(cli.COMMANDS)
    assert not set(cli.OLD_NAMES) & set(cli.COMMANDS)
    assert set(cli.OLD_NAMES.values()) <= set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_commands_file_is_short_and_tells_its_name(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(text)).startswith(f"`uld {name}`: ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_has_usage_lines_of_flags_that_it_has(name):
    command, flags = cli.COMMANDS[name], flags_of(name)
    named = re.findall(r"--([a-z_]+)", command.usage)
    assert named
    assert set(named) <= set(flags) | ({"config"} if command.overrides else set())
    assert {flag for flag in flags if flags[flag].default is None and flags[flag].flag_type() != "int"} <= set(named)
    assert f"  uld {name} " in cli.USAGE
    for line in command.usage.splitlines():
        assert line == line.strip()
        assert line in cli.USAGE
    assert max(map(len, cli.USAGE.splitlines())) <= 120


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_a_command_lists_its_flags(name, word, uld):
    code, out, err = uld(name, word)
    assert (code, err) == (0, "")
    assert out.startswith(cli.USAGE)
    listed = out.partition(f"\nflags of uld {name}:\n")[2]
    for flag in set(flags_of(name)) - {"h", "help"}:
        assert f"--{flag}: " in listed or f"--[no]{flag}: " in listed
    assert "--[no]help" in listed


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_commands_options_fit_its_flags(name):
    command, flags = cli.COMMANDS[name], flags_of(name)
    assert command.overrides == ("override" in flags)
    assert not command.positional or command.positional in flags
    assert not command.stops or command.interrupted


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_bad_flag_is_one_sentence(name, uld):
    code, out, err = uld(name, "--no_such_flag=1")
    assert (code, out) == (1, "")
    assert err == f"uld {name}: Unknown command line flag 'no_such_flag'\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "--workdir=", "--data_dir=x"), "uld fit: --workdir is empty; give a folder"),
        (("predict", "--workdir=w", "--images=", "--out=o"), "uld predict: --images is empty; give a folder"),
        (("convert", "--kind=k", "--src=s", "--dst="), "uld convert: --dst is empty; give a folder"),
        (("fit", "w", "--workdir=w", "--data_dir=x"), "uld fit: 'w' is not understood; flags are written --name=value"),
        (("fit", "--workdir=w"), "uld fit: flag --data_dir=None: Flag --data_dir must have a value other than None."),
    ],
)
def test_flags_that_cannot_be_are_refused(words, said, uld):
    assert uld(*words) == (1, "", f"{said}\n")


def test_no_command_or_an_unknown_one_shows_all(uld):
    for words in ((), ("help",), ("--help",), ("-h",)):
        assert uld(*words) == (0, f"{cli.USAGE}\n", "")
    assert uld("no_such_command") == (1, "", f"{cli.USAGE}\n")


def test_paths_may_start_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    flags = Flags()
    cli.COMMANDS["predict"].define(flags)
    args = flags.parse(["uld predict", "--workdir=~/w", "--out=o", "--images=a.jpg", "b.jpg"], positional="images")
    assert (args.workdir, args.out, args.images) == ("/home/somebody/w", "o", ["a.jpg", "b.jpg"])


def test_help_imports_nothing_slow():
    code = """
import sys
from uld_jax import __main__
sys.argv = ["uld", *sys.argv[1:]]
assert __main__.main() == 0
print(*{name.partition(".")[0] for name in sys.modules})
"""
    for words in (("--help",), *((name, "--help") for name in ("train", "evaluate", "predict"))):
        loaded = set(tiny.run("-c", code, *words).stdout.splitlines()[-1].split())
        assert "uld_jax" in loaded
        assert not loaded & SLOW, words


def test_the_old_name_of_figure_still_works(uld, monkeypatch):
    asked = []
    fake = lambda args: asked.append(args.flag_values_dict()) or print(args.figure) or 0
    monkeypatch.setitem(cli.COMMANDS, "figure", cli.COMMANDS["figure"]._replace(run=fake))
    words = ("--figure=2c", "--config=self_training:preset=tiny", "--workdir=w", "--config.seed=3")
    assert uld("figure", *words) == (0, "2c\n", "")
    assert uld("ablate", *words) == (0, "2c\n", "uld ablate: this command is now called `uld figure`\n")
    assert asked[0] == asked[1]
    assert asked[1]["override"] == ["seed=3"]
    code, _, err = uld("ablate", "--no_such_flag=1")
    assert code == 1
    assert err.splitlines()[1:] == ["uld figure: Unknown command line flag 'no_such_flag'"]
    code, out, err = uld("ablate", "--help")
    assert (code, len(err.splitlines())) == (0, 1)
    assert "flags of uld figure:" in out

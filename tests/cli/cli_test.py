"""What holds for every command: its usage, its flags, its file, and what it costs to be asked for help."""

import ast
import re

import pytest

from tests import tiny
from uld_jax import cli, predict
from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError

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
    assert err == f"uld {name}: there is no flag --no_such_flag; `uld {name} --help` lists the flags\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "--workdir=", "--data_dir=x"), "uld fit: --workdir is empty; give a folder"),
        (("predict", "--workdir=w", "--images=", "--out=o"), "uld predict: --images is empty; give a folder"),
        (("convert", "--kind=k", "--src=s", "--dst="), "uld convert: --dst is empty; give a folder"),
        (("fit", "w", "--workdir=w", "--data_dir=x"), "uld fit: 'w' is not understood; flags are written --name=value"),
        (("fit", "--workdir=w", "--data_dir"), "uld fit: --data_dir has no value; write --data_dir=VALUE"),
        (
            ("fit", "--workdir", "--data_dir=x"),
            "uld fit: --workdir has no value, as the next word is --data_dir=x; write",
        ),
        (
            ("fit", "--workdir=w"),
            "uld fit: --data_dir is missing; add --data_dir=LABELLED_PHOTOS (`uld fit --help` lists",
        ),
        (
            ("figure",),
            "uld figure: --figure and --workdir are missing; add --figure=2a|2b|2c|2d|2e --workdir=DIR (`uld ",
        ),
        (
            ("train", "--workdir=w"),
            "uld train: --config is missing; add --config=configs/zeroshot.py:dataset=folder,k=10",
        ),
        (
            ("train", "--config.seed=3", "--workdir=w"),
            "uld train: --config is missing; add --config=configs/zeroshot.py",
        ),
        (
            ("train", "zeroshot:k=3"),
            "uld train: 'zeroshot:k=3' is not understood; flags are written --name=value, here ",
        ),
        (
            ("train", "-config=nothing"),
            "uld train: --config=nothing: there is no config 'nothing'; use a path or one of ",
        ),
        (
            ("predict", "a.jpg"),
            "uld predict: --workdir and --out are missing; add --workdir=RUN --out=OUT (`uld predict",
        ),
        (
            ("fit", "--workdir=w", "--data-dir=x"),
            "uld fit: there is no flag --data-dir; did you mean --data_dir? `uld ",
        ),
        (
            ("train", "--confg.seed=3"),
            "uld train: there is no flag --confg.seed; did you mean --config.seed? `uld train ",
        ),
        (("fit", f"--workdir={__file__}", "--data_dir=x"), f"uld fit: --workdir={__file__} is a file; give a folder"),
        (("gcn", "--dst=w"), "uld gcn: GCN-V learns from labelled descriptors; give either --descriptors=FILE.npz or "),
    ],
)
def test_flags_that_cannot_be_are_refused(words, said, uld):
    code, out, err = uld(*words)
    assert (code, out) == (1, "")
    assert err.startswith(said)
    assert len(err.splitlines()) == 1


def test_no_command_shows_all(uld):
    for words in ((), ("help",), ("--help",), ("-h",)):
        assert uld(*words) == (0, f"{cli.USAGE}\n", "")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("no_such_command", "there is no command 'no_such_command'; `uld --help` lists the commands"),
        ("trian", "there is no command 'trian'; did you mean `uld train`? `uld --help` lists the commands"),
        ("Evaluate", "there is no command 'Evaluate'; did you mean `uld evaluate`? `uld --help` lists the commands"),
        (
            "--config=zeroshot",
            "the command is missing before --config=zeroshot, as in `uld train --config=zeroshot`; `uld",
        ),
    ],
)
def test_a_word_that_is_no_command_is_one_sentence(word, said, uld):
    code, out, err = uld(word)
    assert (code, out) == (1, "")
    assert err.startswith(f"uld: {said}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("steps", ["5", "5:", ":5", "5:3", "5:5", "-1:4", "a:b", "1:2:3"])
def test_a_range_of_steps_is_two_numbers(steps):
    with pytest.raises(
        UserError, match=rf"^--profile={steps} is no range of steps; give START:STOP, such as --profile="
    ):
        shared.pair(steps, "--profile")
    assert shared.pair("100:110", "--profile") == (100, 110)


def test_paths_may_start_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    flags = Flags()
    cli.COMMANDS["predict"].define(flags)
    args = flags.parse(["uld predict", "--workdir=~/w", "--out=o", "--images=a.jpg", "b.jpg"], positional="images")
    assert (args.workdir, args.out, args.images) == ("/home/somebody/w", "o", ["a.jpg", "b.jpg"])


def test_formats_of_predict_are_those_that_it_writes():
    """The flag has a list of its own, because that of the library would import JAX for the help."""
    assert tuple(flags_of("predict")["format"].parser.enum_values) == predict.FORMATS


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
    assert err.splitlines()[1:] == ["uld figure: there is no flag --no_such_flag; `uld figure --help` lists the flags"]
    code, out, err = uld("ablate", "--help")
    assert (code, len(err.splitlines())) == (0, 1)
    assert "flags of uld figure:" in out

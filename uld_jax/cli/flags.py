"""The flags of one command: their definition, and their reading from the command line."""

import difflib
import os
import re
from collections.abc import Sequence

from absl import flags

from uld_jax.errors import UserError


class Flags:
    """Definitions of the flags of a command, in `values`, with the flags of every command from the start.

    In all methods a default of None makes a flag required, except for numbers, for which None means no number.
    """

    def __init__(self):
        self.values = flags.FlagValues()
        self._required, self._paths, self._folders, self._argv = [], [], [], []
        self.switch("help", "Shows these flags.", short_name="h")
        self.text("coordinator", "", "HOST:PORT of process 0, for several processes.")
        self.number("num_processes", None, "How many processes there are.")
        self.number("process_id", None, "Number of this process.")

    def text(self, name: str, default: str | None, meaning: str) -> None:
        """Define a flag that takes any text."""
        flags.DEFINE_string(name, default, meaning, flag_values=self.values)
        self._required += [name] if default is None else []

    def path(self, name: str, default: str | None, meaning: str) -> None:
        """Define a flag that takes a path, in which `~` is expanded."""
        self.text(name, default, meaning)
        self._paths.append(name)

    def folder(self, name: str, meaning: str, required: bool = True) -> None:
        """Define a flag that takes the path of a folder; a required flag must not be empty."""
        self.path(name, None if required else "", meaning)
        self._folders.append(name)

    def number(self, name: str, default: int | None, meaning: str) -> None:
        """Define a flag that takes a whole number."""
        flags.DEFINE_integer(name, default, meaning, flag_values=self.values)

    def real(self, name: str, default: float, meaning: str) -> None:
        """Define a flag that takes any number."""
        flags.DEFINE_float(name, default, meaning, flag_values=self.values)

    def switch(self, name: str, meaning: str, **more) -> None:
        """Define a flag that is off unless it is given."""
        flags.DEFINE_bool(name, False, meaning, flag_values=self.values, **more)

    def choice(self, name: str, choices: Sequence[str], meaning: str) -> None:
        """Define a flag that takes one of several words; the first is the default."""
        flags.DEFINE_enum(name, choices[0], choices, meaning, flag_values=self.values)

    def words(self, name: str, meaning: str, required: bool = False) -> None:
        """Define a flag that takes a list, separated by commas; a required flag must not be empty."""
        flags.DEFINE_list(name, None if required else [], meaning, flag_values=self.values)
        self._required += [name] if required else []

    def repeated(self, name: str, meaning: str, required: bool = False) -> None:
        """Define a flag that may be given several times; a required flag must not be empty."""
        flags.DEFINE_multi_string(name, None if required else [], meaning, flag_values=self.values)
        self._required += [name] if required else []

    def config(self) -> None:
        """Define --config, which becomes a locked ConfigDict together with its --config.KEY=VALUE."""
        from ml_collections import config_flags

        # `parse` fills this list, because the words are known only then.
        config_flags.DEFINE_config_file("config", None, CONFIG, flag_values=self.values, sys_argv=self._argv)
        self._required.append("config")

    def override(self, meaning: str = "KEY=VALUE, the same as --config.KEY=VALUE.") -> None:
        """Define --override, which collects each --config.KEY=VALUE for a command with `Command.overrides`."""
        self.repeated("override", meaning)

    def workdir(self, required: bool = True) -> None:
        """Define --workdir, the folder of a run."""
        self.folder("workdir", "Folder of the run, local or gs://.", required)

    def stage(self) -> None:
        """Define --stage, a stage of a finished run."""
        self.text("stage", "", "Stage of the run; the last one by default.")

    def parse(
        self, argv: Sequence[str], usage: str = "", overrides: bool = False, positional: str = ""
    ) -> flags.FlagValues:
        """Parse the flags in `argv`, whose first word is the command.

        Args:
          argv: words of a command line.
          usage, overrides, positional: see `Command`.

        Raises:
          UserError: a flag is unknown, missing or wrong; the message is one sentence.
        """
        from uld_jax import config as config_lib

        command, *words = argv
        if overrides:
            words = [re.sub(r"^--?config\.", "--override=", word) for word in words]
        else:
            _resolve(words)
            words = config_lib.with_whole_keys(words)
        self._argv[:] = [command, *words]
        try:
            rest = self.values(self._argv)[1:]
        except flags.UnrecognizedFlagError as error:
            raise UserError(self._unknown(command, usage, error.flagname)) from error
        except config_lib.FLAG_ERRORS as error:
            if last := re.fullmatch(r"Missing value for flag -*(\S+)", str(error)):
                raise UserError(f"--{last[1]} has no value; write --{last[1]}=VALUE") from error
            raise config_lib.flag_error(error) from error
        if positional:
            self.values[positional].value = [*(self.values[positional].value or ()), *rest]
        elif rest:
            raise UserError(f"{rest[0]!r} is not understood; flags are written --name=value{self._such_as(rest[0])}")
        self._check(command, usage)
        for name in self._paths:
            if self.values[name].value is not None:
                self.values[name].value = os.path.expanduser(self.values[name].value)
        for name in self._folders:
            if os.path.isfile(self.values[name].value):
                raise UserError(f"--{name}={self.values[name].value} is a file; give a folder")
        return self.values

    def _check(self, command: str, usage: str) -> None:
        """Raise UserError for a flag that another flag stands in place of its value, or that is missing or empty."""
        given = {name: self.values[name].value for name in self.values}
        for name, value in given.items():
            if isinstance(value, str) and value.startswith("--"):
                raise UserError(f"--{name} has no value, as the next word is {value}; write --{name}=VALUE")
        if missing := [name for name in self._required if given[name] in (None, [])]:
            raise UserError(_missing(command, usage, missing))
        for name in self._required:
            if given[name] in ("", [""]):
                raise UserError(f"--{name} is empty; give {self._what(name)}")

    def _what(self, name: str) -> str:
        """Name what a required flag takes."""
        return "a folder" if name in (*self._folders, "images") else "a value"

    def _unknown(self, command: str, usage: str, name: str) -> str:
        """Say that there is no such flag."""
        head, dot, key = name.partition(".")
        if head == "config" and "config" in self.values:  # without --config no key of it is known
            return _missing(command, usage, ["config"])
        names = [one for one in self.values if len(one) > 1]
        near = difflib.get_close_matches(head, names, 1)
        meant = f"did you mean --{near[0]}{dot}{key}? " if near else ""
        return f"there is no flag --{name}; {meant}`{command} --help` lists the flags"

    def _such_as(self, word: str) -> str:
        """Give an example of a flag, if the word is a config and no config is given."""
        from uld_jax import config as config_lib

        if "config" not in self.values or self.values["config"].value:
            return ""
        try:
            config_lib.resolve(word)
        except UserError:
            return ""
        return f", here --config={word}"


def _missing(command: str, usage: str, names: Sequence[str]) -> str:
    """Say that flags are missing, with the words of the usage that have them."""
    words, names = usage.split(), sorted(names, key=lambda name: usage.find(f"--{name}="))
    named = [next((word for word in words if word.startswith(f"--{name}=")), f"--{name}=VALUE") for name in names]
    *others, last = (f"--{name}" for name in names)
    which = " and ".join(filter(None, [", ".join(others), last]))
    be = "are" if others else "is"
    return f"{which} {be} missing; add {' '.join(named)} (`{command} --help` lists all flags)"


CONFIG = "Config file or name, with :key=value,... after it."


def _resolve(argv: list[str]) -> None:
    """Replace the name of a config that ships with the package by its path."""
    from uld_jax import config as config_lib

    for i, arg in enumerate(argv):
        if arg.startswith(("--config=", "-config=")):
            argv[i] = "--config=" + config_lib.resolve(arg.partition("=")[2])
        elif arg in ("--config", "-config") and i + 1 < len(argv):
            argv[i + 1] = config_lib.resolve(argv[i + 1])

"""The flags of one command: their definition, and their reading from the command line."""

import os
from collections.abc import Sequence

from absl import flags

from uld_jax.errors import UserError


class Flags:
    """Definitions of the flags of a command, in `values`, with the flags of every command from the start.

    In all methods a default of None makes a flag required, except for numbers, for which None means no number.
    """

    def __init__(self):
        self.values = flags.FlagValues()
        self._paths, self._needed, self._argv = [], [], []
        self.switch("help", "Shows these flags.", short_name="h")
        self.text("coordinator", "", "HOST:PORT of process 0, for several processes.")
        self.number("num_processes", None, "How many processes there are.")
        self.number("process_id", None, "Number of this process.")

    def text(self, name: str, default: str | None, meaning: str) -> None:
        """Define a flag that takes any text."""
        flags.DEFINE_string(name, default, meaning, flag_values=self.values, required=default is None)

    def path(self, name: str, default: str | None, meaning: str) -> None:
        """Define a flag that takes a path, in which `~` is expanded."""
        self.text(name, default, meaning)
        self._paths.append(name)

    def folder(self, name: str, meaning: str) -> None:
        """Define a required flag that takes a non-empty path."""
        self.path(name, None, meaning)
        self._needed.append(name)

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

    def words(self, name: str, meaning: str) -> None:
        """Define a flag that takes a list, separated by commas."""
        flags.DEFINE_list(name, [], meaning, flag_values=self.values)

    def repeated(self, name: str, meaning: str, required: bool = False) -> None:
        """Define a flag that may be given several times; a required flag must not be empty."""
        flags.DEFINE_multi_string(name, None if required else [], meaning, flag_values=self.values, required=required)
        if required:
            self._needed.append(name)

    def config(self) -> None:
        """Define --config, which becomes a locked ConfigDict together with its --config.KEY=VALUE."""
        from ml_collections import config_flags

        # `parse` fills this list, because the words are known only then.
        config_flags.DEFINE_config_file("config", None, CONFIG, flag_values=self.values, sys_argv=self._argv)
        flags.mark_flag_as_required("config", flag_values=self.values)

    def override(self, meaning: str = "KEY=VALUE, the same as --config.KEY=VALUE.") -> None:
        """Define --override, which collects each --config.KEY=VALUE for a command with `Command.overrides`."""
        self.repeated("override", meaning)

    def workdir(self) -> None:
        """Define --workdir, the folder of a run."""
        self.folder("workdir", "Folder of the run, local or gs://.")

    def stage(self) -> None:
        """Define --stage, a stage of a finished run."""
        self.text("stage", "", "Stage of the run; the last one by default.")

    def parse(self, argv: Sequence[str], overrides: bool = False, positional: str = "") -> flags.FlagValues:
        """Parse the flags in `argv`, whose first word is the command.

        Args:
          argv: words of a command line.
          overrides, positional: see `Command`.

        Raises:
          UserError: a flag is unknown, missing or wrong; the message is one sentence.
        """
        from uld_jax import config as config_lib

        argv = list(argv)
        if overrides:
            argv = [arg.replace("--config.", "--override=", 1) if arg.startswith("--config.") else arg for arg in argv]
        else:
            _resolve(argv)
            argv = config_lib.with_whole_keys(argv)
        self._argv[:] = argv
        try:
            rest = self.values(argv)[1:]
        except config_lib.FLAG_ERRORS as error:
            raise config_lib.flag_error(error) from error
        if positional:
            self.values[positional].value = [*self.values[positional].value, *rest]
        elif rest:
            raise UserError(f"{rest[0]!r} is not understood; flags are written --name=value")
        for name in self._paths:
            if self.values[name].value is not None:
                self.values[name].value = os.path.expanduser(self.values[name].value)
        for name in self._needed:
            if not self.values[name].value or self.values[name].value == [""]:
                raise UserError(f"--{name} is empty; give a folder")
        return self.values


CONFIG = "Config file or name, with :key=value,... after it."


def _resolve(argv: list[str]) -> None:
    """Replace the name of a config that ships with the package by its path."""
    from uld_jax import config as config_lib

    for i, arg in enumerate(argv):
        if arg.startswith("--config="):
            argv[i] = "--config=" + config_lib.resolve(arg.partition("=")[2])
        elif arg == "--config" and i + 1 < len(argv):
            argv[i + 1] = config_lib.resolve(argv[i + 1])

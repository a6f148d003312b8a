"""The exception for mistakes that a user can mend, and shell commands quoted for use in messages."""

import re
import shlex


class UserError(ValueError):
    """Bad input: one sentence that names the file or field and the remedy.

    The command line prints it without a traceback and exits 1.
    """


def shell_command(name: str, **flags) -> str:
    """Write a command for the shell: `uld NAME --flag=value ...`, without flags whose value is empty.

    >>> shell_command("fit", workdir="my run", stage="", data_dir="PHOTOS")
    "uld fit --workdir='my run' --data_dir=PHOTOS"
    """
    return " ".join(["uld", name, *(flag(key, value) for key, value in flags.items() if str(value))])


def flag(key: str, value) -> str:
    r"""Write a flag `--key=value`, quoted where a shell needs it.

    >>> flag("config.data_dir", "it's"), print(flag("out", "caf\udce9"))
    --out=$'caf\xe9'
    ('--config.data_dir=\'it\'"\'"\'s\'', None)
    """
    return f"--{key}={quoted(str(value))}"


def quoted(text: str) -> str:
    """Quote a word of a shell command; line breaks and bytes that are not UTF-8 are escaped as in bash and zsh."""
    if not re.search(r"[\x00-\x1f\x7f\udc80-\udcff]", text):
        return shlex.quote(text)
    escaped = re.sub(r"(['\\])", r"\\\1", text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "$'" + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\x{ord(m[0]):02x}", escaped) + "'"

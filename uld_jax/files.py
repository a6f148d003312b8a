"""Files that are written whole or not at all, and text that every file can hold."""

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from uld_jax.errors import UserError, flag

_LONGEST = 255  # most bytes of a name on nearly all file systems


def printable(text: str) -> str:
    """Make text that any file and terminal can hold: bytes of file names that are not UTF-8 become `\\xNN`.

    >>> printable("caf\\udce9.jpg"), printable("café.jpg")
    ('caf\\\\xe9.jpg', 'café.jpg')
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    r"""Make text `printable`, and escape line breaks and other control characters.

    >>> one_line("new\nline.jpg")
    'new\\nline.jpg'
    """
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], printable(text))


def write(path, data: bytes | str) -> None:
    """Write a file under another name and rename it, so that it is never seen half written; make missing folders.

    Args:
      path: the file, local or gs://.
      data: content of the file; text is written as UTF-8, see `printable`.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        part.write_bytes(printable(data).encode() if isinstance(data, str) else data)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)  # the disk may be full
        raise


def check_writable(folder, name: str, other: str = "") -> None:
    """Check that files can be written below a local folder, which may be absent and is not left behind.

    Args:
      folder: the folder; one in a bucket is not checked.
      name: the flag that gave it, without dashes.
      other: the flag that gives another one, if it is not the same.

    Raises:
      UserError: it cannot be written to; names the flag.
    """
    if "://" in os.fspath(folder):
        return
    path = epath.Path(folder).expanduser()
    absent = []
    try:
        absent = [one for one in (path, *path.parents) if not one.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # rights alone do not tell: a system file system refuses its owner, too
            pass
    except OSError as error:
        raise UserError(
            f"{flag(name, folder)} cannot be written to ({(error.strerror or str(error)).lower()}); give another "
            f"folder with --{other or name}=DIR"
        ) from None
    finally:
        for one in absent:
            with contextlib.suppress(OSError):  # it was not made, or another process has put files into it
                one.rmdir()


def part_of(path) -> epath.Path:
    """Return the path of a file while it is being written; a name that would be too long becomes a hash."""
    path = epath.Path(path)
    name = os.fsencode(path.name)
    return path.parent / f"{path.name if len(name) + 5 <= _LONGEST else hashlib.sha256(name).hexdigest()[:32]}.part"


def is_about_the_name(error: OSError) -> bool:
    """Tell whether a file could not be written because of its name, so that another name may work."""
    if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
        return True
    return isinstance(
        error, FileExistsError | NotADirectoryError | IsADirectoryError
    )  # a folder, or a file in place of a folder, already has the name


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Write rows as csv text; `csv.reader` (with `newline=""`) returns every cell unchanged.

    >>> csv_text([["a,b", 1], ["c\rd", ""]])
    '"a,b",1\n"c\rd",\n'
    """
    out, line = io.StringIO(), io.StringIO()
    writer = csv.writer(line, lineterminator="\r\n")  # the writer quotes only the characters of its line end
    for row in rows:
        writer.writerow(row)
        out.write(line.getvalue()[:-2] + "\n")
        line.seek(0)
        line.truncate()
    return out.getvalue()


class GrowingCsv:
    """A csv that is written row by row as `NAME.partial.csv` and renamed when it is complete.

    A killed program leaves the rows written so far. Files in a bucket cannot be appended to, so there all rows are
    written at the end.

    Args:
      path: `.../NAME.csv`, local or gs://; missing folders are made.
      header: the first line.
    """

    def __init__(self, path, header: Sequence[Any]):
        self.path = epath.Path(path)
        self.partial = self.path.parent / f"{self.path.stem}.partial{self.path.suffix}"
        self._remote, self._text, self._file = "://" in str(path), [], None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._remote:
            self._file = open(self.partial, "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed by `finish`)
        self.add([header])

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows; they are in the file when this returns."""
        text = printable(csv_text(rows))
        if self._remote:
            self._text.append(text)
            return
        self._file.write(text)
        self._file.flush()

    def discard(self) -> None:
        """Remove the file, because its rows are kept elsewhere."""
        if self._file is not None:
            self._file.close()
        self.partial.unlink(missing_ok=True)

    def finish(self, rows: Iterable[Sequence[Any]] | None = None) -> None:
        """Give the file its final name; `rows`, if given, replace its content."""
        if self._file is not None:
            self._file.close()
        if rows is not None or self._remote:
            write(self.path, "".join(self._text) if rows is None else csv_text(rows))
            self.partial.unlink(missing_ok=True)
        else:
            self.partial.replace(self.path)

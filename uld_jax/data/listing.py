"""Selection of the pictures in a folder by their content, with a reason for every file that is skipped.

`PICTURES` names the picture formats; other formats are never handed to a decoder. Files that are obviously not meant as
pictures are ignored silently: hidden files, the thumbnails of file managers, csv tables, and the output of this package
(runs, output of `uld predict`, prepared data, caches of features). Every other file is listed with the reason.
"""

import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from etils import epath

from uld_jax import files
from uld_jax.errors import UserError

PICTURES = "JPEG, PNG, TIFF, WebP, BMP, GIF, PPM, AVIF or HEIC"

# Names that claim to be a picture: a bad file with such a name is an error. Other files are selected by their content.
_PICTURE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".webp", ".bmp",
    ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs", ".heic", ".heif", ".hif",
)  # fmt: skip
_VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mpe", ".wmv", ".asf",
    ".flv", ".3gp", ".3g2", ".mts", ".m2ts", ".ogv", ".vob", ".mxf",
)  # fmt: skip
# Most raw files are TIFF files whose first page is a thumbnail.
_RAW_ENDINGS = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25", ".kdc",
    ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2",
    ".srf", ".srw", ".x3f",
)  # fmt: skip
_IGNORED = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
_IGNORED_FOLDERS = ("__MACOSX", "@eaDir")
# A folder that holds all files of one of these sets was written by this package.
_OWN = (
    {"config.json", "run.json"},
    {"landmarks.csv", "contact_sheet.png"},
    {"landmarks.json", "contact_sheet.png"},
    {"landmarks.slp", "contact_sheet.png"},
    {"features.json", "dataset_info.json"},
    {"cache.json"},
    {"table.json", "table.md"},
    {"figure.json", "figure.md"},
)
_NETPBM = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s")  # a comment may stand before the width
_START = 64  # number of first bytes that identify a format
_NAMED = 20  # most bad files that one message names


class BadFile(UserError):
    """An error for a file that cannot be read as a picture; the message names the file.

    Attributes:
      file: name of the file.
      why: the reason alone; after a semicolon the remedy, if it is other than to mend or remove the file.
    """

    def __init__(self, file: str, why: str):
        super().__init__(file, why)
        self.file, self.why = file, why

    def __str__(self):
        if ";" in self.why:  # the reason includes the remedy
            return f"{self.file} cannot be read as an image: {self.why}"
        return f"{self.file} cannot be read as an image ({self.why}); mend or remove it"

    def of(self, file: str) -> "BadFile":
        """Return the same error about a file of another name."""
        return type(self)(file, self.why)


class AbsentFile(BadFile):
    """An error for a file that does not exist."""

    def __str__(self):
        return f"{self.file} is absent ({self.why}); put it there"


class Skipped(NamedTuple):
    """A skipped file and the reason, in one sentence. `file` is relative to the folder."""

    file: str
    reason: str


class Listing(NamedTuple):
    """The files of a folder: pictures by name or content, and all others that a user may have meant as pictures."""

    images: list[str]
    others: list[Skipped]


def walk(folder) -> list[str]:
    """List all files under `folder`, at any depth, as sorted paths relative to it with `/` between the parts.

    Hidden files and folders, and the run folders of this library, are left out. Raises UserError if there is no such
    folder.
    """
    folder = epath.Path(folder).expanduser()
    if not folder.exists():
        raise UserError(f"{folder} does not exist; give a folder of images")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of images")
    found = _walk_local(os.fspath(folder)) if is_local(folder) else _walk_remote(folder)
    return sorted(found, key=lambda name: name.split("/"))


def list_images(folder, names: Sequence[str] | None = None) -> list[str]:
    """List the pictures of `list_files`."""
    return list_files(folder, names).images


def list_files(folder, names: Sequence[str] | None = None) -> Listing:
    """Tell pictures from other files under `folder`, whose names are `walk(folder)` if they are not given.

    A file with the ending of a picture is among the pictures without a look at its content, so that opening it gives
    the error. Raises UserError if there is no such folder.
    """
    folder = epath.Path(folder).expanduser()
    names = [name for name in (walk(folder) if names is None else names) if not _is_ignored(name)]
    doubtful = [n for n in names if not n.lower().endswith(_PICTURE_ENDINGS)]
    with ThreadPoolExecutor(16) as pool:
        paths = [os.path.join(os.fspath(folder), n) for n in doubtful]
        reasons = dict(zip(doubtful, pool.map(_why_no_picture, paths), strict=True))
    return Listing(
        [n for n in names if reasons.get(n) is None], [Skipped(n, reasons[n]) for n in doubtful if reasons[n]]
    )


def not_pictured(names: Sequence[str]) -> list[str]:
    """Choose the names that do not claim to be a picture, csv tables too."""
    pictured = (*_PICTURE_ENDINGS, *_VIDEO_ENDINGS, *_RAW_ENDINGS)
    return [name for name in names if not name.lower().endswith(pictured)]


def is_local(path) -> bool:
    """Tell whether a path lies in the machine's own file system, not in a bucket."""
    return "://" not in os.fspath(path)


def _is_ignored(name: str) -> bool:
    last = name.rpartition("/")[2].lower()
    return last in _IGNORED or last.endswith(".csv")


def _walk_local(root: str) -> Iterator[str]:
    seen = set()  # real folders, so that a link to a parent folder does not loop for ever
    for at, folders, here in os.walk(root, followlinks=True):
        real = os.path.realpath(at)
        if real in seen or (at != root and _is_own(here)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _IGNORED_FOLDERS)
        for file in here:
            if not file.startswith("."):
                yield os.path.relpath(os.path.join(at, file), root).replace(os.sep, "/")


def _walk_remote(folder: epath.Path) -> Iterator[str]:
    root = os.fspath(folder).rstrip("/") + "/"
    for at, folders, here in folder.walk():
        if os.fspath(at).rstrip("/") + "/" != root and _is_own(here):
            folders[:] = []
            continue
        folders[:] = [f for f in folders if not f.startswith(".") and f not in _IGNORED_FOLDERS]
        for file in here:
            if not file.startswith("."):
                yield os.fspath(at / file).removeprefix(root)


def _is_own(names) -> bool:
    return any(own <= set(names) for own in _OWN)


def kind_of(start: bytes) -> str | None:
    """Return the picture format, by Pillow's name, of a file's first bytes (64 suffice); None if it is no picture.

    >>> kind_of(b"GIF89a" + bytes(20)), kind_of(b"BMW parts list")
    ('GIF', None)
    """
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"  # MPO too
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in (12, 40, 52, 56, 64, 108, 124):
        return "BMP"  # the header's length is checked because many texts start with BM
    if _NETPBM.match(start):
        return "PPM"  # and PGM, PBM
    brands = _brands(start)
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "HEIF"
    return None


def _brands(start: bytes) -> set[bytes]:
    """Read the brands of a file in boxes (MP4, HEIF): its major brand and the compatible brands."""
    if len(start) < 16 or start[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(start[:4], "big"), len(start))
    return {start[8:12], *(start[i : i + 4] for i in range(16, end - 3, 4))}


def _is_video(name: str, start: bytes) -> bool:
    if name.lower().endswith(_VIDEO_ENDINGS):
        return True
    magic = (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")
    return (
        start.startswith(magic)
        or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")
        or (start[4:8] == b"ftyp" and kind_of(start) is None and start[8:11] not in (b"crx", b"jxl", b"jp2", b"M4A"))
        or (start[4:8] in (b"moov", b"mdat", b"wide") and start[:3] == b"\0\0\0")
    )


def why_other(path, start: bytes) -> str | None:
    """Return the reason why a file is not a picture although it may look like one; None if it may be a picture.

    Args:
      path: path of the file, whose ending identifies camera raw files and videos.
      start: first bytes of the file.
    """
    path = os.fspath(path)
    if path.lower().endswith(_RAW_ENDINGS) and kind_of(start) in (None, "TIFF"):
        return "it is a camera raw file; develop it to JPEG or TIFF"
    if kind_of(start) is not None:
        return None
    if _is_video(path, start):
        frames = f"{os.path.splitext(path)[0]}_frames"
        make = f"mkdir -p {shlex.quote(frames)}; ffmpeg -i {shlex.quote(path)} -vf fps=2 -q:v 2 "
        return f"it is a video; make pictures of it with `{make}{shlex.quote(frames + '/%06d.jpg')}`"
    return "the file is empty" if not start else f"its content is of another kind, none of {PICTURES}"


def _why_no_picture(path: str) -> str | None:
    """Return the sentence about a file that is not a picture; None if it is a picture by its content."""
    try:
        start = _read_start(path)
    except FileNotFoundError:
        return f"{path} is a link to nothing"
    except OSError as error:
        return f"{path} cannot be read ({(error.strerror or str(error)).lower()})"
    why = why_other(path, start)
    if why is None:
        return None
    return f"{path} is not an image: {why}" if start else f"{path} is empty"


def open_local(path):
    """Open a file for reading bytes. Raises OSError, also for a pipe or a folder, without waiting for a pipe."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(0, "it is no regular file")
    return open(path, "rb")


def _read_start(path) -> bytes:
    with open_local(path) if is_local(path) else epath.Path(path).open("rb") as file:
        return file.read(_START)


def bad_files(bad: Sequence[BadFile], total: int, where: str = "") -> UserError:
    """Make one error that names all files that cannot be read, or twenty of them and the number of the others.

    Args:
      bad: errors of the files, at least one.
      total: number of files that were tried.
      where: folder to which the file names are relative.
    """
    remedy = "--config.data.on_bad_file=skip (uld prepare: --on_bad_file=skip) goes on without them"
    if len(bad) == 1:
        one = bad[0].of(os.path.join(where, bad[0].file))
        return UserError(f"{one}; {remedy.replace('them', 'it')}")
    named = ", ".join(f"{b.file} ({b.why})" for b in bad[:_NAMED])
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    place = f" in {where}" if where else ""
    return UserError(
        f"{len(bad)} of {total} images{place} cannot be read: {named}{more}; mend or remove them; {remedy}"
    )


def write_skipped(path, skipped: Sequence[Skipped]) -> None:
    """Write `skipped.csv` atomically; if no file was skipped, remove an earlier one."""
    if skipped:
        files.write(path, files.csv_text([Skipped._fields, *skipped]))
    else:
        epath.Path(path).unlink(missing_ok=True)


def told(skipped: Sequence[Skipped], where) -> str:
    """Format the first reasons, and the name of the file that holds all of them, as lines of text."""
    lines = [files.one_line(f"skipped {s.reason}") for s in skipped[:_NAMED]]
    if len(skipped) > _NAMED:
        lines.append(f"... and {len(skipped) - _NAMED} more")
    count = "1 file was" if len(skipped) == 1 else f"{len(skipped)} files were"
    return "\n".join([*lines, f"{count} skipped, see {where}"])

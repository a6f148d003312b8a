"""Matching of typed file names with the names on the disk."""

import unicodedata
from collections.abc import Iterable

from etils import epath

from uld_jax.files import printable


class Index:
    """An index that finds existing names for typed ones.

    The same letters may be composed (one code point, é) or decomposed (e and an accent, as macOS lists them). Then a
    name typed on one machine differs in its bytes from the name on the disk of another.

    Args:
      names: the existing names.
    """

    def __init__(self, names: Iterable[str]):
        self._tables: dict[str, dict[str, str | None]] = {kind: {} for kind in _KEYS}
        for name in dict.fromkeys(names):
            for kind, key in _KEYS.items():
                table = self._tables[kind]
                table[key(name)] = None if key(name) in table else name  # None marks a key of several names

    def find(self, name: str, *, any_case: bool = False) -> str | None:
        """Find the existing name that is meant; None if there is none, or if several fit equally well.

        The unchanged name is tried first; then any Unicode form of the name and the form of `files.printable`; then,
        with `any_case`, letters of the other case (`.JPG` for `.jpg`).
        """
        for kind in ("same", "form", "case") if any_case else ("same", "form"):
            if (key := _KEYS[kind](name)) in self._tables[kind]:
                return self._tables[kind][key]
        return None


class Lookup:
    """An index like `Index` of the files below a folder; each folder is listed once, and only when needed.

    Args:
      root: the folder, local or gs://.
    """

    def __init__(self, root):
        self._root = epath.Path(root)
        self._listed: dict[str, Index] = {}

    def find(self, name: str, *, any_case: bool = False) -> str | None:
        """Find the path below the folder as on the disk, with `/` between its parts; see `Index.find`."""
        at = ""
        for part in name.split("/"):
            if at not in self._listed:
                self._listed[at] = Index(_listed(self._root / at))
            real = self._listed[at].find(part, any_case=any_case)
            if real is None:
                return None
            at = f"{at}/{real}" if at else real
        return at


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", printable(name)).strip()  # as for cells of a csv


def same_on_disk(name: str) -> str:
    """Return a key that is equal for names that some file system treats as one: other case or Unicode form."""
    return unicodedata.normalize("NFC", _form(name).casefold())


_KEYS = {"same": str, "form": _form, "case": same_on_disk}


def _listed(folder) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []

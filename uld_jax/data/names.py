"""File names, as the disk holds them and as people and other machines type them."""

import unicodedata
from collections.abc import Iterable

from etils import epath

from uld_jax.files import printable


class Index:
    """Finds names among those that there are, whichever way they are typed.

    The same letters may be composed (one code point, é) or decomposed (e and an accent, as macOS lists them): then a
    name that was typed on one machine is not, byte for byte, the name on another one's disk.

    Args:
      names: those that there are.
    """

    def __init__(self, names: Iterable[str]):
        self._tables: dict[str, dict[str, str | None]] = {kind: {} for kind in _KEYS}
        for name in dict.fromkeys(names):
            for kind, key in _KEYS.items():
                table = self._tables[kind]
                table[key(name)] = None if key(name) in table else name  # None: either could be meant

    def find(self, name: str, *, any_case: bool = False) -> str | None:
        """The name that is meant; None if there is none, or several that fit equally well.

        The name as it stands goes first; then any Unicode form of it, and what `files.printable` gives; then, with
        `any_case`, letters of the other case (`.JPG` for `.jpg`).
        """
        for kind in ("same", "form", "case") if any_case else ("same", "form"):
            if (key := _KEYS[kind](name)) in self._tables[kind]:
                return self._tables[kind][key]
        return None


class Lookup:
    """As `Index`, among the files below a folder, whose folders are listed once, and only when they are needed.

    Args:
      root: the folder, local or gs://.
    """

    def __init__(self, root):
        self._root = epath.Path(root)
        self._listed: dict[str, Index] = {}

    def find(self, name: str, *, any_case: bool = False) -> str | None:
        """The path below the folder, `/` between its parts, as the disk has it; see `Index.find`."""
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
    return unicodedata.normalize("NFC", printable(name)).strip()  # as cells of a csv are


def same_on_disk(name: str) -> str:
    """A key that is the same for names that are one on some file system: of another case, or Unicode form."""
    return unicodedata.normalize("NFC", _form(name).casefold())


_KEYS = {"same": str, "form": _form, "case": same_on_disk}


def _listed(folder) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []

"""Names of discovered landmarks, given on the page of a run (`uld report`) and kept in a file."""

import json
from collections.abc import Sequence

from etils import epath

from uld_jax.errors import UserError, flag


def check_count(names: Sequence[str], count: int) -> None:
    """Raise UserError unless there is a name for each of `count` landmarks, or none at all."""
    if names and len(names) != count:
        raise UserError(f"there are {len(names)} names for {count} landmarks; give one for each")


def read_names(path) -> tuple[str, ...]:
    """Read the names in a file: `{"names": [...]}`, a list of names, or a name a line.

    Args:
      path: the file, local or gs://.

    Returns:
      One name a landmark, in order.

    Raises:
      UserError: no such file, content of another kind, or names that are empty or not all different.
    """
    where = flag("names", path)
    try:
        text = epath.Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = (getattr(error, "strerror", None) or "it is no text in UTF-8").lower()
        raise UserError(f"{where} cannot be read ({why}); give names.json that the page of a run saved") from None
    found = text.splitlines()
    if text.lstrip()[:1] in ("{", "["):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} begins as JSON and is none (line {error.lineno}: {error.msg}); mend it") from None
        found = found.get("names") if isinstance(found, dict) else found
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise UserError(f'{where} holds no list of names; write {{"names": ["left eye", ...]}}, or a name a line')
    names = tuple(name.strip() for name in found)
    if "" in names:
        raise UserError(f"{where} has no name for landmark {names.index('')}; give each landmark a name")
    if odd := [name for name in names if not name.isprintable()]:
        raise UserError(
            f"{where} holds the name {odd[0]!r}, with a line break or another control character; leave it out"
        )
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"{where} holds {twice[0]!r} twice; give each landmark a name of its own")
    return names

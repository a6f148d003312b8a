"""Names that were typed on another machine are found on this disk."""

import os
import unicodedata

from uld_jax.data.names import Lookup
from uld_jax.files import printable

NFC, NFD = (unicodedata.normalize(form, "Zoë/café.jpg") for form in ("NFC", "NFD"))


def test_names_are_found_whatever_their_unicode_form(tmp_path):
    assert NFC != NFD
    for there, typed in ((NFC, NFD), (NFD, NFC)):
        root = tmp_path / str(len(there))
        (root / there).parent.mkdir(parents=True)
        (root / there).touch()
        assert Lookup(root).find(typed) == there
        assert Lookup(root).find(there) == there
    mixed = f"{NFD.partition('/')[0]}/{NFC.partition('/')[2]}"
    assert Lookup(tmp_path / str(len(NFC))).find(mixed) == NFC
    assert Lookup(tmp_path).find(NFC) is None
    assert Lookup(tmp_path / "absent").find("a.jpg") is None


def test_the_name_as_it_stands_goes_first_and_a_doubtful_one_gives_none(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    for name in (composed, decomposed, "A.jpg", "a.jpg", "b.JPG"):
        (tmp_path / name).touch()
    files = Lookup(tmp_path)
    assert [files.find(n) for n in (composed, decomposed, "a.jpg", "A.jpg")] == [composed, decomposed, "a.jpg", "A.jpg"]
    assert files.find("b.jpg") is None
    assert files.find("b.jpg", any_case=True) == "b.JPG"
    assert files.find("a.JPG", any_case=True) is None  # either could be meant


def test_names_that_are_no_text(tmp_path):
    raw = b"caf\xe9.jpg"
    with open(os.path.join(os.fsencode(tmp_path), raw), "wb"):
        pass
    name = os.fsdecode(raw)
    assert printable(name) == "caf\\xe9.jpg"
    assert Lookup(tmp_path).find(printable(name)) == Lookup(tmp_path).find(name) == name
    printable(name).encode()

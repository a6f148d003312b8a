"""UT-Zappos50K from a miniature: all subcategories, stems with dots, photos of another size and of another mode."""

import shutil
import sys

import numpy as np
import pytest

from tests.data.builders import miniature
from uld_jax import __main__, data
from uld_jax.data import builders, objects
from uld_jax.errors import UserError

SUBCATEGORIES = {
    "Boots": ["Ankle", "Knee High", "Mid-Calf", "Over the Knee", "Prewalker Boots"],
    "Sandals": ["Athletic", "Flat", "Heel"],
    "Shoes": [
        *("Boat Shoes", "Clogs and Mules", "Crib Shoes", "Firstwalker", "Flats", "Heels", "Loafers", "Oxfords"),
        *("Prewalker", "Sneakers and Athletic Shoes"),
    ],
    "Slippers": ["Boot", "Slipper Flats", "Slipper Heels"],
}
NAMES = [f"{c}/{s}/Roper Kids/7675771.{i}.jpg" for c, all_ in SUBCATEGORIES.items() for i, s in enumerate(all_)]
SMALL, GREY, LAST = NAMES[2], NAMES[3], NAMES[-1]


@pytest.fixture
def src(tmp_path):
    root = tmp_path / "src"
    for name in NAMES:
        miniature.picture(root / name, (80, 100) if name == SMALL else (102, 136), grey=name == GREY)
    (root / "Shoes/Thumbs.db").write_bytes(b"\xd0\xcf")
    return root


def test_sorted_photos_come_back_with_their_kinds(src, tmp_path):
    assert len(NAMES) == 21
    found = miniature.prepare("shoes", src, tmp_path)
    assert {split: sorted(one.names) for split, one in found.items()} == {
        "train": [name for name in NAMES[:15] if name != SMALL],
        "test": NAMES[15:],
    }
    train = found["train"]
    assert (train.landmarks, train.spec.protocol, set(train.spec.splits)) == (None, None, {"test", "train"})
    row = train.names.index(NAMES[0])
    assert {name: values[row] for name, values in train.columns.items()} == {
        "category": "Boots",
        "subcategory": "Ankle",
        "brand": "Roper Kids",
    }
    assert len(set(objects.categories(train))) == 3
    assert train.encoded(row) == (src / NAMES[0]).read_bytes()
    grey = data.decode_image(train.encoded(train.names.index(GREY)), 64)[0]
    assert (grey == grey[..., :1]).all()
    assert np.unique(train.file_sizes, axis=0).tolist() == [[102, 136]]


def test_photos_of_another_size_are_told(src, tmp_path, monkeypatch, capsys):
    argv = ["uld", "prepare", "--dataset=shoes", f"--src={src}", f"--data_dir={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert __main__.main() == 3
    said = capsys.readouterr().err
    assert f"{src}/{SMALL} has 100 x 80 pixels where the images of shoes have 136 x 102" in said
    assert f"{src} has 21 photos where descriptions of UT-Zappos50K say 50,025" in said
    table = (tmp_path / "out/shoes/1.0.0/skipped.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table] == ["file", SMALL]
    for name in NAMES[15:]:
        miniature.picture(src / name, (136, 102))
    with pytest.raises(UserError, match=rf"none of the 6 images below .* has the 136 x 102 .*, first {NAMES[15]}; get"):
        miniature.opened("shoes", src, partial=False)


def test_folders_are_found_and_checked(src, tmp_path):
    once = miniature.opened("shoes", src, partial=False)[0]
    shutil.copytree(src, tmp_path / "zip/ut-zap50k-images")
    again = miniature.opened("shoes", tmp_path / "zip", partial=False)[0]
    assert [again[split].fingerprint for split in once] == [one.fingerprint for one in once.values()]
    shutil.rmtree(src / "Boots/Ankle")
    shutil.rmtree(src / "Sandals")
    with pytest.raises(UserError, match=r"Boots has 4 subcategories where the official file has 5; .*--allow_partial"):
        miniature.opened("shoes", src, partial=False)
    found, notes = miniature.opened("shoes", src)
    assert (len(found["train"]), len(notes)) == (11, 3)  # one of another size
    miniature.picture(src / "Shoes/Flats/1.jpg", (102, 136))
    with pytest.raises(UserError, match=r"Shoes/Flats/1.jpg does not lie in three folders .* do; remove it"):
        miniature.opened("shoes", src)
    with pytest.raises(UserError, match=r"holds no folder of the categories of UT-Zappos50K; put it there as one of"):
        miniature.opened("shoes", src / "Slippers")


def test_no_number_of_photos_is_official():
    assert builders.find_dataset("shoes").counts == {"train": None, "test": None}

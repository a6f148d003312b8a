"""Heads of cats from a miniature of the official folder, with its orphan and Kaggle's second copy."""

import shutil

import numpy as np
import pytest

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data import builders
from uld_jax.errors import UserError

SIZE = 240, 300
# Eyes, mouth, outer base, tip and inner base of the left ear, inner base, tip and outer base of the right one.
NINE = np.array([[110, 120], [170, 118], [140, 160], [90, 90], [95, 60], [120, 80], [160, 80], [190, 55], [195, 92]])
NAMES = [
    *("CAT_00/00000001_000", "CAT_00/00000001_005", "CAT_00/00000003_015", "CAT_01/00000100_002"),
    *("CAT_02/00000200_001", "CAT_03/00000300_009", "CAT_04/00000400_001", "CAT_06/00001429_017"),
]
NAMES = [f"{name}.jpg" for name in NAMES]


def points_of(name):
    return NINE + 2 * NAMES.index(name)


def annotation(points):
    return f"9 {' '.join(map(str, points.ravel()))} "  # a blank at the end, and no line end


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    root = tmp_path_factory.mktemp("cats")
    for name in NAMES:
        miniature.picture(root / name, SIZE)
        (root / f"{name}.cat").write_text(annotation(points_of(name)))
    for folder in builders.cats.FOLDERS:
        (root / folder).mkdir(exist_ok=True)
    (root / "CAT_00/00000003_015.jpg.cat").rename(root / "CAT_00/00000003_019.jpg.cat")
    (root / "CAT_00/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    return root


@pytest.fixture
def copy(src, tmp_path):
    shutil.copytree(src, tmp_path / "cats_here")
    return tmp_path / "cats_here"


def test_the_sorted_list_is_split(src, tmp_path):
    found = miniature.prepare("cats", src, tmp_path)
    assert {split: sorted(one.names) for split, one in found.items()} == {"train": NAMES[:6], "test": NAMES[6:]}
    for source in found.values():
        assert source.spec.protocol == "cats_9_box_part"
        assert source.spec.mirror == (1, 0, 2, 8, 7, 6, 5, 4, 3)
        assert source.file_sizes.tolist() == [list(SIZE)] * len(source)
        for row, name in enumerate(source.names):
            np.testing.assert_allclose(miniature.points(source)[name], points_of(name), atol=1e-3)
            assert source.encoded(row) == (src / name).read_bytes()


def test_the_crop_of_cgb_follows_the_points(src, tmp_path):
    test = miniature.prepare("cats_cgb", src, tmp_path)["test"]
    name = NAMES[6]
    row, xy = test.names.index(name), points_of(name)
    # x from 102 to 207 and y from 67 to 172: both sides are 105, so the box grows by int(0.3 * 105) = 31 pixels.
    assert (xy.min(0).tolist(), xy.max(0).tolist()) == ([102, 67], [207, 172])
    want = (xy + 0.5 - (71, 36)) * 128 / 167 - 0.5
    np.testing.assert_allclose(miniature.points(test)[name], want, atol=1e-3)
    assert test.file_sizes[row].tolist() == [128, 128]
    at = np.round(want).astype(int)
    pixels = data.decode_image(test.encoded(row), 128)[0]
    np.testing.assert_allclose(miniature.place_of(pixels[at[:, 1], at[:, 0]], SIZE), xy, atol=3)


def test_the_second_copy_of_kaggle(src, copy):
    once = miniature.opened("cats", src)[0]
    shutil.copytree(copy, copy / "cats")
    twice = miniature.opened("cats", copy)[0]
    for folder in builders.cats.FOLDERS:
        shutil.rmtree(copy / folder)
    second = miniature.opened("cats", copy)[0]
    for found in (twice, second):
        assert [found[split].names for split in once] == [one.names for one in once.values()]
        assert [found[split].fingerprint for split in once] == [one.fingerprint for one in once.values()]


def test_the_separate_annotation_goes_first(copy):
    (copy / "CAT_00/00000003_015.jpg.cat").write_text(annotation(NINE))
    train = miniature.opened("cats", copy)[0]["train"]
    assert train.names == NAMES[:6]
    np.testing.assert_allclose(miniature.points(train)[NAMES[2]], NINE, atol=1e-3)


def test_absent_files_are_named(src, copy):
    counts = builders.find_dataset("cats").counts
    assert (counts, sum(counts.values())) == ({"train": 7497, "test": 2500}, 9997)
    with pytest.raises(
        UserError, match=r"has 8 annotated photos where the official data set has 9,997; .*--allow_partial"
    ):
        miniature.opened("cats", src, partial=False)
    (copy / f"{NAMES[0]}.cat").unlink()
    with pytest.raises(UserError, match=rf"holds 1 photo without annotation, first {NAMES[0]}; get their .cat files"):
        miniature.opened("cats", copy, partial=False)
    found, notes = miniature.opened("cats", copy)
    assert (len(found["train"]), len(notes)) == (5, 4)
    (copy / NAMES[1]).unlink()
    skipped = miniature.opened("cats", copy)[0]["train"].skipped
    assert [one.file for one in skipped] == [NAMES[1]]
    shutil.rmtree(copy / "CAT_05")
    with pytest.raises(
        UserError, match=r"has 6 folders of CAT_00 to CAT_06 where the official data set has 7; get the"
    ):
        miniature.opened("cats", copy, partial=False)
    for folder in builders.cats.FOLDERS[1:]:
        shutil.rmtree(copy / folder, ignore_errors=True)
    with pytest.raises(UserError, match=r"has 1 folder of CAT_00 to CAT_06 where the official data set has 7; get the"):
        miniature.opened("cats", copy, partial=False)
    with pytest.raises(UserError, match=r"holds no folder of the cat head data set; put it there as one of CAT_00, ca"):
        miniature.opened("cats", copy / "CAT_00")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("8 1 2", r"CAT_06/00001429_017.jpg.cat has 3 numbers, first 8, where 19 are needed, first 9; get"),
        ("", r"00001429_017.jpg.cat has 0 numbers, first none, where"),
        (annotation(NINE).replace("110", "x"), r"00001429_017.jpg.cat: 'x' is no number; get the official file again"),
        (annotation(100 * NINE), r"00001429_017.jpg.cat: point 0 at \(11000, 12000\) lies far outside"),
    ],
)
def test_bad_annotation_is_told(copy, text, error):
    (copy / f"{NAMES[-1]}.cat").write_text(text)
    with pytest.raises(UserError, match=error):
        miniature.opened("cats", copy)

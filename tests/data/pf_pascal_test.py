"""PF-Pascal in NC-Net's folders and lists, good and bad."""

import pickle

import numpy as np
import pytest
from PIL import Image

from tests import pascal
from uld_jax import data
from uld_jax.data import objects, pf_pascal
from uld_jax.data.pf_pascal import PfPascal
from uld_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
    return pascal.write(tmp_path / "pascal")


def opened(root, split="train", **more):
    return data.open_source("pf_pascal", split, data_dir=root, **{"frame_size": 24} | more)


def test_rows_are_the_images_of_the_pairs(root):
    source = opened(root)
    assert source.names == [pascal.name_of(n, i) for n in pascal.CLASSES for i in range(3)]
    assert source.columns == {"category": [word for word in pascal.CLASSES.values() for _ in range(3)]}
    assert objects.categories(source).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert source.spec.splits == ("train", "val", "test")
    assert (source.landmarks, source.spec.protocol) == (None, None)
    pairs = source.pairs
    assert pairs.rows.tolist() == [[0, 1], [1, 2], [3, 4], [4, 5], [6, 7], [7, 8]] * 2
    assert pairs.rows.dtype == np.int32
    assert pairs.flip.tolist() == [False] * 6 + [True] * 6
    assert pairs.xy is None
    assert pairs.places[1].endswith("train_pairs.csv, line 3")
    assert source.fingerprint == opened(root).fingerprint != opened(root, fit="pad").fingerprint
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).image(2), source.image(2))
    assert source.encoded(0) == (root / pascal.name_of(1, 0)).read_bytes()
    assert not opened(root, "val").pairs.flip.any()


@pytest.mark.parametrize("fit", [None, "pad"])
def test_frame_maps_are_those_of_stretched_photos(root, fit):
    source = opened(root, "test", fit=fit)
    for row, name in enumerate(source.names):
        with Image.open(root / name) as image:
            width, height = image.size
        assert width != height
        assert source.file_sizes[row].tolist() == [height, width]
        scale = np.array([24 / width, 24 / height] if fit is None else [24 / max(width, height)] * 2)
        np.testing.assert_allclose(source.frame_maps[row][:2], scale)
        # The middle of the photo is that of the frame.
        middle = np.array([width, height]) / 2 - 0.5
        np.testing.assert_allclose(middle * scale + source.frame_maps[row][2:], [11.5, 11.5])
        assert source.image(row).shape == (24, 24, 3)


def test_points_count_from_one_and_are_filled_up(root):
    source = opened(root, "test")
    pairs = source.pairs
    assert pairs.xy.shape == (4, 2, 6, 2)
    for found, rows, (number, a, b) in zip(pairs.xy, pairs.rows, pascal.TEST, strict=True):
        assert [source.names[row] for row in rows] == [pascal.name_of(number, a), pascal.name_of(number, b)]
        for xy, image in zip(found, (a, b), strict=True):
            truth = pascal.points_of(number, image)
            np.testing.assert_allclose(xy[: len(truth)], truth, atol=1e-5)
            assert np.isnan(xy[len(truth) :]).all()


def test_pairs_of_the_training_list_are_told_by_images_order_and_category(root):
    assert pf_pascal.leaked(root).tolist() == [True, False, False, False]
    assert pf_pascal.leaked(root, "train").all()


def test_an_image_of_two_categories_is_two_rows(root):
    path = root / "image_pairs/train_pairs.csv"
    a, b = pascal.name_of(1, 0), pascal.name_of(8, 0)
    path.write_text(path.read_text() + f"\n{a},{b},8,0\n")
    source = opened(root)
    assert len(source) == 10
    assert source.names[:2] == [a, a]
    assert source.columns["category"][:2] == ["aeroplane", "cat"]
    assert source.pairs.rows[-1].tolist() == [1, 4]
    assert not pf_pascal.leaked(root)[1:].any()


def test_lists_are_found_beside_the_photos_and_by_their_other_name(root):
    whole = opened(root)
    (root / "image_pairs/train_pairs.csv").rename(root / "trn_pairs.csv")
    assert opened(root).fingerprint == whole.fingerprint


def change(root, split, old, new):
    path = root / f"image_pairs/{split}_pairs.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BARE = f"{pascal.name_of(12, 3)},{pascal.name_of(12, 2)},12,-1,-1,-1,-1"
LAST = pascal.cells(pascal.points_of(12, 2))[1]
BAD = {
    "a column": ("test", "target_image", "target", r"test_pairs.csv has no column target_image in its first line"),
    "a column of points": ("test", ",YB", "", r"test_pairs.csv has no column YB in its first line; NC-Net's lists"),
    "a cell too many": ("train", ",1,0", ",1,0,0", r"train_pairs.csv, line 2 has 5 columns where the first line has 4"),
    "a category": ("train", ",8,", ",21,", r"train_pairs.csv, line 4, column class: '21' is no whole number from 1 to"),
    "a flip": ("train", ",1,1", ",1,yes", r"line 8, column flip: 'yes' is no whole number from 0 to 1"),
    "no name": ("train", pascal.name_of(1, 0), "", r"line 2, column source_image: '' is not inside "),
    "a name outside": ("train", pascal.name_of(1, 1), "../a.jpg", r"line 2, column target_image: '../a.jpg' is not in"),
    "no number": ("test", LAST, LAST + ";two", r"line 5, column YB: 'two' is not a number"),
    "a point less": ("test", LAST, LAST.rpartition(";")[0], r"numbers of points \(XA 6, YA 6, XB 6, YB 5\); give all"),
    "half a filler": ("test", ";-1,", ";7,", r"line 2: point 6 is missing on one image; leave it out of both"),
    "only fillers": ("test", pascal.with_points(12, 3, 2), BARE, r"line 5: there is no point; give at least one"),
    "a far point": ("test", LAST, "900" + LAST[LAST.index(";") :], r"line 5: point 0 at .* lies far outside its image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(root, case):
    split, old, new, message = BAD[case]
    change(root, split, old, new)
    with pytest.raises(UserError, match=message) as error:
        opened(root, split)
    assert "\n" not in str(error.value)


def test_missing_photos_and_lists_are_named(root, tmp_path):
    for image in (1, 2):
        (root / pascal.name_of(8, image)).unlink()
    with pytest.raises(
        UserError, match=r"train_pairs.csv, line 4: .*2008_008001.jpg is not in .* \(2 such files\); give"
    ):
        opened(root)
    with pytest.raises(UserError, match=r"has no split all \(it has train and val and test\)"):
        opened(root, "all")
    with pytest.raises(
        UserError, match=r"holds no image_pairs/train_pairs.csv; give the folder with PF-dataset-PASCAL"
    ):
        opened(root / "PF-dataset-PASCAL")
    with pytest.raises(UserError, match="data_dir is not set"):
        opened("")
    with pytest.raises(UserError, match="has no option rows"):
        opened(root, rows=5)
    (root / "image_pairs/train_pairs.csv").write_text(pascal.HEADER + "\n")
    with pytest.raises(UserError, match="lists no pairs; add one line"):
        opened(root)


def test_photos_that_cannot_be_read_are_left_out_with_their_pairs(root):
    (root / pascal.name_of(8, 0)).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2008_008000.jpg cannot be read"):
        opened(root)
    with pytest.warns(UserWarning, match="they are left out"):
        source = opened(root, on_bad_file="skip")
    assert len(source) == 8
    assert pascal.name_of(8, 0) not in source.names
    assert [skipped.file for skipped in source.skipped] == [pascal.name_of(8, 0)]
    assert len(source.pairs.rows) == len(source.pairs.places) == 10
    names = [[source.names[row] for row in pair] for pair in source.pairs.rows]
    assert [pascal.name_of(8, 1), pascal.name_of(8, 2)] in names


def test_configs_stretch_the_photos_of_this_data_set_alone(root):
    assert pascal.config(root).data.fit == pf_pascal.FIT == "stretch"
    assert PfPascal(root, "train", frame_size=24).fingerprint == opened(root).fingerprint

"""WFLW from a miniature of the official folder, with several faces on a photo."""

import numpy as np
import pytest

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data.builders import wflw
from uld_jax.data.specs import BadFileWarning
from uld_jax.errors import UserError

SIZE = (480, 640)
FINE = {"quality": 100, "subsampling": 0}
PHOTOS = ["0--Parade/0_Parade_Parade_0_12.jpg", "37--Soccer/37_Soccer_soccer ball_1.jpg", "1--Handshaking/1_Hand_1.jpg"]
# {split: [(photo, box, attributes)]}; the box of the third face lies at the edge of its photo.
FACES = {
    "train": [
        (0, (100, 120, 199, 179), "0 1 0 0 0 1"),
        (1, (300, 200, 359, 289), "0 0 0 0 0 0"),
        (0, (0, 300, 99, 379), "1 0 0 0 1 0"),
    ],
    "test": [(2, (250, 60, 329, 159), "0 0 0 1 0 0"), (0, (400, 100, 499, 199), "0 0 1 0 0 0")],
}
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"


def points_of(split, i):
    x0, y0, x1, y1 = FACES[split][i][1]
    return np.random.default_rng(i + len(split)).uniform((x0, y0), (x1, y1), (98, 2)).round(6)


def line_of(split, i):
    photo, box, attributes = FACES[split][i]
    return " ".join([*(f"{v:.6f}" for v in points_of(split, i).ravel()), *map(str, box), attributes, PHOTOS[photo]])


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    root = tmp_path_factory.mktemp("wflw") / "src"
    for photo in PHOTOS:
        miniature.picture(root / "WFLW_images" / photo, SIZE, **FINE)
    (root / LISTS).mkdir(parents=True)
    for split, faces in FACES.items():
        text = "\n".join(line_of(split, i) for i in range(len(faces)))
        (root / LISTS / f"list_98pt_rect_attr_{split}.txt").write_text(text)
    return root


def test_every_face_has_a_crop_of_its_own(src, tmp_path):
    found = miniature.prepare("wflw", src, tmp_path)
    assert {split: sorted(s.names) for split, s in found.items()} == {
        "train": [
            "0--Parade/0_Parade_Parade_0_12_face0.jpg",
            "0--Parade/0_Parade_Parade_0_12_face1.jpg",
            "37--Soccer/37_Soccer_soccer ball_1_face0.jpg",
        ],
        "test": ["0--Parade/0_Parade_Parade_0_12_face0.jpg", "1--Handshaking/1_Hand_1_face0.jpg"],
    }
    assert found["test"].spec.protocol == "wflw_98_eyes_part"
    assert found["test"].spec.eyes == (60, 72)
    # Boxes of 100 x 60, 60 x 90, 100 x 80; 80 x 100 and 100 x 100 pixels: squares of 125, 112.5 and 125 pixels around
    # their centres, (150, 150), (330, 245), (50, 340); (290, 110), (450, 150) from the edge of the first pixel.
    parts = {
        "train": {
            "0--Parade/0_Parade_Parade_0_12_face0.jpg": (0, (87.5, 87.5), 125),
            "37--Soccer/37_Soccer_soccer ball_1_face0.jpg": (1, (273.75, 188.75), 112.5),
            "0--Parade/0_Parade_Parade_0_12_face1.jpg": (2, (-12.5, 277.5), 125),
        },
        "test": {
            "1--Handshaking/1_Hand_1_face0.jpg": (0, (227.5, 47.5), 125),
            "0--Parade/0_Parade_Parade_0_12_face0.jpg": (1, (387.5, 87.5), 125),
        },
    }
    for split, source in found.items():
        assert source.file_sizes.tolist() == [[256, 256]] * len(source)
        for row, name in enumerate(source.names):
            i, low, side = parts[split][name]
            xy = points_of(split, i)
            want = (xy + 0.5 - low) * 256 / side - 0.5
            np.testing.assert_allclose(miniature.points(source)[name], want, atol=1e-3)
            pixels = data.decode_image(source.encoded(row), 256)[0]
            at = np.round(want).astype(int)
            shown = miniature.place_of(pixels[at[:, 1], at[:, 0]] + 0.5, SIZE)
            inside = (xy > 4).all(-1)  # at the border of the photo, the black beyond it shows through
            np.testing.assert_allclose(shown[inside], xy[inside], atol=8)  # a colour is 2.5 pixels
            assert np.abs((shown - xy)[inside].mean(0)).max() < 1
            if low[0] < 0:
                assert pixels[:, :20].max() < 30
            attributes = "".join(source.columns[c][row] for c in wflw.ATTRIBUTES)
            assert attributes == FACES[split][i][2].replace(" ", "")
            box = np.array(FACES[split][i][1], float).reshape(2, 2)
            columns = [float(source.columns[f"box_{c}"][row]) for c in ("x0", "y0", "x1", "y1")]
            np.testing.assert_allclose(columns, ((box + 0.5 - low) * 256 / side - 0.5).ravel(), atol=1e-3)


def test_wrong_counts_name_the_list(src):
    with pytest.raises(
        UserError, match=r"rect_attr_train.txt has 3 faces where the official file has 7,500; .*partial"
    ):
        miniature.opened("wflw", src, partial=False)
    assert sum(wflw.COUNTS.values()) == 10_000


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda t: t.replace(" 1 0 0 0 1 0 ", " "),
            r"_train.txt, line 3 has 201 cells where 207 are needed: 196 coord",
        ),
        (lambda t: t.replace("100 120 199", "100 120 x"), r"_train.txt, line 1: 'x' is no number"),
        (lambda t: t.replace("100 120 199", "100 120 99"), r"_train.txt, line 1: the box 100 120 99 179 has no area"),
        (lambda t: t.replace(" 1 0 0 0 1 0 ", " 1 0 0 0 2 0 "), r"line 3: the attributes are 1 0 0 0 2 0; 0 and 1"),
        (lambda t: "9999 " + t.partition(" ")[2], r"line 1: point 0 at \(9999, .*\) lies far outside its image"),
        (
            lambda t: t.replace("0_12.jpg", "0_99.jpg"),
            r"_train.txt, line 1: .* holds no WFLW_images/0--Parade/0_Parade_Parade_0_99.jpg",
        ),
        (
            None,
            r"holds no list list_98pt_rect_attr_train.txt of WFLW; put it there as one of WFLW_annotations/list_98pt",
        ),
    ],
)
def test_bad_lists_are_told(src, tmp_path, change, error, monkeypatch):
    monkeypatch.setattr("uld_jax.data.builders.official.Files.expect", lambda *args: None)
    monkeypatch.setattr(wflw, "DATASETS", (wflw.DATASETS[0]._replace(counts={"train": 3, "test": 2}),))
    monkeypatch.setattr(miniature.builders, "find_dataset", lambda name: wflw.DATASETS[0])
    (tmp_path / "WFLW_images").symlink_to(src / "WFLW_images")
    for path in (src / LISTS).iterdir():  # in the folder itself, as some copies have them
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "list_98pt_rect_attr_train.txt"
    if change:
        path.write_text(change(path.read_text()))
    else:
        path.unlink()
    with pytest.raises(UserError, match=error):
        miniature.opened("wflw", tmp_path, partial=False)


def test_broken_photos_are_named(src, tmp_path):
    (tmp_path / "WFLW_annotations").symlink_to(src / "WFLW_annotations")
    for photo in PHOTOS:
        path = tmp_path / "WFLW_images" / photo
        path.parent.mkdir(parents=True)
        path.write_bytes((src / "WFLW_images" / photo).read_bytes())
    path.write_bytes(b"<html>")
    (tmp_path / "WFLW_images" / PHOTOS[1]).unlink()
    with pytest.raises(UserError, match=r"WFLW_images/1--Handshaking/1_Hand_1.jpg cannot be read as an image"):
        miniature.opened("wflw", tmp_path)
    with pytest.warns(BadFileWarning, match="1_Hand_1.jpg"):
        sources, _ = miniature.opened("wflw", tmp_path, on_bad_file="skip")
    assert [len(s) for s in sources.values()] == [2, 1]
    assert [s.skipped[0].file for s in sources.values()] == [f"WFLW_images/{PHOTOS[i]}" for i in (1, 2)]

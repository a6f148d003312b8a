"""CelebA and MAFL from a miniature of the official folder, and the papers' splits at the official size."""

import sys

import numpy as np
import pytest

from tests.data.builders import miniature
from uld_jax import __main__, data
from uld_jax.data import builders
from uld_jax.data.builders import celeba, official
from uld_jax.errors import UserError

FIVE = np.array([[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]], float)  # of the official first image
NAMES = [f"{i:06d}.jpg" for i in range(1, 31)]
PART = [0] * 18 + [1] * 6 + [2] * 6
MAFL_TEST = [NAMES[i] for i in (25, 3, 18)]  # of all three parts, not sorted
MAFL_TRAIN = [NAMES[i] for i in (29, 0, 20, 5, 8, 2, 7, 9, 11, 19)]


def points_of(i):
    return FIVE + np.array([i % 5, -(i % 3)])


def text_table(rows, count=None, names=None):
    head = [str(count), " ".join(names)] if count else []
    return "\n".join([*head, *("  ".join(map(str, row)) for row in rows)])


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    """The official layout: CRLF in one list, no final newline in the others, runs of blanks."""
    root = tmp_path_factory.mktemp("celeba")
    for folder in ("Eval", "Anno", "MAFL"):
        (root / folder).mkdir()
    for name in NAMES:
        miniature.picture(root / "Img/img_align_celeba" / name, (218, 178))
        miniature.picture(root / "Img/img_celeba" / name, (300, 420))
    lines = "".join(f"{n} {p}\r\n" for n, p in zip(NAMES, PART, strict=True))
    (root / "Eval/list_eval_partition.txt").write_bytes(lines.encode())
    ten = [f"{n}_{a}" for n in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for a in "xy"]
    rows = [[n, *points_of(i).ravel().astype(int)] for i, n in enumerate(NAMES)]
    (root / "Anno/list_landmarks_align_celeba.txt").write_text(text_table(rows, 30, ten))
    wild = [[n, *(2 * points_of(i)).ravel().astype(int)] for i, n in enumerate(NAMES)]
    (root / "Anno/list_landmarks_celeba.txt").write_text(text_table(wild, 30, ten))
    boxes = [[n, 100, 90, 161, 180] for n in NAMES]
    (root / "Anno/list_bbox_celeba.txt").write_text(
        text_table(boxes, 30, ["image_id", "x_1", "y_1", "width", "height"])
    )
    (root / "MAFL/training.txt").write_text("\n".join(MAFL_TRAIN))
    (root / "MAFL/testing.txt").write_text("\n".join(MAFL_TEST))
    return root


def test_mafl_comes_back_as_it_is(src, tmp_path):
    found = miniature.prepare("mafl", src, tmp_path)
    assert {split: sorted(s.names) for split, s in found.items()} == {
        "train": sorted(MAFL_TRAIN),
        "test": sorted(MAFL_TEST),
    }
    test = found["test"]
    assert test.spec.protocol == "mafl_5_eyes_part"
    assert test.spec.mirror == (1, 0, 2, 4, 3)
    for row, name in enumerate(test.names):
        np.testing.assert_allclose(miniature.points(test)[name], points_of(NAMES.index(name)), atol=1e-4)
        assert test.encoded(row) == (src / "Img/img_align_celeba" / name).read_bytes()
    assert test.file_sizes.tolist() == [[218, 178]] * 3


def test_each_paper_trains_on_its_own_images(src):
    ones = {name: miniature.opened(name, src)[0] for name in builders.DATASETS if name.startswith("celeba")}
    names = {name: [one.names for one in splits.values()] for name, splits in ones.items()}
    first = NAMES[:18]
    assert names["celeba"] == names["celeba_wild"] == [first, NAMES[18:24], NAMES[24:]]
    assert names["celeba_mallis"] == [[n for n in first if n != NAMES[3]], MAFL_TEST]
    mafl = {*MAFL_TEST, *MAFL_TRAIN}
    assert names["celeba_dve"] == [[n for n in first if n not in mafl], MAFL_TEST, NAMES[24:]]
    assert list(ones["celeba_dve"]) == ["train", "test", "val"]
    assert names["celeba_imm"] == names["celeba_mallis"]  # a tenth of MAFL's training images is the last one by name
    assert names["celeba_cgb"] == [[n for n in NAMES if n not in MAFL_TEST], MAFL_TEST]
    held_out, _ = miniature.opened("mafl_imm", src)
    assert held_out["val"].names == [NAMES[29]]
    assert held_out["train"].names == MAFL_TRAIN[1:]


@pytest.mark.parametrize(
    ("name", "size", "to_crop"),
    [
        ("mafl_dve", (178, 178), lambda xy: xy - (0, 30)),
        ("mafl_imm", (128, 128), lambda xy: (xy + 0.5 - (17.8, 21.8)) * (128 / 142.4, 128 / 174.4) - 0.5),
    ],
)
def test_crops_move_pixels_and_points_alike(src, tmp_path, name, size, to_crop):
    test = miniature.prepare(name, src, tmp_path)["test"]
    assert test.file_sizes.tolist() == [list(size)] * 3
    for row, file in enumerate(test.names):
        xy = points_of(NAMES.index(file))
        np.testing.assert_allclose(miniature.points(test)[file], to_crop(xy), atol=1e-4)
        pixels = data.decode_image(test.encoded(row), size[0])[0]
        at = np.round(to_crop(xy)).astype(int)
        shown = miniature.place_of(pixels[at[:, 1], at[:, 0]], (218, 178))
        np.testing.assert_allclose(shown, xy, atol=2.5)  # eight bits and JPEG


def test_the_crop_of_cgb_follows_the_points(src):
    source = miniature.opened("mafl_cgb", src)[0]["test"]
    row = source.names.index(NAMES[3])
    xy = points_of(3)
    # The points of image 3 span x from 72 to 111 and y from 109 to 154, so the box grows by int(0.7 * 42) = 29 pixels.
    assert (xy.min(0).tolist(), xy.max(0).tolist()) == ([72, 109], [111, 154])
    want = (xy + 0.5 - (43, 80)) * (128 / 97, 128 / 103) - 0.5
    np.testing.assert_allclose(miniature.points(source)[NAMES[3]], want, atol=1e-4)
    assert source.file_sizes[row].tolist() == [128, 128]


def test_the_crop_of_saic_is_tighter_for_the_same_images(src):
    ours, cgb = (miniature.opened(name, src)[0] for name in ("mafl_saic", "mafl_cgb"))
    assert {split: source.names for split, source in ours.items()} == {s: source.names for s, source in cgb.items()}
    # The box of the points of image 3 grows by int(0.16 * 42) = 6 pixels.
    want = (points_of(3) + 0.5 - (66, 103)) * (128 / 51, 128 / 57) - 0.5
    np.testing.assert_allclose(miniature.points(ours["test"])[NAMES[3]], want, atol=1e-4)


def test_photos_in_the_wild_have_boxes(src, tmp_path):
    test = miniature.prepare("mafl_wild", src, tmp_path)["test"]
    assert {name: values[0] for name, values in test.columns.items()} == {
        "box_x0": "100.000",
        "box_y0": "90.000",
        "box_x1": "260.000",
        "box_y1": "269.000",
    }
    np.testing.assert_allclose(miniature.points(test)[NAMES[3]], 2 * points_of(3), atol=1e-4)


def test_kaggles_csv_files_are_read(src, tmp_path):
    (tmp_path / "img_align_celeba").symlink_to(src / "Img/img_align_celeba")
    rows = ["image_id,partition", *(f"{n},{p}" for n, p in zip(NAMES, PART, strict=True))]
    (tmp_path / "list_eval_partition.csv").write_text("\n".join(rows))
    head = ",".join(["image_id", *(f"{n}_{a}" for n in ("e", "f", "n", "l", "r") for a in "xy")])
    rows = [head, *(",".join([n, *(f"{v:.0f}" for v in points_of(i).ravel())]) for i, n in enumerate(NAMES))]
    (tmp_path / "list_landmarks_align_celeba.csv").write_text("\n".join(rows))
    mine, theirs = (miniature.opened("celeba", where)[0]["val"] for where in (tmp_path, src))
    assert mine.names == theirs.names
    np.testing.assert_array_equal(mine.landmarks, theirs.landmarks)


def test_official_counts_follow_from_official_lists():
    """808, 96, 96 of MAFL's test images and 15,461, 1,810, 1,729 of its training images are in the three parts."""
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, *celeba.PARTS.values()])
    drawn = [
        rng.permutation(np.arange(a, b))[:n]
        for a, b, n in zip(starts[:-1], starts[1:], (16269, 1906, 1825), strict=True)
    ]
    in_test = celeba.CROSSING["test"].values()
    assert list(celeba.CROSSING["train"].values()) == [15_461, 1_810, 1_729]
    assert list(in_test) == [808, 96, 96]
    cut = [np.split(numbers, [n]) for numbers, n in zip(drawn, in_test, strict=True)]
    names = lambda numbers: [f"{n + 1:06d}.jpg" for n in numbers]
    parts = {s: names(range(a, b)) for s, a, b in zip(celeba.PARTS, starts[:-1], starts[1:], strict=True)}
    mafl = {"test": names(np.concatenate([c[0] for c in cut])), "train": names(np.concatenate([c[1] for c in cut]))}
    assert {split: len(listed) for split, listed in mafl.items()} == celeba.MAFL
    for name, dataset in builders.DATASETS.items():
        which, _, rule = name.partition("_")
        if which == "celeba" and rule not in ("", "wild"):
            assert len(celeba._training(parts, mafl, rule)) == dataset.counts["train"], name
        if which == "mafl" and rule not in ("cgb", "saic"):
            assert {s: len(n) for s, n in celeba._mafl_splits(mafl, rule).items()} == dataset.counts, name


def test_wrong_counts_name_the_list(src):
    with pytest.raises(
        UserError, match=r"list_eval_partition.txt has 30 images where the official file has 202,599; .*--allow_partial"
    ):
        miniature.opened("mafl", src, partial=False)
    _, notes = miniature.opened("mafl", src)
    assert len(notes) == 15
    assert "testing.txt has 3 images where the official file has 1,000" in "\n".join(notes)
    assert "split test of mafl has 3 images" in notes[-1]


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("Anno/list_landmarks_align_celeba.txt", lambda t: "<html>", r"line 1: '<html>' is not the number of images"),
        ("Anno/list_landmarks_align_celeba.txt", lambda t: t.replace("69  109", "69"), r"line 3 has 10 cells where 11"),
        (
            "Anno/list_landmarks_align_celeba.txt",
            lambda t: t.replace("69  109", "69  x"),
            r"000001.jpg: 'x' is no number",
        ),
        ("Anno/list_landmarks_align_celeba.txt", lambda t: t.replace("000004", "000044"), r"first 000004.jpg; get all"),
        ("Eval/list_eval_partition.txt", lambda t: t.replace("000002.jpg 0", "000002.jpg 3"), r"000002.jpg: '3' is no"),
        ("MAFL/testing.txt", lambda t: t.replace("000026", "900026"), r"testing.txt and .* first 900026.jpg"),
        ("MAFL/testing.txt", lambda t: t + "\n" + MAFL_TEST[0], r"000026.jpg is listed twice"),
        ("MAFL/testing.txt", None, r"holds no list testing.txt of MAFL; put it there as one of MAFL/testing.txt, "),
    ],
)
def test_bad_lists_are_told(src, tmp_path, file, change, error):
    for path in src.iterdir():
        if path.name == "Img":
            (tmp_path / "Img").symlink_to(path)
        else:
            (tmp_path / path.name).mkdir()
            for one in path.iterdir():
                (tmp_path / path.name / one.name).write_bytes(one.read_bytes())
    if change is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(change((tmp_path / file).read_text()))
    with pytest.raises(UserError, match=error):
        miniature.opened("mafl", tmp_path)


def test_absent_and_broken_photos(src, tmp_path, monkeypatch, capsys):
    for path in src.iterdir():
        if path.name != "Img":
            (tmp_path / path.name).symlink_to(path)
    photos = tmp_path / "img_align_celeba"
    photos.mkdir()
    for name in NAMES:
        (photos / name).write_bytes((src / "Img/img_align_celeba" / name).read_bytes())
    (photos / MAFL_TEST[0]).unlink()
    (photos / MAFL_TRAIN[2]).write_bytes((photos / MAFL_TRAIN[2]).read_bytes()[:2000])
    files = official.Files(tmp_path)
    files.expect = lambda *args: None
    dataset = builders.find_dataset("mafl")._replace(counts={"train": 10, "test": 3})
    splits = official.read_splits(dataset, files)
    with pytest.raises(
        UserError, match=r"holds no img_align_celeba/000026.jpg; get the images, or add --allow_partial"
    ):
        official.Official(dataset, files, splits["test"], splits=tuple(splits))
    out = tmp_path / "out"
    (out / "mafl/incomplete.A1B2C3_1.0.0").mkdir(parents=True)  # of a process that was killed
    argv = ["uld", "prepare", "--dataset=mafl", f"--src={tmp_path}", f"--data_dir={out}", "--allow_partial"]
    monkeypatch.setattr(sys, "argv", argv)
    assert __main__.main() == 1
    assert "000021.jpg" in capsys.readouterr().err
    assert not (out / "mafl/1.0.0").exists()
    monkeypatch.setattr(sys, "argv", [*argv, "--on_bad_file=skip"])
    assert __main__.main() == 3
    said = capsys.readouterr()
    assert f"use it with --config=...:dataset=mafl --config.data_dir={out}" in said.out
    assert "testing.txt has 3 images where the official file has 1,000" in said.err
    assert [path.name for path in (out / "mafl").iterdir()] == ["1.0.0"]
    skipped = (out / "mafl/1.0.0/skipped.csv").read_text()
    for text in (skipped, said.err):
        assert "img_align_celeba/000026.jpg is absent (no such file or directory); put it there" in text
    assert "000021.jpg" in skipped
    assert len(data.open_source("mafl", "test", data_dir=out, frame_size=8)) == 2
    monkeypatch.setattr(sys, "argv", argv)
    assert __main__.main() == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--dataset=mafl"], "--src is empty; give the folder with the official files of mafl"),
        (["--dataset=mafl", "--src={src}", "--scheme=ibug68"], "the points of mafl are known"),
        (["--dataset=mine", "--src={src}", "--allow_partial"], "--allow_partial is for official data sets"),
        (["--dataset=mafl", "--src=/none"], "--src=/none does not exist; give a folder of official files"),
        (["--dataset=mine", "--src=/none"], "--src=/none does not exist; give a folder of photos"),
        (["--dataset=mafl", "--src={empty}"], "empty is empty; put official files into it"),
        (["--dataset=mine", "--src={empty}"], "empty is empty; put photos into it, or give another folder"),
    ],
)
def test_flags_that_do_not_fit(src, tmp_path, monkeypatch, capsys, flags, error):
    (tmp_path / "empty").mkdir()
    argv = [flag.format(src=src, empty=tmp_path / "empty") for flag in flags]
    argv = ["uld", "prepare", f"--data_dir={tmp_path}", *argv]
    monkeypatch.setattr(sys, "argv", argv)
    assert __main__.main() == 1
    assert error in capsys.readouterr().err

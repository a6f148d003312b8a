"""Points of a table against annotation, beside a computation of a few lines."""

import numpy as np
import pytest
from PIL import Image

from uld_jax.errors import UserError
from uld_jax.evaluation import measure, points
from uld_jax.evaluation.points import Asked, evaluate_points

SIZES = {"train": 30, "test": 7}
POINTS, LANDMARKS = 3, 2
MISSING = [("test", 2, 1), ("train", 4, 0), ("train", 9, 2)]


@pytest.fixture
def made(tmp_path):
    """A folder of photos of several sizes with two annotated points, and a table of three that tell where these are."""
    rng = np.random.default_rng(0)
    root, lines = tmp_path / "photos", ["file,x0,y0,score0,x1,y1,score1,x2,y2,score2"]
    root.mkdir()
    found, truth, sides = {}, {}, {}
    for split, count in SIZES.items():
        sides[split] = rng.integers(30, 90, (count, 2))  # width, height
        share = rng.uniform(0.1, 0.9, (count, POINTS, 2))
        found[split] = (share * sides[split][:, None]).round(2)
        truth[split] = (found[split][:, :2] + rng.normal(0, 2, (count, LANDMARKS, 2))).round(2)
        notes = ["file,x0,y0,x1,y1"]
        for i in range(count):
            name = f"{split}{i}.png"
            Image.new("RGB", tuple(int(side) for side in sides[split][i]), "grey").save(root / name)
            notes.append(",".join([name, *(f"{v:.2f}" for v in truth[split][i].ravel())]))
            cells = [[f"{x:.2f}", f"{y:.2f}", "0.5"] for x, y in found[split][i]]
            for j in (j for where, row, j in MISSING if (where, row) == (split, i)):
                cells[j] = ["", "", ""] if j else [*cells[j][:2], "0"]
            lines.append(",".join([name, *(value for cell in cells for value in cell)]))
        (root / f"{split}.csv").write_text("\n".join(notes))
    table = tmp_path / "points.csv"
    table.write_text("\n".join(lines))
    return root, table, found, truth, sides


def test_the_protocol_is_chosen_once(made, tmp_path, monkeypatch):
    root, table, *_ = made
    monkeypatch.setattr(measure, "choose", lambda *given, **more: pytest.fail("chosen again"))
    numbers, _ = evaluate_points(Asked(str(table), str(tmp_path / "out"), frame_size=50, data_dir=str(root)))
    assert numbers["protocol"].startswith("folder_2_box")


def framed(xy, sides, side):
    """Points of files in the frame: the photo is scaled to its longer side, and lies in the frame's middle."""
    scale = (side / sides.max(1))[:, None, None]
    return (xy + 0.5) * scale - 0.5 + (side - sides[:, None] * scale) / 2


def brute_force(found, truth, sides, side=50, ridge=0.01):
    """Forward and backward error, and that of the mean shape: ridges and means as in `landmark_regression`."""
    x = {split: framed(found[split], sides[split], side) for split in SIZES}
    y = {split: framed(truth[split], sides[split], side) for split in SIZES}
    there = {split: np.ones(x[split].shape[:2], bool) for split in SIZES}
    for split, row, j in MISSING:
        there[split][row, j] = False
    fill = np.stack([x["train"][there["train"][:, j], j].mean(0) for j in range(POINTS)])
    filled = {split: np.where(there[split][..., None], x[split], fill) for split in SIZES}
    length = np.sqrt(np.prod(y["test"].max(1) - y["test"].min(1), -1))

    def predicted(a, b, at):
        mean_a, mean_b = a.mean(0), b.mean(0)
        a, b = a - mean_a, b - mean_b
        gram = a.T @ a
        return (at - mean_a) @ np.linalg.solve(gram + ridge * gram.max() * np.eye(len(gram)), a.T @ b) + mean_b

    flat = lambda v: v.reshape(len(v), -1)
    distance = lambda v, w: np.linalg.norm(v - w, axis=-1)
    guess = predicted(flat(filled["train"]), flat(y["train"]), flat(filled["test"])).reshape(y["test"].shape)
    forward = 100 * np.mean([distance(g, t).mean() / n for g, t, n in zip(guess, y["test"], length)])
    mean_shape = 100 * np.mean([distance(y["train"].mean(0), t).mean() / n for t, n in zip(y["test"], length)])
    backward = []
    for j in range(POINTS):
        rows, seen = there["train"][:, j], there["test"][:, j]
        guess = predicted(flat(y["train"])[rows], x["train"][rows, j], flat(y["test"]))
        backward.append(100 * np.mean((distance(guess, x["test"][:, j]) / length)[seen]))
    return forward, np.mean(backward), mean_shape


def test_points_are_measured_in_the_frame(made, tmp_path):
    root, table, found, truth, sides = made
    expected = brute_force(found, truth, sides)
    for frame_size in (50, 123):
        asked = Asked(str(table), str(tmp_path / "out"), data_dir=str(root), frame_size=frame_size)
        numbers, folder = evaluate_points(asked)
        got = [numbers[key] for key in ("forward_nme", "backward_nme", "mean_shape_nme")]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        assert numbers["protocol"] == "folder_2_box+missing_mean"
        assert (folder / "contact_sheet.png").exists()
    assert numbers["found_train"] == pytest.approx(1 - 2 / 90)
    assert numbers["found_test"] == pytest.approx(1 - 1 / 21)


def test_points_beyond_their_photos_count_and_are_told(made, tmp_path):
    root, table, _, _, sides = made
    lines = table.read_text().splitlines()
    lines[1] = f"train0.png,-{sides['train'][0].max()},5,1,5,5,1,{sides['train'][0, 0] + 20},5,1"
    table.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"points.csv: 2 points lie outside their photos, and count as found"):
        numbers, _ = evaluate_points(Asked(str(table), str(tmp_path / "out"), data_dir=str(root)))
    assert numbers["found_train"] == pytest.approx(1 - 2 / 90)


@pytest.mark.filterwarnings("error")
def test_points_in_another_unit_are_refused(made, tmp_path):
    root, table, *_ = made
    head, *lines = table.read_text().splitlines()
    name, x, *others = lines[2].split(",")
    lines[2] = ",".join([name, f"{float(x) * 1e30}", *others])
    table.write_text("\n".join([head, *lines]))
    with pytest.raises(UserError, match=r"points.csv, line 4: point 0 at .*e\+31, .* lies far outside its image of"):
        evaluate_points(Asked(str(table), str(tmp_path / "out"), data_dir=str(root)))
    assert not (tmp_path / "out").exists()


def test_direct_errors_need_no_points_of_training_images(made, tmp_path):
    root, table, found, truth, sides = made
    lines = ["file,x0,y0,x1,y1"]
    for i, (a, b) in enumerate(found["test"][:, :2]):
        lines.append(f"test{i}.png,{a[0]:.2f},{a[1]:.2f}," + (",".join(f"{v:.2f}" for v in b) if i != 2 else ","))
    table.write_text("\n".join(lines))
    asked = Asked(str(table), str(tmp_path / "out"), data_dir=str(root), direct=True, group_by="file")
    with pytest.raises(UserError, match="no column 'file'"):
        evaluate_points(asked)
    numbers, _ = evaluate_points(asked._replace(group_by=""))
    x, y = (framed(v["test"], sides["test"], 160) for v in (found, truth))
    x[2, 1] = framed(truth["train"], sides["train"], 160).mean(0)[1]
    error = np.linalg.norm(x[:, :2] - y, axis=-1).mean(1) / np.sqrt(np.prod(y.max(1) - y.min(1), -1))
    assert numbers["forward_nme"] == pytest.approx(100 * error.mean(), rel=1e-5)
    assert numbers["protocol"] == "folder_2_box+direct+missing_mean_shape"
    assert (numbers["backward_nme"], numbers["n_train"]) == (None, 0)


def test_names_of_both_splits_are_told_apart(made, tmp_path, monkeypatch):
    root, table, *_ = made
    opened = points.open_split

    def renamed(config, split):
        source = opened(config, split)
        source.names = [f"{i}.png" for i in range(len(source))]
        return source

    monkeypatch.setattr(points, "open_split", renamed)
    asked = Asked(str(table), str(tmp_path / "out"), data_dir=str(root))
    with pytest.raises(UserError, match=r"0.png is an image of both splits train and test"):
        evaluate_points(asked)


def test_protocol_settings_and_data_keys_are_understood(made, tmp_path):
    root, table, *_ = made
    asked = Asked(str(table), str(tmp_path / "out"), data_dir=str(root), protocol="mallis2024")
    numbers, _ = evaluate_points(asked._replace(settings={"fit_images": 20, "repeats": 3}, normaliser="0,1"))
    assert numbers["protocol"] == "folder_2_0-1+ridge_0.001_0.1+fit_20x3+missing_svt"
    assert numbers["spread"]["repeats"] == 3
    numbers, _ = evaluate_points(asked._replace(overrides=["eval.missing=mean", "data.normaliser=image"]))
    assert numbers["protocol"] == "folder_2_image+ridge_0.001_0.1+missing_mean"

"""The command line as a user meets it: files, numbers, exit codes and one-sentence errors."""

import csv
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from uld_jax import __main__ as cli
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.data.open import open_split
from uld_jax.detector import Detector
from uld_jax.engine import loop
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.protocol import Protocol
from uld_jax.ops import coordinates

SPEC = "--config=zeroshot:dataset=folder,k=4,preset=tiny"


def uld(capsys, monkeypatch, *args):
    """Exit code, stdout and stderr of a command, run in this process."""
    monkeypatch.setattr("sys.argv", ["uld", *map(str, args)])
    code = cli.main()
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A labelled folder: synthetic heads as PNG with train.csv and test.csv."""
    folder = tmp_path_factory.mktemp("photos")
    config = tiny.config(**{"data.rows": (24, 8)})
    for split in ("train", "test"):
        source = open_split(config, split)
        rows = []
        for i, image in enumerate(source.images()):
            name = f"{split}/{i:03d}.png"
            (folder / split).mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / name)
            xy = source.landmarks[i].reshape(-1)
            rows.append([name, source.columns["yaw"][i], *(f"{v:.2f}" for v in xy)])
        header = ["file", "yaw", *(f"{c}{j}" for j in range(20) for c in "xy")]
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A finished run on these photos."""
    workdir = tmp_path_factory.mktemp("runs") / "photos"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photos.parent)
        loop.run(short(photos.name), workdir)  # a path that says nothing in the tests' own folder
    return workdir


def short(photos, **more):
    return tiny.config(dataset="folder", data_dir=str(photos), **{"detector.steps": 4, "eval_every": 0} | more)


def test_evaluate_writes_its_report(run, photos, capsys, monkeypatch):
    args = ("evaluate", f"--workdir={run}", "--group_by=yaw:-90,0,90", "--label_counts=1,5,all")
    code, out, err = uld(capsys, monkeypatch, *args)
    assert code == 0, err
    metrics = json.loads((run / "eval/test/metrics.json").read_text())
    assert metrics["protocol"] == "folder_20_box+ridge_0.001_0.1"  # fewer images than the paper draws
    assert metrics["n_train"] == 24
    assert sum(g["n"] for g in metrics["groups"]["yaw"]) == 8
    assert [r["n"] for r in metrics["label_counts"]] == [1, 5, 24]
    assert metrics["label_counts"][-1]["forward_nme"] == pytest.approx(metrics["forward_nme"])
    assert f"{metrics['forward_nme']:.2f}" in out
    assert "spread" not in metrics
    code, _, err = uld(capsys, monkeypatch, "evaluate", f"--workdir={run}", "--repeats=3", "--fit_images=10")
    assert code == 0, err
    few = json.loads((run / "eval/test/metrics.json").read_text())
    assert (few["n_train"], few["spread"]["repeats"]) == (10, 3)
    assert few["spread"]["forward_nme"] > 0
    assert few["protocol"] == "folder_20_box+ridge_0.001_0.1+fit_10x3"
    code, out, err = uld(capsys, monkeypatch, "evaluate", f"--workdir={run}", "--protocol=jakab2018")
    assert code == 0, err
    assert "folder_20_box+ridge_0+no_intercept" in out
    code, _, err = uld(capsys, monkeypatch, "evaluate", f"--workdir={run}", "--protocol=jakob2018")
    assert code == 1
    assert "use one of jakab2018, " in err
    code, _, err = uld(capsys, monkeypatch, "evaluate", f"--workdir={run}", "--protocol=awan2023", "--repeats=3")
    assert code == 1
    assert "set eval.fit_images to the number that each repeat draws" in err
    code, _, err = uld(capsys, monkeypatch, "evaluate", f"--workdir={run}", "--stage=zeroshot")
    assert code == 0, err
    first = json.loads((run / "eval/test/zeroshot/metrics.json").read_text())
    assert first["stage"] == "zeroshot"
    assert json.loads((run / "config.json").read_text())["data_dir"] == str(photos)
    code, _, err = uld(capsys, monkeypatch, "evaluate", f"--workdir={run}", "--group_by=age")
    assert code == 1
    assert "no column 'age'" in err
    code, _, err = uld(capsys, monkeypatch, "evaluate", f"--workdir={run}", "--scheme=ibug68")
    assert code == 1
    assert "data.scheme=ibug68 has 68 points, and folder has 20 landmarks" in err
    now = (run / "config.json").read_text()
    older = json.loads(now)
    older["eval"] = {"ridge": 0.02} | {k: v for k, v in older["eval"].items() if k not in Protocol._fields}
    (run / "config.json").write_text(json.dumps(older))  # as runs had it when there was one strength
    code, _, err = uld(capsys, monkeypatch, "evaluate", f"--workdir={run}", "--normaliser=image", "--stage=zeroshot")
    (run / "config.json").write_text(now)
    assert code == 0, err
    first = json.loads((run / "eval/test/zeroshot/metrics.json").read_text())
    assert first["protocol"] == "folder_20_image+ridge_0.02"


def test_evaluate_takes_the_keys_that_its_messages_name(run, tmp_path, uld):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    config = json.loads((workdir / "config.json").read_text())
    del config["eval"]["min_found"], config["data"]["sides"]  # as in a run from before there were these keys
    (workdir / "config.json").write_text(json.dumps(config))
    evaluate_ = ("evaluate", f"--workdir={workdir}")

    def measured(*more):
        code, _, err = uld(*evaluate_, *more)
        assert code == 0, err
        return json.loads((workdir / "eval/test/metrics.json").read_text())

    box, image = measured(), measured("--config.data.normaliser=image", "--config.eval.ridge_forward=0")
    assert (box["normaliser"], image["normaliser"]) == ("box", "image")
    assert json.loads((workdir / "config.json").read_text()) == config
    for key, why in (
        ("seed=3", "a run keeps its config; evaluation can change --config.eval.KEY, --config.data.scheme"),
        ("data.fit=crop", "a run keeps its config"),
        ("eval.min_fond=0.1", "no key 'min_fond'"),
        ("eval.min_found=2", "eval.min_found is 2.0; use a share"),
        ("eval.fit_images=0", "set eval.fit_images to the number that each repeat draws"),
        ("data.sides=both", "data.sides is 'both'"),
    ):
        code, _, err = uld(*evaluate_, f"--config.{key}")
        assert (code, why in err) == (1, True), err
        assert len(err.strip().splitlines()) <= 2


def test_predict_on_every_kind_of_file(run, photos, tmp_path, capsys, monkeypatch):
    """The same picture in many guises has its landmarks in the same places."""
    folder, out = tmp_path / "in", tmp_path / "out"
    picture = Image.open(photos / "test/000.png").convert("RGB")
    big = picture.resize((120, 120), Image.Resampling.BICUBIC)
    grey = picture.convert("L")
    for name, image in {
        "plain.png": picture,
        "a/b/big.png": big,
        "a/rgba.png": picture.convert("RGBA"),
        "a/grey.png": grey,
        "c/cmyk.jpg": picture.convert("CMYK"),
        "c/wide.JPEG": Image.fromarray(np.pad(np.asarray(picture), ((0, 0), (20, 20), (0, 0)), mode="edge")),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, **({"quality": 100, "subsampling": 0} if name.lower()[-3:] != "png" else {}))
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(picture))))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    turned.save(folder / "turned.jpg", exif=exif, quality=100, subsampling=0)
    values = np.asarray(grey)
    Image.fromarray(values.astype(np.uint16) * 16).save(folder / "a/grey12.png")
    Image.fromarray(values.astype(np.uint16) * 8 + 21000).save(folder / "a/thermal.tif")
    Image.fromarray(values.astype(np.float32) / 255).save(folder / "a/float.tif")
    Image.fromarray(values // 4).save(folder / "a/six.bmp")
    picture.save(folder / "c/w.webp", lossless=True)
    picture.save(folder / "c/d.dat", "PNG")
    picture.save(folder / "c/j.jfif", "JPEG", quality=100, subsampling=0)
    (folder / "a/empty.jpg").touch()
    (folder / "c/text.jpg").write_text("not an image")
    (folder / "c/clip.mp4").write_bytes(b"a film")
    (folder / "notes.txt").write_text("of the day")
    code, _, err = uld(capsys, monkeypatch, "predict", f"--workdir={run}", f"--images={folder}", f"--out={out}")
    assert code == 3, err
    assert "a/empty.jpg" in err
    assert "c/text.jpg" in err
    assert "4 files were skipped, see " in err
    with (out / "landmarks.csv").open() as file:
        rows = {r["file"]: r for r in csv.DictReader(file)}
    with (out / "skipped.csv").open() as file:
        skipped = {r["file"]: r["reason"] for r in csv.DictReader(file)}
    assert list(skipped) == ["a/empty.jpg", "c/clip.mp4", "c/text.jpg", "notes.txt"]
    assert f"ffmpeg -i {folder / 'c/clip.mp4'}" in skipped["c/clip.mp4"]

    def points(name):
        return np.array([[float(rows[name][f"{c}{k}"]) for c in "xy"] for k in range(4)])

    plain = points("plain.png")
    assert plain.min() >= -1
    assert plain.max() <= 40
    np.testing.assert_allclose(points("a/b/big.png"), coordinates.rescale_points(plain, (40, 40), (120, 120)), atol=4)
    np.testing.assert_allclose(points("a/rgba.png"), plain, atol=1e-3)
    np.testing.assert_allclose(points("turned.jpg"), plain, atol=2)
    assert points("c/wide.JPEG")[:, 0].max() > 20
    for name in rows:
        overlay = out / "overlays" / f"{name.rpartition('.')[0]}.png"
        assert Image.open(overlay).width > 0
    assert Image.open(out / "contact_sheet.png").width > 100
    for name in ("grey12.png", "thermal.tif", "float.tif", "six.bmp"):
        np.testing.assert_allclose(points(f"a/{name}"), points("a/grey.png"), atol=1)
    for name in ("w.webp", "d.dat", "j.jfif"):
        np.testing.assert_allclose(points(f"c/{name}"), plain, atol=1)
    for name in skipped:
        (folder / name).unlink()
    assert uld(capsys, monkeypatch, "predict", f"--workdir={run}", f"--images={folder}", f"--out={out}")[0] == 0
    assert not (out / "skipped.csv").exists()


def test_predict_says_what_it_left_out_and_takes_single_files(run, photos, tmp_path, uld):
    out = tmp_path / "out put"
    Image.new("RGB", (50, 50), "red").save(tmp_path / "red.png")
    one = photos / "test/000.png"
    code, said, err = uld("predict", f"--workdir={run}", f"--out={out}", "--images", one, tmp_path / "red.png")
    assert code == 0, err
    assert said.startswith(f"2 images: {out}/landmarks.csv")
    assert "warning: 1 of 2 images show nothing (all of one colour), and have no landmarks: " in err
    assert err.strip().endswith("red.png")
    code, said, err = uld("predict", f"--workdir={run}", f"--out={out}", f"--images={one}")
    assert (code, said.partition(":")[0]) == (0, "1 images")
    assert [p.name for p in out.joinpath("overlays").rglob("*.png")] == ["000.png"]
    assert "predict 1/1" in err
    assert "warning" not in err
    code, _, err = uld("predict", f"--workdir={run}", f"--out={out}", f"--images={photos}/test/*.gif")
    assert (code, "no file is called like that" in err) == (1, True)


def test_training_goes_on_without_bad_files(photos, tmp_path, capsys, monkeypatch):
    folder, workdir = tmp_path / "in", tmp_path / "run"
    shutil.copytree(photos / "train", folder)
    for name in ("003.png", "007.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-30])
    (folder / "notes.txt").write_text("of the day")
    args = ["train", SPEC, f"--config.data_dir={folder}", f"--workdir={workdir}", "--config.stages=('zeroshot',)"]
    code, _, err = uld(capsys, monkeypatch, *args, "--config.data.on_bad_file=skip")
    assert code == 3, err
    assert f"3 files were skipped, see {workdir}/skipped.csv" in err
    assert "2 of 24 images" in err
    with (workdir / "skipped.csv").open() as file:
        assert [r["file"] for r in csv.DictReader(file)] == ["003.png", "007.png", "notes.txt"]
    assert json.loads((workdir / "run.json").read_text())["rows"] == 22


def test_detectors_take_arrays_of_every_kind(run, photos):
    detector = Detector.load(run)
    images = np.stack([np.asarray(Image.open(photos / f"test/{i:03d}.png").convert("RGB")) for i in range(3)])
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    opaque = np.concatenate([images, np.full((*grey.shape, 1), 255, np.uint8)], -1)
    wanted = detector.predict(images)
    np.testing.assert_array_equal(detector.predict(opaque).xy, wanted.xy)
    wanted = detector.predict(np.repeat(grey[..., None], 3, -1))
    for same in (grey, grey[..., None], list(grey)):
        np.testing.assert_array_equal(detector.predict(same).xy, wanted.xy)
    np.testing.assert_allclose(detector.predict(grey.astype(np.uint16) * 16).xy, wanted.xy, atol=1)
    for single in (images[0], grey[0], grey[0][..., None]):
        with pytest.raises(UserError, match=r"a single image; give images\[None\]"):
            detector.predict(single)
    with pytest.raises(UserError, match=r"image 1 is float32 of 40x40x3; give uint8"):
        detector.predict([images[0], images[1].astype(np.float32)])


def test_fit_places_annotated_points(run, photos, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "my run"
    shutil.copytree(run, workdir)
    args = (
        "predict",
        f"--workdir={workdir}",
        f"--images={photos / 'train'}",
        f"--out={tmp_path}",
        "--points=annotated",
    )
    code, _, err = uld(capsys, monkeypatch, *args)
    assert code == 1
    assert "run `uld fit" in err
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    with (photos / "train.csv").open() as file, (unlabelled / "train.csv").open("w", newline="") as copy:
        for row in (reader := csv.reader(file)):
            where = [""] * 2 if reader.line_num > 1 else row[6:8]
            csv.writer(copy).writerow([row[0], row[1], *row[2:6], *where, *row[8:]])
    (unlabelled / "train").symlink_to(photos / "train")
    code, _, err = uld(capsys, monkeypatch, "fit", f"--workdir={workdir}", f"--data_dir={unlabelled}")
    assert code == 1
    assert "landmark 2 is annotated on none of the 24 images" in err
    assert not list(workdir.glob("annotated_*"))
    code, out, err = uld(capsys, monkeypatch, "fit", f"--workdir={workdir}", f"--data_dir={photos}")
    assert code == 0, err
    assert "20 annotated landmarks from 24" in out
    saved = json.loads((workdir / "annotated_detector.json").read_text())["leave_one_out"]
    assert f"leave-one-out error  {saved['error']:.2f} % (normaliser: box)" in out
    assert uld(capsys, monkeypatch, *args)[0] == 0
    with (tmp_path / "landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = np.array([[[float(r[f"{c}{k}"]) for c in "xy"] for k in range(20)] for r in rows])
    source = open_split(short(photos), "train")
    error = np.linalg.norm(found - source.landmarks, axis=-1).mean()
    mean_shape = np.linalg.norm(source.landmarks.mean(0) - source.landmarks, axis=-1).mean()
    assert error < mean_shape
    # The annotated points of another stage are its own.
    code, _, err = uld(capsys, monkeypatch, *args, "--stage=zeroshot")
    assert code == 1
    fit = f"uld fit --workdir='{workdir}' --stage=zeroshot --data_dir=LABELLED_PHOTOS"
    assert f"run `{fit}` first" in err
    code, out, err = uld(capsys, monkeypatch, "fit", f"--workdir={workdir}", "--stage=zeroshot", f"--data_dir={photos}")
    assert code == 0, err
    use = shlex.split(out.partition("use them  ")[2])
    assert use[:4] == ["uld", "predict", f"--workdir={workdir}", "--stage=zeroshot"]
    assert uld(capsys, monkeypatch, *args, "--stage=zeroshot")[0] == 0
    with (tmp_path / "landmarks.csv").open() as file:
        other = list(csv.DictReader(file))
    assert other != rows


def test_fit_reports_what_leaving_an_image_out_costs(run, photos, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    detector = Detector.load(workdir)
    source = open_split(short(photos), "train")
    large = [np.asarray(Image.fromarray(image).resize((80, 80))) for image in source.images(range(8))]
    points = coordinates.rescale_points(source.landmarks[:8], (40, 40), (80, 80))
    with pytest.raises(UserError, match="none of the 8 images has an annotated point"):
        detector.fit(large, np.full_like(points, np.nan))
    points[5:, 3] = np.nan
    fitted = detector.fit(large, points)
    xy, score = detector.predict_frames(detector._frames(large)[0])
    strength = fitted.strength[0]
    errors = []
    for i in range(8):
        rest = np.arange(8) != i
        train = regression.LandmarkSet(xy, score, coordinates.rescale_points(points, (80, 80), (40, 40)))
        less = regression.fit_forward(train.take(np.flatnonzero(rest)), strength)
        there = regression.apply_forward(less, xy[i : i + 1], score[i : i + 1])[0]
        error = 2 * np.linalg.norm(there - train.truth[i], axis=-1)
        errors.append(np.nanmean(np.delete(error, 3)))
    assert detector.leave_one_out.unit == "pixels"
    # A refit takes its penalty from the images that are left, which are fewer.
    assert detector.leave_one_out.error == pytest.approx(np.mean(errors), rel=0.2)
    assert Detector.load(workdir).leave_one_out == detector.leave_one_out
    detector.fit(large[:1], points[:1])
    assert detector.leave_one_out.error is None


def test_training_never_reads_annotation(run, photos, tmp_path):
    """With noise in place of the landmarks the run ends in the same parameters."""
    noisy = tmp_path / "noisy"
    shutil.copytree(photos, noisy)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        with (noisy / f"{split}.csv").open() as file:
            header, *rows = csv.reader(file)
        rows = [[r[0], r[1], *(f"{v:.1f}" for v in rng.uniform(0, 39, len(r) - 2))] for r in rows]
        with (noisy / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    loop.run(short(noisy), tmp_path / "run")
    last = [json.loads((w / "metrics.jsonl").read_text().splitlines()[-1]) for w in (run, tmp_path / "run")]
    assert last[0]["params_sha256"] == last[1]["params_sha256"]
    numbers = [
        json.loads((w / "eval/test/metrics.json").read_text())["mean_shape_nme"] for w in (run, tmp_path / "run")
    ]
    assert numbers[0] != numbers[1]


def test_bad_input_is_one_sentence_before_any_compute(run, photos, tmp_path, capsys, monkeypatch):
    def refused(*args):
        code, out, err = uld(capsys, monkeypatch, *args)
        assert code == 1, (args, out, err)
        assert len(err.strip().splitlines()) == 1, err
        assert "Traceback" not in err
        return err

    def folder(**files):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.mkdir()
        for name, content in files.items():
            target = path / name.replace("__", "/").replace("_csv", ".csv").replace("_png", ".png")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    image = (photos / "test/000.png").read_bytes()

    def training(data_dir, *more):
        where = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        error = refused("train", SPEC, f"--config.data_dir={data_dir}", f"--workdir={where}", *more)
        assert not where.exists(), "a refused run leaves nothing behind"
        return error

    other = ("train", SPEC, f"--config.data_dir={photos}", f"--workdir={run}", "--config.seed=5")
    assert "data_dir" in refused("train", SPEC, f"--workdir={tmp_path / 'w'}")
    assert "does not exist" in training(tmp_path / "absent")
    assert "is empty" in training(folder())
    assert "holds no images" in training(folder(**{"note.txt": "hello"}))
    assert "absent.png" in training(folder(train_csv="file,x0,y0\nabsent.png,1,2\n", a_png=image))
    assert "line 2" in training(folder(train_csv="file,x0,y0\na.png,one,2\n", a_png=image))
    assert "outside" in training(folder(train_csv="file,x0,y0\na.png,900,2\n", a_png=image))
    assert "empty" in training(folder(a_png=b""))
    five = training(folder(**{f"{name}_png": image[:-30] for name in "abcde"}, f_png=image))
    assert "5 of 6 images" in five
    assert all(f"{name}.png (" in five for name in "abcde")
    assert "colour" in training(photos, "--config.colour=3")
    assert "wdith" in training(photos, "--config.detector.wdith=3")
    assert "multiple" in training(photos, "--config.detector.image_size=33")
    assert "config.stages is empty; name one stage" in training(photos, "--config.stages=()")
    assert "config.stages is empty; name one stage" in refused(*other, "--config.stages=()")
    assert "normaliser" in training(photos, "--config.data.normaliser=nose")
    synthetic = SPEC.replace("folder", "synthetic")
    for command in (
        ("train", synthetic, f"--config.data_dir={photos}", f"--workdir={tmp_path / 'w'}"),
        ("evaluate", f"--workdir={run}", "--dataset=synthetic", f"--data_dir={photos}"),
        ("prepare", "--dataset=synthetic", f"--src={photos}", f"--data_dir={tmp_path / 'w'}"),
    ):
        assert "is not read by" in refused(*command)
    assert "--src is empty; give the folder of photos of --dataset=mine" in refused(
        "prepare", "--dataset=mine", f"--data_dir={tmp_path / 'w'}"
    )
    assert "w is looked for by none of the stages zeroshot, detector" in training(photos, "--config.weights.fan=w")
    assert "--gcn_v=w is not read by --clustering=kmeans" in refused(
        "clusters", f"--workdir={run}", "--clustering=kmeans", "--gcn_v=w"
    )
    assert "preset" in refused("train", "--config=zeroshot:preset=huge", f"--workdir={tmp_path / 'w'}")
    assert "no config" in refused("train", "--config=nothing", f"--workdir={tmp_path / 'w'}")
    assert "config.json is missing" in refused("evaluate", f"--workdir={tmp_path / 'w'}")
    assert "use another --workdir" in refused(*other)
    assert "no stage 'last'" in refused("evaluate", f"--workdir={run}", "--stage=last")
    assert "does not exist" in refused(
        "predict", f"--workdir={run}", f"--images={tmp_path / 'absent'}", f"--out={tmp_path}"
    )
    with pytest.raises(UserError, match="does not divide over 3 devices; use a multiple of 3"):
        sharding.local_rows(type("Mesh", (), {"size": 3})(), 8)


def test_every_config_loads_with_every_data_set_it_names():
    for name in tiny.CONFIGS:
        for preset in ("paper", "small", "tiny"):
            for dataset in ("synthetic", "folder"):
                config = config_lib.load(f"{name}:dataset={dataset},preset={preset}")
                assert [config_lib.stage(config, s).name for s in config.stages] == list(config.stages)
                assert config.is_locked

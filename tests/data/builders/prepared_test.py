"""Writing a source as TFDS ArrayRecord and reading it back, without TensorFlow."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from uld_jax import __main__, data
from uld_jax.data import specs
from uld_jax.data.builders import prepared
from uld_jax.data.schemes import SCHEMES
from uld_jax.data.specs import DatasetSpec, Source, spec_of
from uld_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """photos/ with two annotated splits, and what `prepare` made of them in prepared/."""
    root = tmp_path_factory.mktemp("data")
    photos, rng = root / "photos", np.random.default_rng(0)
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for split, count in (("train", 9), ("test", 4)):
        lines = ["file,x0,y0,x1,y1,visible0,visible1,yaw,who"]
        for i in range(count):
            height, width = rng.integers(10, 40, 2)
            pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
            name = f"{split}/{i}." + ("png" if i % 2 else "jpg")
            (photos / split).mkdir(exist_ok=True)
            Image.fromarray(pixels if i % 3 else pixels[..., 0]).save(
                photos / name, **({"exif": exif} if i == 2 else {})
            )
            second = ",,1" if i == 1 else f"{rng.uniform(0, 9):.3f},{rng.uniform(0, 9):.3f},{i % 2}"
            x, y, visible = second.split(",")
            lines.append(f"{name},{rng.uniform(0, 9):.3f},2.5,{x},{y},1,{visible},{i - 3},Zoë {i}")
        (photos / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sources = {s: data.open_source("folder", s, data_dir=photos, frame_size=20) for s in ("train", "test")}
    assert prepared.prepare("my_faces", sources, root / "prepared") == root / "prepared/my_faces/1.0.0"
    return root


def test_everything_comes_back_at_any_frame_size(root):
    for split in ("train", "test"):
        for frame_size, fit in ((20, "pad"), (13, "crop")):
            source = data.open_source("folder", split, data_dir=root / "photos", frame_size=frame_size, fit=fit)
            found = data.open_source("my_faces", split, data_dir=root / "prepared", frame_size=frame_size, fit=fit)
            assert sorted(found.names) == sorted(source.names)
            assert found.names != source.names
            rows = [source.names.index(n) for n in found.names]
            np.testing.assert_array_equal(found.images(), source.images(rows))
            np.testing.assert_allclose(found.landmarks, source.landmarks[rows], atol=1e-5)
            np.testing.assert_array_equal(found.visible, source.visible[rows])
            np.testing.assert_array_equal(found.file_sizes, source.file_sizes[rows])
            np.testing.assert_array_equal(found.frame_maps, source.frame_maps[rows])
            assert found.columns == {c: [v[i] for i in rows] for c, v in source.columns.items()}
            assert found.encoded(0) == source.encoded(rows[0])
            assert found.spec == source.spec._replace(name="my_faces", splits=found.spec.splits)
            assert found.spec.protocol == "my_faces_2_box"
            assert set(found.spec.splits) == {"train", "test"}


def test_it_is_found_from_any_folder_above(root):
    places = [
        ("my_faces", "prepared"),
        ("my_faces", "prepared/my_faces"),
        ("my_faces", "prepared/my_faces/1.0.0"),
        ("folder", "prepared/my_faces"),
        ("folder", "prepared/my_faces/1.0.0"),
    ]
    sources = [data.open_source(n, "test", data_dir=root / d, frame_size=8) for n, d in places]
    assert len({s.fingerprint for s in sources}) == 1
    assert len(sources[0]) == 4
    with pytest.raises(UserError, match=r"no data set others under"):
        data.open_source("others", "test", data_dir=root / "prepared/my_faces", frame_size=8)
    with pytest.raises(UserError, match=r"has no split val; it has test, train"):
        data.open_source("my_faces", "val", data_dir=root / "prepared", frame_size=8)


def test_the_newest_version_is_taken(root, tmp_path):
    source = data.open_source("folder", "test", data_dir=root / "photos", frame_size=8)
    for version in ("1.2.0", "1.10.0"):
        prepared.prepare("two", {"test": source}, tmp_path, version=version)
    assert prepared.find(tmp_path, "two").name == "1.10.0"
    assert prepared.find(tmp_path) is None


def test_normaliser_may_be_chosen_when_it_is_read(root):
    def spec(normaliser):
        return data.open_source(
            "my_faces", "test", data_dir=root / "prepared", frame_size=8, normaliser=normaliser
        ).spec

    assert spec("image").protocol == "my_faces_2_image"
    assert (spec("0,1").protocol, spec("0,1").eyes) == ("my_faces_2_0-1", (0, 1))
    with pytest.raises(UserError, match=r"normaliser=eyes needs to know which points of my_faces"):
        spec("eyes")


class Drawn(Source):
    """A source without files, with a spec of its own."""

    def __init__(self):
        self.spec = DatasetSpec("drawn", 2, "eyes", (1, 0), (1, 0), ("left", "right"), ("train",))
        self.names, self.frame_size, self.columns, self.fingerprint = ["a", "b", "c"], 6, {}, "drawn"
        self.landmarks = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 3
        self.visible = np.array([[True, False]] * 3)
        self.frame_maps, self.file_sizes = np.tile([1.0, 1, 0, 0], (3, 1)), np.full((3, 2), 6, np.int32)

    def image(self, row):
        return np.random.default_rng(row).integers(0, 255, (6, 6, 3), np.uint8)


def test_a_source_without_files_is_written_as_png(tmp_path):
    prepared.prepare("drawn", {"train": Drawn()}, tmp_path)
    found = data.open_source("drawn", "train", data_dir=tmp_path, frame_size=6)
    rows = [Drawn().names.index(n) for n in found.names]
    np.testing.assert_array_equal(found.images(), Drawn().images(rows))
    np.testing.assert_allclose(found.landmarks, Drawn().landmarks[rows], atol=1e-6)
    assert found.spec == Drawn().spec


class Annotated(Drawn):
    """Three images with as many points as a scheme has."""

    def __init__(self, count, scheme):
        super().__init__()
        self.spec = spec_of("own", count, scheme=scheme, splits=("train",))
        self.landmarks = np.random.default_rng(0).normal(3, 1, (3, count, 2)).astype(np.float32)
        self.visible = np.ones((3, count), bool)


def test_a_prepared_data_set_knows_its_scheme(tmp_path):
    def spec(name, **asked):
        return data.open_source(name, "train", data_dir=tmp_path, frame_size=6, **asked).spec

    for name, count, scheme in (("face", 5, "eyes_nose_mouth5"), ("own", 5, "none"), ("body", 32, "human36m_32")):
        prepared.prepare(name, {"train": Annotated(count, scheme)}, tmp_path)
    assert (spec("face").protocol, spec("own").protocol) == ("face_5_eyes", "own_5_box")
    assert (spec("own").mirror, spec("own").scheme) == (None, "none")
    assert spec("own", scheme="eyes_nose_mouth5") == spec("face")._replace(name="own")
    assert spec("face", scheme="eyes_nose_mouth5", normaliser="box").protocol == "face_5_box"
    assert (spec("body").sides, spec("body", sides="object").sides) == ("image", "object")
    with pytest.raises(UserError, match=r"data.scheme=ibug68 has 68 points, and face has 5 landmarks"):
        spec("face", scheme="ibug68")


def test_a_data_set_of_before_keeps_what_was_written(tmp_path):
    """Schemes were told by the number of points then, and not written."""
    prepared.prepare("face", {"train": Annotated(5, "eyes_nose_mouth5")}, tmp_path)
    path = tmp_path / "face/1.0.0/metadata.json"
    written = json.loads(path.read_text())
    del written["scheme"]
    path.write_text(json.dumps(written))
    found = data.open_source("face", "train", data_dir=tmp_path, frame_size=6).spec
    assert (found.protocol, found.scheme, found.mirror) == ("face_5_eyes", "eyes_nose_mouth5", (1, 0, 2, 4, 3))
    assert found.eyes == SCHEMES[found.scheme].pairs["eyes"]


def test_it_can_go_to_worker_processes(root):
    source = data.open_source("my_faces", "train", data_dir=root / "prepared", frame_size=8)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).images(), source.images())


def test_mistakes_are_named(root, tmp_path):
    source = data.open_source("folder", "test", data_dir=root / "photos", frame_size=8)
    with pytest.raises(UserError, match=r"'My-Faces' cannot name a data set"):
        prepared.prepare("My-Faces", {"test": source}, tmp_path)
    with pytest.raises(UserError, match=r"'1.0' is not a version"):
        prepared.prepare("faces", {"test": source}, tmp_path, version="1.0")
    with pytest.raises(UserError, match=r"1.0.0 exists already"):
        prepared.prepare("my_faces", {"test": source}, root / "prepared")
    with pytest.raises(UserError, match=r"split test of faces has other landmarks or columns"):
        prepared.prepare("faces", {"train": Drawn(), "test": source}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def half_broken(tmp_path):
    """photos/ with two files cut short, and two that are no images at all."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    cut(folder / "1.jpg")
    cut(folder / "4.png")
    (folder / "notes.txt").write_text("x")
    return folder


def test_every_image_is_decoded_before_anything_is_written(half_broken, tmp_path, capsys, monkeypatch):
    source = data.open_source("folder", "train", data_dir=half_broken, frame_size=8)
    with pytest.raises(UserError, match=r"2 of 5 images in .*photos .*: 1.jpg \(.*, 4.png \(.*--on_bad_file"):
        prepared.prepare("five", {"train": source}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    args = ["uld", "prepare", "--dataset=five", f"--src={half_broken}", f"--data_dir={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", args)
    assert __main__.main() == 1
    err = capsys.readouterr().err
    assert "1.jpg" in err
    assert "4.png" in err
    monkeypatch.setattr(sys, "argv", [*args, "--on_bad_file=skip"])
    assert __main__.main() == 3
    out, err = capsys.readouterr()
    written = tmp_path / "out/five/1.0.0"
    assert f"written to {written}" in out
    assert f"3 files were skipped, see {written}/skipped.csv" in err
    table = (written / "skipped.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table] == ["file", "1.jpg", "4.png", "notes.txt"]
    found = data.open_source("five", "train", data_dir=tmp_path / "out", frame_size=8)
    assert sorted(found.names) == ["0.png", "2.png", "3.jpg"]


def test_errors_about_records_name_the_original_file(half_broken, tmp_path, monkeypatch):
    source = data.open_source("folder", "train", data_dir=half_broken, frame_size=8)
    source.checked = True  # as a writer from before, which looked at headers alone
    where = prepared.prepare("five", {"train": source}, tmp_path)
    found = data.open_source("five", "train", data_dir=tmp_path, frame_size=8)
    with pytest.raises(UserError, match=r"2 of 5 images in .*five/1.0.0 cannot be read") as error:
        found.images()
    assert "1.jpg (" in str(error.value)
    assert "4.png (" in str(error.value)
    row = found.names.index("4.png")
    with pytest.raises(UserError, match=rf"{where}/4.png cannot be read as an image"):
        found.image(row)
    with pytest.warns(specs.BadFileWarning, match="2 of 5 images"):
        rest = data.open_source("five", "train", data_dir=tmp_path, frame_size=8, on_bad_file="skip")
    assert sorted(rest.names) == ["0.png", "2.png", "3.jpg"]
    for row, name in enumerate(rest.names):
        np.testing.assert_array_equal(rest.image(row), data.decode_image(half_broken / name, 8)[0])
    assert rest.fingerprint != found.fingerprint


def test_damaged_record_files_are_told(root, tmp_path):
    shutil.copytree(root / "prepared", tmp_path / "copy")
    record = next((tmp_path / "copy").rglob("*train.array_record*"))
    content = bytearray(record.read_bytes())
    content[300:900] = bytes(600)
    record.write_bytes(content)
    with pytest.raises(UserError, match=r"record \d+ of split train in .* cannot be read .*write the data set again"):
        data.open_source("my_faces", "train", data_dir=tmp_path / "copy", frame_size=8).images()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metadata.json", None),
        *((file, text) for file in prepared._ABOUT for text in (b'{"cut', b"\xff", b"[]")),
        *((file, b"{}") for file in prepared._ABOUT[:2]),
    ],
)
def test_damaged_files_about_the_records_are_told(root, tmp_path, file, content):
    shutil.copytree(root / "prepared", tmp_path / "copy")
    where = tmp_path / "copy/my_faces/1.0.0"
    (where / file).unlink()
    if content is not None:
        (where / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"{file}.*; remove {where} and write the data set again with `uld prepare`$"):
        data.open_source("folder", "train", data_dir=tmp_path / "copy/my_faces", frame_size=8)


@pytest.mark.parametrize(
    "change",
    [
        lambda top, inner: inner["file"].update(pythonClassName="marker_of_a_module.Text"),
        lambda top, inner: inner["file"].update(python_class_name="marker_of_a_module.Text"),
        lambda top, inner: top.update(type="marker_of_a_module.Text", content="{}"),
        lambda top, inner: top.update(jsonFeature={"json": '{"a": {"type": "marker_of_a_module.T", "content": ""}}'}),
        lambda top, inner: inner["columns"]["featuresDict"]["features"].update(
            who={"pythonClassName": "marker_of_a_module.Text", "text": {}}
        ),
        lambda top, inner: inner["columns"].update(featuresDict=["marker_of_a_module.Text"]),
        lambda top, inner: inner.update(file="marker_of_a_module.Text"),
    ],
)
def test_no_class_that_prepare_does_not_write_is_imported(root, tmp_path, monkeypatch, change):
    """A module that leaves a file when it is imported stands for what a data set of a stranger could name."""
    (tmp_path / "marker_of_a_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(root / "prepared", tmp_path / "copy")
    path = tmp_path / "copy/my_faces/1.0.0/features.json"
    features = json.loads(path.read_text())
    change(features, features["featuresDict"]["features"])
    path.write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"features\.json holds .*, which `uld prepare` does not write; remove"):
        data.open_source("my_faces", "train", data_dir=tmp_path / "copy", frame_size=8)
    assert not (tmp_path / "imported").exists()


def test_tensorflow_is_never_imported(root):
    program = (
        "import sys; from uld_jax import data; from uld_jax.data.builders import prepared;"
        f"s = data.open_source('my_faces', 'test', data_dir={str(root / 'prepared')!r}, frame_size=8); s.images();"
        f"prepared.prepare('again', {{'test': s}}, {str(root / 'again')!r});"
        "assert 'tensorflow' not in sys.modules; print('no tensorflow')"
    )
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "no tensorflow\n", done.stdout + done.stderr

"""`uld predict` as a user meets it: every kind of file, and what is said of those left out."""

import csv

import numpy as np
from PIL import Image

from uld_jax.ops import coordinates


def test_predict_on_every_kind_of_file(run, photos, tmp_path, uld):
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
    code, _, err = uld("predict", f"--workdir={run}", f"--images={folder}", f"--out={out}")
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
    assert uld("predict", f"--workdir={run}", f"--images={folder}", f"--out={out}")[0] == 0
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

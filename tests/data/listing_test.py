"""Which files are pictures, and what is said of the others."""

import csv
import io
import os

import pytest
from PIL import Image, features

from uld_jax.data import listing
from uld_jax.errors import UserError


def encoded(kind, **options):
    out = io.BytesIO()
    Image.new("RGB", (24, 16), (200, 30, 30)).save(out, kind, **options)
    return out.getvalue()


def put(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_files_are_found_nested_and_in_order(tmp_path):
    names = ["b/2.PNG", "b/10.jpeg", "a.jpg", "b.jpg", "B/x.jpg", "c/d/e.Jpg", "c/f.jfif", "c/g.jpe"]
    names += [".hidden/x.jpg", "b/.x.jpg", "__MACOSX/a.jpg"]
    for name in [*names, "Thumbs.db", "b/train.csv"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "c" / "loop")
    found = ["B/x.jpg", "a.jpg", "b/10.jpeg", "b/2.PNG", "b.jpg", "c/d/e.Jpg", "c/f.jfif", "c/g.jpe"]
    assert listing.list_files(tmp_path) == (found, [])
    assert listing.list_images(tmp_path) == found
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        listing.list_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a folder"):
        listing.list_images(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF"])
def test_content_decides_and_not_the_ending(tmp_path, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encoded(kind)
    assert listing.kind_of(data[:64]) == {"MPO": "JPEG"}.get(kind, kind)
    put(tmp_path, plain=data, odd_DOT_dat=data)
    assert listing.list_files(tmp_path) == (["odd.dat", "plain"], [])


def test_every_other_file_is_listed_with_its_reason(tmp_path):
    mp4 = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"
    put(
        tmp_path,
        notes_DOT_txt=b"BMW parts, RIFF and more",
        empty_DOT_bin=b"",
        a__clip_one_DOT_dat=mp4,
        film_DOT_mov=b"anything",
        shot_DOT_NEF=b"II*\0" + bytes(60),
        paper_DOT_pdf=b"%PDF-1.7 ...",
        drawing_DOT_eps=b"%!PS-Adobe-3.0 EPSF-3.0\n",
        good_DOT_jpg=encoded("JPEG"),
    )
    os.mkfifo(tmp_path / "pipe")  # must not be waited for
    os.symlink(tmp_path / "gone", tmp_path / "link")
    images, others = listing.list_files(tmp_path)
    assert images == ["good.jpg"]
    why = dict(others)
    assert list(why) == sorted(why, key=lambda n: n.split("/"))
    texts = {"drawing.eps", "empty.bin", "notes.txt", "paper.pdf"}
    assert set(why) == texts | {"a/clip_one.dat", "film.mov", "link", "pipe", "shot.NEF"}
    assert all(str(tmp_path / name) in reason and "\n" not in reason for name, reason in why.items())
    for name in ("notes.txt", "paper.pdf", "drawing.eps"):
        assert "none of JPEG, PNG, TIFF, WebP, BMP, GIF, PPM, AVIF or HEIC" in why[name]
    for name in ("a/clip_one.dat", "film.mov"):
        stem = tmp_path / name.rpartition(".")[0]
        assert f"ffmpeg -i {tmp_path / name} -vf fps=2 -q:v 2 {stem}_frames/%06d.jpg" in why[name]
    assert "camera raw" in why["shot.NEF"]
    assert "no regular file" in why["pipe"]
    assert "link to nothing" in why["link"]
    assert "is empty" in why["empty.bin"]


def test_a_quoted_command_for_a_video_with_blanks(tmp_path):
    put(tmp_path, **{"my film_DOT_mp4": b"x"})
    assert f"ffmpeg -i '{tmp_path}/my film.mp4'" in listing.list_files(tmp_path).others[0].reason


@pytest.mark.parametrize(
    "own", [("config.json", "run.json"), ("landmarks.csv", "contact_sheet.png"), ("dataset_info.json", "features.json")]
)
def test_folders_that_the_package_wrote_are_passed_over(tmp_path, own):
    put(tmp_path, a_DOT_png=encoded("PNG"), run__pictures__b_DOT_png=encoded("PNG"), other__c_DOT_png=encoded("PNG"))
    assert len(listing.list_images(tmp_path)) == 3
    for name in own:
        put(tmp_path, **{f"run__{name.replace('.', '_DOT_')}": encoded("PNG")})
    assert listing.list_files(tmp_path) == (["a.png", "other/c.png"], [])


def test_all_bad_files_are_named_up_to_twenty():
    bad = [listing.BadFile(f"{i}.jpg", "the file is empty") for i in range(23)]
    text = str(listing.bad_files(bad[:5], 40, "photos"))
    assert text.startswith("5 of 40 images in photos cannot be read: 0.jpg (the file is empty), 1.jpg")
    assert "4.jpg" in text
    assert "on_bad_file=skip" in text
    text = str(listing.bad_files(bad, 40))
    assert "19.jpg (the file is empty) and 3 more" in text
    assert "20.jpg" not in text
    text = str(listing.bad_files(bad[:1], 40, "photos"))
    assert text.startswith("photos/0.jpg cannot be read as an image (the file is empty); mend or remove it; ")


def test_skipped_files_are_written_whole_and_taken_back(tmp_path):
    path = tmp_path / "new" / "skipped.csv"
    listing.write_skipped(path, [])
    skipped = [listing.Skipped("a, b.txt", 'no "picture"'), listing.Skipped("caf\udce9.txt", "x")]
    listing.write_skipped(path, skipped)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"file": "a, b.txt", "reason": 'no "picture"'}
    assert rows[1]["file"] == r"caf\xe9.txt"
    assert [p.name for p in path.parent.iterdir()] == ["skipped.csv"]
    assert listing.told(skipped, path).splitlines()[-1] == f"2 files were skipped, see {path}"
    listing.write_skipped(path, [])
    assert not path.exists()

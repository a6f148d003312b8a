"""Folders of photos, with and without csv, good and bad."""

import pickle
import unicodedata
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

from uld_jax import data, sharding
from uld_jax.data import decode, listing, schemes, specs
from uld_jax.data.folder import Folder
from uld_jax.data.pipeline import StreamReader
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

SIZES = {"b/2.png": (40, 30), "a.jpg": (20, 60), "b/1.JPG": (32, 32)}


def photos(folder, sizes=None):
    rng = np.random.default_rng(0)
    for name, size in (SIZES if sizes is None else sizes).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    return folder


def test_images_alone(tmp_path):
    photos(tmp_path)
    (tmp_path / "notes.txt").write_text("not an image")
    for split in ("train", "test", "anything"):
        source = Folder(tmp_path, split, frame_size=16)
        assert source.names == ["a.jpg", "b/1.JPG", "b/2.png"]
        assert source.landmarks is None
        assert source.visible is None
        assert source.columns == {}
        assert source.spec.landmarks is None
        assert source.spec.protocol is None
        assert source.file_sizes.tolist() == [[20, 60], [32, 32], [40, 30]]
    np.testing.assert_array_equal(source.image(1), data.decode_image(tmp_path / "b/1.JPG", 16)[0])
    np.testing.assert_array_equal(source.images()[2], source.image(2))
    np.testing.assert_array_equal(source.frame_maps[2], coordinates.frame_map((40, 30), (16, 16)))
    assert source.encoded(0) == (tmp_path / "a.jpg").read_bytes()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).image(2), source.image(2))


@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_without_csv_is_walked_once(tmp_path, monkeypatch, labelled):
    photos(tmp_path)
    if labelled:
        (tmp_path / "a.pts").write_text("version: 1\nn_points: 1\n{\n3 4\n}\n")
    walks, walk = [], listing._walk_local
    monkeypatch.setattr(listing, "_walk_local", lambda root: walks.append(root) or walk(root))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(Folder(tmp_path, "train", frame_size=16)) == 3
    assert walks == [str(tmp_path)]


def test_annotation(tmp_path):
    photos(tmp_path)
    (tmp_path / "train.csv").write_text(
        "\ufefffile,yaw,x0,y0,x1,y1,visible0,visible1,x_note\n"
        'b/2.png,-3.5,1,2,29.5,39,1,0,"a, b"\n'
        "\n"
        "./a.jpg,10,,,4,5,,1,\n"
    )
    source = Folder(tmp_path, "train", frame_size=16)
    assert source.names == ["a.jpg", "b/1.JPG", "b/2.png"]  # every image; the csv only annotates
    assert source.spec.protocol == "folder_2_box"
    assert source.spec.splits == ("train",)
    assert source.columns == {"yaw": ["10", "", "-3.5"], "x_note": ["", "", "a, b"]}
    assert source.landmarks.dtype == np.float32
    np.testing.assert_array_equal(source.visible, [[False, True], [False, False], [True, False]])
    np.testing.assert_array_equal(specs.annotated(source), [[False, True], [False, False], [True, True]])
    np.testing.assert_array_equal(specs.labelled(source), [0, 2])
    for row, point, xy in ((2, 0, (1, 2)), (2, 1, (29.5, 39)), (0, 1, (4, 5))):
        fmap = coordinates.frame_map(SIZES[source.names[row]], (16, 16))
        np.testing.assert_allclose(source.landmarks[row, point], np.array(xy) * fmap[:2] + fmap[2:], atol=1e-5)
        back = coordinates.frame_to_file(source.landmarks[row].astype(float), source.frame_maps[row])
        np.testing.assert_allclose(back[point], xy, atol=1e-5)


def test_files_are_found_whatever_unicode_form_the_csv_is_typed_in(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Zoë/é.png") for form in ("NFC", "NFD"))
    photos(tmp_path, {composed: (8, 8), "a.png": (8, 9)})
    table = tmp_path / "train.csv"
    table.write_text(f"file,x0,y0\n{decomposed},1,2\na.png,3,4\n", encoding="utf-8")
    source = Folder(tmp_path, "train", frame_size=8)
    assert source.names == sorted([composed, "a.png"])
    assert source.image(0).shape == (8, 8, 3)
    table.write_text(f"file,x0,y0\n{decomposed},1,2\n{composed},3,4\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 3: .* is the file of line 2, typed otherwise; keep one of them"):
        Folder(tmp_path, "train", frame_size=8)


def test_csv_without_points_and_without_visibility(tmp_path):
    photos(tmp_path)
    (tmp_path / "train.csv").write_text("file,x0,y0\na.jpg,1,2\n")
    (tmp_path / "test.csv").write_text("file,person\nb/2.png,Ada\n")
    train = Folder(tmp_path, "train", frame_size=16)
    assert train.visible.tolist() == [[True], [False]]
    assert train.spec.splits == ("train", "test")
    test = Folder(tmp_path, "test", frame_size=16)
    assert (test.names, test.columns) == (["b/2.png"], {"person": ["Ada"]})
    assert len(specs.labelled(test)) == 0
    (tmp_path / "train.csv").unlink()
    assert Folder(tmp_path, "test", frame_size=16).landmarks is None


def test_few_labels_among_many_photos(tmp_path):
    """Training sees every image but those for test; the others have no points."""
    photos(tmp_path, {f"{i}.png": (8, 8) for i in range(30)})
    (tmp_path / "train.csv").write_text("file,x0,y0\n7.png,1,2\n3.png,3,4\n")
    train = Folder(tmp_path, "train", frame_size=8)
    assert (len(train), train.spec.splits) == (30, ("train",))
    assert [train.names[row] for row in specs.labelled(train)] == ["3.png", "7.png"]
    assert train.place(0) == "0.png"
    assert train.place(train.names.index("3.png")) == f"{tmp_path}/train.csv, line 3"
    with pytest.raises(UserError, match=r"has no split test \(it has train\); add test.csv, or a column `split`"):
        Folder(tmp_path, "test", frame_size=8)
    for csv in ("file,split,x0,y0\n7.png,,1,2\n3.png,train,3,4\n9.png,Test,1,1\n", None):
        if csv is None:  # the same by a test.csv alone
            (tmp_path / "train.csv").unlink()
            (tmp_path / "test.csv").write_text("file,x0,y0\n9.png,1,1\n")
        else:
            (tmp_path / "train.csv").write_text(csv)
        train, test = (Folder(tmp_path, split, frame_size=8) for split in ("train", "test"))
        assert (len(train), test.names, train.spec.splits) == (29, ["9.png"], ("train", "test"))
        assert "9.png" not in train.names
        assert len(specs.labelled(train)) == (0 if csv is None else 2)
        assert len(specs.labelled(test)) == 1


def test_splits_that_leave_nothing_or_overlap(tmp_path):
    photos(tmp_path)
    (tmp_path / "test.csv").write_text("file,x0,y0\na.jpg,1,2\nb/1.JPG,1,2\nb/2.png,1,2\n")
    with pytest.raises(UserError, match=r"all 3 images of .* are listed as test images, and none is left to train on"):
        Folder(tmp_path, "train", frame_size=8)
    assert len(Folder(tmp_path, "test", frame_size=8)) == 3
    (tmp_path / "train.csv").write_text("file,x0,y0\nb/1.JPG,1,2\n")
    with pytest.raises(UserError, match=r"test.csv, line 3: b/1.JPG is listed in .*train.csv, line 2 too"):
        Folder(tmp_path, "train", frame_size=8)
    (tmp_path / "train.csv").write_text("file,split\nb/1.JPG,val\n")
    with pytest.raises(UserError, match=r"train.csv, line 2, column split: 'val' is neither train nor test"):
        Folder(tmp_path, "train", frame_size=8)


def test_a_csv_of_all_images_gives_their_order(tmp_path):
    photos(tmp_path)
    (tmp_path / "train.csv").write_text("file,x0,y0\nb/2.png,1,2\nb/1.JPG,1,2\na.jpg,3,3\n")
    assert Folder(tmp_path, "train", frame_size=8).names == ["b/2.png", "b/1.JPG", "a.jpg"]
    (tmp_path / "train.csv").write_text("file,x0,y0\nb/2.png,1,2\na.jpg,3,3\n")
    assert Folder(tmp_path, "train", frame_size=8).names == ["a.jpg", "b/1.JPG", "b/2.png"]
    (tmp_path / "test.csv").write_text("file,x0,y0\nb/1.JPG,1,2\n")
    assert Folder(tmp_path, "train", frame_size=8).names == ["b/2.png", "a.jpg"]


def test_masks_are_no_training_images(tmp_path):
    photos(tmp_path, SIZES | {"masks/a.png": (20, 60), "masks/2.png": (40, 30), "b/1_mask.png": (32, 32)})
    (tmp_path / "train.csv").write_text("file,mask\na.jpg,masks/a.png\nb/1.JPG,b/1_mask.png\n")
    assert Folder(tmp_path, "train", frame_size=8).names == ["a.jpg", "b/1.JPG", "b/2.png"]


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("", "no column `file`"),
        ("file,x0,y0\n", "lists no images"),
        ("name,x0,y0\na.jpg,1,2\n", "no column `file`"),
        ("file,x0,y0,x0\na.jpg,1,2,3\n", "column 'x0' twice"),
        ("file,x0,y0,x1\na.jpg,1,2,3\n", "2 landmarks but no column y1"),
        ("file,x0,y0,x2,y2\na.jpg,1,2,3,4\n", "3 landmarks but no column x1"),
        ("file,y0\na.jpg,1\n", "no column x0"),
        ("file,x0,y0,visible0,visible1\na.jpg,1,2,1,1\n", "column visible1 but no x1 and y1"),
        ("file,x0,y0,x1,y1,visible0\na.jpg,1,2,3,4,1\n", "no column visible1"),
        ("file,x0,y0\na.jpg,1\n", "line 2 has 2 columns where the first line has 3"),
        ("file,x0,y0\na.jpg,1,2\na.jpg,1,2\n", "line 3: a.jpg is listed in line 2"),
        ("file,x0,y0\na.jpg,1,2\nb/2.png,1,1O\n", "line 3, column y0: '1O' is not a number"),
        ("file,x0,y0\na.jpg,nan,2\n", "line 2: one of x0 and y0 is empty"),
        ("file,x0,y0\na.jpg,1,inf\n", "line 2, column y0: 'inf' is not a number"),
        ("file,x0,y0\na.jpg,,2\n", "line 2: one of x0 and y0 is empty"),
        ("file,x0,y0,visible0\na.jpg,1,2,0.5\n", "line 2, column visible0: not 0 or 1"),
        ("file,x0,y0,visible0\na.jpg,1,2,\n", "line 2, column visible0: not 0 or 1"),
        ("file,x0,y0\na.jpg,1,2\nno.jpg,1,2\nc/no.jpg,1,2\n", r"line 4: c/no.jpg is not in .* \(2 such files\)"),
        ("file,x0,y0\n../a.jpg,1,2\n", "line 2: ../a.jpg is not inside the folder"),
        ("file,x0,y0\n/etc/a.jpg,1,2\n", "not inside the folder"),
        ("file,x0,y0\n,1,2\n", "line 2: the column `file` is empty"),
        ("file,x0,y0\nb/2.png,3,4\na.jpg,120.5,2\n", r"line 3: point 0 at \(120.5, 2\) lies far outside .* 60 x 20"),
        ("file,x0,y0\na.jpg,1,-20.5\nb/2.png,0,999\n", r"line 2: point 0 .* \(2 images affected\)"),
        ('file,x0,y0\n"a.jpg,1,2\n', "line 2: not valid csv"),
        ("file,x0,y0\nbad.jpg,1,2\n", "bad.jpg cannot be read as an image .*another kind"),
    ],
)
def test_bad_csv_is_one_sentence(tmp_path, csv, message):
    photos(tmp_path)
    if "bad" in csv:
        (tmp_path / "bad.jpg").write_text("text")
    (tmp_path / "train.csv").write_text(csv)
    with pytest.raises(UserError, match=message) as error:
        Folder(tmp_path, "train", frame_size=16)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_points_a_little_outside_are_fine(tmp_path):
    photos(tmp_path)
    (tmp_path / "train.csv").write_text("file,x0,y0,x1,y1\na.jpg,-59,39,119,-19\n")
    assert np.isfinite(Folder(tmp_path, "train", frame_size=16).landmarks[0]).all()


def test_the_sides_of_32_joints(tmp_path):
    photos(tmp_path)
    header = ",".join(f"{axis}{i}" for i in range(32) for axis in "xy")
    cells = ",".join(f"{32 - i},{i / 2}" for i in range(32))  # every joint stands right of the next
    (tmp_path / "train.csv").write_text(f"file,{header}\nb/1.JPG,{cells}\n")
    (tmp_path / "a.jpg").unlink()
    kept = Folder(tmp_path, "train", frame_size=32, scheme="human36m_32", sides="object")
    turned = Folder(tmp_path, "train", frame_size=32, scheme="human36m_32")
    own = Folder(tmp_path, "train", frame_size=32)
    np.testing.assert_array_equal(own.landmarks, kept.landmarks)
    assert own.spec.protocol == "folder_32_box"
    assert kept.landmarks[0, :, 0].tolist() == list(range(32, 0, -1))
    np.testing.assert_array_equal(turned.landmarks, schemes.image_sides(kept.landmarks))
    assert turned.landmarks[0, [1, 6, 2, 7], 0].tolist() == [26, 31, 25, 30]
    assert kept.spec.protocol == "folder_32_shoulders"
    assert turned.spec.protocol == "folder_32_shoulders_image_sides"
    with pytest.raises(UserError, match=r"data.sides is 'left'"):
        Folder(tmp_path, "train", frame_size=32, sides="left")


def test_places_name_the_line(tmp_path):
    photos(tmp_path)
    assert Folder(tmp_path, "train", frame_size=16).place(1) == "b/1.JPG"
    (tmp_path / "train.csv").write_text("file\n\nb/1.JPG\n")
    source = Folder(tmp_path, "train", frame_size=16)
    assert source.place(0) == "a.jpg"
    assert source.place(1) == f"{tmp_path}/train.csv, line 3"
    assert source.data_dir == str(tmp_path)


def test_csv_that_is_not_text(tmp_path):
    photos(tmp_path)
    (tmp_path / "train.csv").write_bytes(b"file,x0,y0\n\xff\xfe\x00,1,2\n")
    with pytest.raises(UserError, match=r"train.csv is not a text file in UTF-8"):
        Folder(tmp_path, "train", frame_size=16)


def test_splits_must_agree_and_exist(tmp_path):
    photos(tmp_path)
    (tmp_path / "train.csv").write_text("file,x0,y0\na.jpg,1,2\n")
    (tmp_path / "test.csv").write_text("file,x0,y0,x1,y1\nb/2.png,1,2,3,4\n")
    with pytest.raises(UserError, match=r"train.csv has 1 landmarks but .*test.csv has 2"):
        Folder(tmp_path, "train", frame_size=16)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"data_dir is not set"):
        Folder("", "train", frame_size=16)
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        Folder(tmp_path / "nowhere", "train", frame_size=16)
    with pytest.raises(UserError, match=r"is empty"):
        Folder(tmp_path, "train", frame_size=16)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes.txt is a file"):
        Folder(tmp_path / "notes.txt", "train", frame_size=16)
    with pytest.raises(UserError, match=r"holds no images \(JPEG"):
        Folder(tmp_path, "train", frame_size=16)


def test_unreadable_images_are_counted(tmp_path):
    photos(tmp_path)
    (tmp_path / "b" / "0.jpg").touch()
    with pytest.raises(
        UserError, match=r"b/0.jpg cannot be read as an image \(the file is empty\); mend or remove it; "
    ):
        Folder(tmp_path, "train", frame_size=16)
    (tmp_path / "z.png").write_text("x")
    (tmp_path / "c.tif").symlink_to(tmp_path / "gone")
    with pytest.raises(
        UserError,
        match=r"3 of 6 images in .* cannot be read: b/0.jpg \(the file is empty\), c.tif \(it is a link to nothing\), "
        r"z.png \(its content is of another kind.*on_bad_file=skip",
    ):
        Folder(tmp_path, "train", frame_size=16)


def test_files_that_cannot_be_read_are_left_out_when_that_is_asked(tmp_path):
    photos(tmp_path)
    whole = (tmp_path / "b/2.png").read_bytes()
    (tmp_path / "b" / "0.jpg").touch()
    (tmp_path / "z.png").write_bytes(whole[: len(whole) // 2])  # only decoding shows it
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.warns(specs.BadFileWarning, match=r"2 of 5 images .*: b/0.jpg .*, z.png .*; they are left out"):
        source = Folder(tmp_path, "train", frame_size=16, on_bad_file="skip")
    assert source.names == ["a.jpg", "b/1.JPG", "b/2.png"]
    assert source.images().shape == (3, 16, 16, 3)
    assert source.checked
    assert [one.file for one in source.skipped] == ["b/0.jpg", "notes.txt", "z.png"]
    assert all(str(tmp_path / one.file) in one.reason for one in source.skipped)
    (tmp_path / "train.csv").write_text("file,x0,y0,who\nz.png,9,9,Z\na.jpg,1,2,A\nb/0.jpg,5,5,B\nb/2.png,3,4,C\n")
    with pytest.warns(specs.BadFileWarning):
        source = Folder(tmp_path, "train", frame_size=16, on_bad_file="skip")
    rows = [source.names.index(name) for name in ("a.jpg", "b/2.png")]
    assert not {"z.png", "b/0.jpg"} & set(source.names)
    assert [source.columns["who"][row] for row in rows] == ["A", "C"]
    back = coordinates.frame_to_file(source.landmarks[rows].astype(float), source.frame_maps[rows])
    np.testing.assert_allclose(back[:, 0], [[1, 2], [3, 4]], atol=1e-5)
    assert [source.place(row).rpartition("line ")[2] for row in rows] == ["3", "5"]
    for name in ("a.jpg", "b/2.png", "b/1.JPG"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="there is nothing left"):
        Folder(tmp_path, "train", frame_size=16, on_bad_file="skip")
    with pytest.raises(UserError, match=r"data.on_bad_file is 'never'; use error or skip"):
        Folder(tmp_path, "train", frame_size=16, on_bad_file="never")


def test_files_cut_short_are_all_named_when_they_are_decoded(tmp_path):
    photos(tmp_path)
    for name in ("b/2.png", "a.jpg"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    source = Folder(tmp_path, "train", frame_size=16)
    with pytest.raises(UserError, match=r"2 of 3 images in .*: a.jpg \(.*\), b/2.png \("):
        source.images()
    assert [one.file for one in source.broken()] == ["a.jpg", "b/2.png"]
    with pytest.raises(UserError, match=r"2 of 3 images in .*: a.jpg \(.*\), b/2.png \("):
        list(StreamReader(source, sharding.make_mesh(jax.devices()[:1]), 1).ordered())


def test_fingerprint_follows_images_not_annotation(tmp_path):
    photos(tmp_path)

    def fingerprint(csv, frame=16, fit="pad"):
        (tmp_path / "train.csv").write_text(csv)
        return Folder(tmp_path, "train", frame_size=frame, fit=fit).fingerprint

    one = fingerprint("file,x0,y0\na.jpg,1,2\nb/2.png,3,4\n")
    assert one == fingerprint("file,x0,y0,yaw\na.jpg,7,9,3\nb/2.png,,,1\n")
    assert one == fingerprint("file\nb/2.png\na.jpg\n") == fingerprint("file\na.jpg\n")
    others = {
        fingerprint("file,split\na.jpg,test\n"),
        fingerprint("file\na.jpg\nb/2.png\n", frame=17),
        fingerprint("file\na.jpg\nb/2.png\n", fit="crop"),
    }
    photos(tmp_path, {"a.jpg": (20, 61)})
    others.add(fingerprint("file\na.jpg\nb/2.png\n"))
    assert len(others) == 4
    assert one not in others


def test_buckets_are_read_through_epath(tmp_path, monkeypatch):
    # A bucket has no `open`; with it taken away, a plain folder is read the same way.
    photos(tmp_path, SIZES | {".hidden/x.jpg": (4, 4)})
    local = Folder(tmp_path, "train", frame_size=16)
    for module in (decode, listing):
        monkeypatch.setattr(module, "is_local", lambda path: False)
        monkeypatch.setattr(module, "open", None, raising=False)
    remote = Folder(tmp_path, "train", frame_size=16)
    assert (remote.names, remote.fingerprint) == (local.names, local.fingerprint)
    np.testing.assert_array_equal(remote.file_sizes, local.file_sizes)
    np.testing.assert_array_equal(remote.image(1), local.image(1))

"""Boxes, masks and keypoints of the user's own, in the frame."""

import doctest

import numpy as np
import pytest
from PIL import Image

from uld_jax import data
from uld_jax.data import objects
from uld_jax.data.specs import Source, spec_of
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

SIZES = {"b/2.png": (40, 30), "a.jpg": (20, 61), "c.png": (32, 32)}  # height, width
FITS = coordinates.FITS


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "b").mkdir()
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def opened(root, csv=None, fit="pad", frame_size=24):
    if csv is not None:
        (root / "train.csv").write_text(csv)
        for name in SIZES:  # an image that no row names has neither box nor mask
            if f"\n{name}" not in csv:
                (root / name).unlink(missing_ok=True)
    return data.open_source("folder", "train", data_dir=root, frame_size=frame_size, fit=fit)


BOXES = "file,box_x0,box_y0,box_x1,box_y1\n"


@pytest.mark.parametrize("fit", FITS)
def test_boxes_are_in_the_frame(root, fit):
    raw = {"b/2.png": (1, 2, 29.5, 39), "a.jpg": (-3, 0.25, 30, 70)}
    csv = BOXES + "".join(f"{name},{','.join(map(str, box))}\n" for name, box in raw.items())
    source = opened(root, csv, fit)
    found = objects.boxes(source)
    assert found.dtype == np.float32
    for name, box in raw.items():
        row = source.names.index(name)
        scale_x, scale_y, shift_x, shift_y = coordinates.frame_map(SIZES[name], (24, 24), fit)
        expected = [box[0] * scale_x + shift_x, box[1] * scale_y + shift_y]
        expected += [box[2] * scale_x + shift_x, box[3] * scale_y + shift_y]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        (
            "file,box_x0,box_y0,box_x1\na.jpg,1,2,3\n",
            r"folder has no csv column box_y1; give the columns box_x0,box_y0",
        ),
        (BOXES + "a.jpg,1,2,9,8\nc.png,1,2,nine,8\n", r"train.csv, line 3, column box_x1: 'nine' is not a number"),
        (BOXES + "a.jpg,1,,9,8\n", r"train.csv, line 2, column box_y0: empty; every image needs a box"),
        (BOXES + "a.jpg,1,2,9,8\nc.png,9,2,9,8\n", r"train.csv, line 3: the box \(9, 2, 9, 8\) of c.png has no area"),
        (BOXES + "a.jpg,1,8,9,2\n", r"line 2: the box \(1, 8, 9, 2\) of a.jpg has no area"),
        (BOXES + "a.jpg,61,2,70,8\n", r"line 2: the box \(61, 2, 70, 8\) of a.jpg lies beside its image"),
    ],
)
def test_bad_boxes_are_one_sentence(root, csv, message):
    with pytest.raises(UserError, match=message) as error:
        objects.boxes(opened(root, csv))
    assert "\n" not in str(error.value)


def test_every_training_image_needs_a_box(root):
    (root / "train.csv").write_text(BOXES + "b/2.png,1,2,9,8\na.jpg,1,2,9,8\n")
    with pytest.raises(UserError, match=r"c.png, column box_x0: empty; every image needs a box"):
        objects.boxes(opened(root))


def blobs(root, folder="masks"):
    """A mask for each photo, of squares; {name: [H,W] bool}."""
    rng, out = np.random.default_rng(1), {}
    (root / folder).mkdir()
    for name, (height, width) in SIZES.items():
        mask = np.zeros((height, width), bool)
        for y, x in zip(rng.integers(0, height - 3, 3), rng.integers(0, width - 3, 3), strict=True):
            mask[y : y + 11, x : x + 14] = True
        mask[:, 0] = True  # reaches the border, beyond which padding begins
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / folder / f"{name.split('/')[-1]}.png")
        out[name] = mask
    return out


def mask_csv(folder="masks"):
    return "file,mask\n" + "".join(f"{n},{folder}/{n.split('/')[-1]}.png\n" for n in SIZES)


def share_by_sampling(mask, fmap, frame_size, side, fine):
    """The share of each cell by fine x fine samples in it."""
    at = (np.arange(side * fine) + 0.5) / fine * frame_size / side - 0.5
    x, y = np.round((at - fmap[2]) / fmap[0]).astype(int), np.round((at - fmap[3]) / fmap[1]).astype(int)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))
    values = mask[np.clip(y, 0, mask.shape[0] - 1)[:, None], np.clip(x, 0, mask.shape[1] - 1)] & inside
    return values.reshape(side, fine, side, fine).mean((1, 3))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("frame_size", "side"), [(24, 24), (24, 7), (50, 16)])
def test_masks_are_shares_of_cells(root, fit, frame_size, side):
    truth = blobs(root)
    source = opened(root, mask_csv(), fit, frame_size)
    found = objects.masks(source, side)
    assert (found.shape, found.dtype) == ((3, side, side), bool)
    assert 0.1 < found.mean() < 0.9
    for row, name in enumerate(source.names):
        share = share_by_sampling(truth[name], source.frame_maps[row], frame_size, side, fine=101)
        exact = objects._coverage(truth[name], source.frame_maps[row], frame_size, side)
        np.testing.assert_allclose(exact, share, atol=0.02)
        clear = abs(share - 0.5) > 0.02
        np.testing.assert_array_equal(found[row][clear], share[clear] > 0.5)
    if fit == "pad":
        assert not found[source.names.index("a.jpg"), 0].any()


def test_masks_that_cover_everything_and_grey_ones(root):
    blobs(root)
    grey = np.full((32, 32), 127, np.uint8)
    grey[:, 16:] = 128
    Image.fromarray(grey).save(root / "masks/c.png.png")
    Image.fromarray(np.full((20, 61, 3), 255, np.uint8)).save(root / "masks/a.jpg.png")
    found = objects.masks(opened(root, mask_csv(), "stretch"), 8)
    assert found[1].all()
    np.testing.assert_array_equal(found[2], np.arange(8)[None] >= np.full((8, 1), 4))


def test_bad_masks_are_one_sentence(root):
    blobs(root)
    Image.fromarray(np.full((20, 60), 255, np.uint8)).save(root / "masks/narrow.png")
    Image.fromarray(np.full((40, 122), 255, np.uint8)).save(root / "masks/twice.png")
    Image.fromarray(np.ones((20, 61), np.uint8)).save(root / "masks/ones.png")
    (root / "masks/text.png").write_text("text")
    for cell, message in (
        ("masks/narrow.png", r"column mask: masks/narrow.png is 60 x 20 pixels where a.jpg has 61 x 20"),
        ("masks/twice.png", r"column mask: masks/twice.png is 122 x 40 pixels where a.jpg has 61 x 20"),
        ("masks/ones.png", r"column mask: masks/ones.png is nowhere white"),
        ("masks/no.png", r"column mask: .*masks/no.png is absent"),
        ("masks/text.png", r"column mask: .*masks/text.png cannot be read"),
        ("", r"column mask: '' names no file inside the folder"),
        ("../x.png", r"column mask: '../x.png' names no file inside the folder"),
    ):
        source = opened(root, f"file,mask\nc.png,masks/c.png.png\na.jpg,{cell}\n")
        with pytest.raises(UserError, match=r"train.csv, line 3, " + message) as error:
            objects.masks(source, 8)
        assert "\n" not in str(error.value)
    (root / "masks/text.png").unlink()
    with pytest.raises(UserError, match=r"folder has no csv column mask"):
        objects.masks(opened(root, "file\na.jpg\n"), 8)


class Drawn(Source):
    """A source without files."""

    def __init__(self):
        self.spec, self.names, self.frame_size = spec_of("drawn", None), ["a", "b"], 8
        self.columns = {"mask": ["m.png", "m.png"]}


def test_sources_without_csv_say_so(root):
    with pytest.raises(UserError, match=r"drawn has no csv column box_x0"):
        objects.boxes(Drawn())
    with pytest.raises(UserError, match=r"drawn holds no mask files"):
        objects.masks(Drawn(), 8)


class Masked(Drawn):
    """A source that knows its masks, of files that are twice as wide as the frame shows them."""

    def __init__(self, *masks):
        super().__init__()
        self.columns, self._masks = {}, masks
        self.frame_maps = np.array([[0.5, 1, -0.25, 0]] * 2)

    def mask(self, row):
        return self._masks[row]


def test_boxes_and_masks_of_a_source_that_knows_them():
    masks = np.zeros((2, 8, 16), bool)
    masks[0, 2:5, 4:10] = masks[1, 7, 15] = True
    source = Masked(*masks)
    # Edges of pixels: 3.5 and 9.5 of the file are 1.5 and 4.5 of the frame.
    assert objects.boxes(source).tolist() == [[1.5, 1.5, 4.5, 4.5], [7.0, 6.5, 7.5, 7.5]]
    cells = masks.reshape(2, 8, 8, 2).mean(-1)
    np.testing.assert_array_equal(objects.masks(source, 8), cells >= 0.5)
    # A csv's own columns come first.
    source.columns = dict(zip(objects.BOX, (["0", "1"], ["2", "3"], ["10", "11"], ["4", "5"]), strict=True))
    source.file_sizes = np.array([[8, 16]] * 2)
    np.testing.assert_allclose(objects.boxes(source)[0], [-0.25, 2, 4.75, 4])
    with pytest.raises(UserError, match="no true pixel"):
        objects.boxes(Masked(masks[0], np.zeros((8, 16), bool)))


def test_keypoints_fill_the_slots_of_their_images(root):
    source = opened(root)
    assert source.names == ["a.jpg", "b/2.png", "c.png"]
    path = root / "points.txt"
    path.write_text("file,x0,y0,x1,y1,x2,y2\n./c.png,1,2,,,3.5,4\na.jpg,60,19\n")
    xy, mask = objects.keypoints(source, path, 4)
    assert (xy.shape, xy.dtype, mask.dtype) == ((3, 4, 2), np.float32, bool)
    assert mask.tolist() == [[True] + [False] * 3, [False] * 4, [True, True, False, False]]
    assert (xy[~mask] == 0).all()
    for row, slot, raw in ((0, 0, (60, 19)), (2, 0, (1, 2)), (2, 1, (3.5, 4))):
        fmap = coordinates.frame_map(SIZES[source.names[row]], (24, 24))
        np.testing.assert_allclose(xy[row, slot], np.array(raw) * fmap[:2] + fmap[2:], atol=1e-5)
    # As many slots as points will do, fewer will not.
    np.testing.assert_array_equal(objects.keypoints(source, path, 2).xy, xy[:, :2])
    with pytest.raises(UserError, match=r"points.txt, line 2: c.png has 2 keypoints, and there are 1 slots .* to 2$"):
        objects.keypoints(source, path, 1)


def test_keypoints_of_a_name_in_another_unicode_form(root):
    source = opened(root)
    source.names = ["\u00e9.jpg", *source.names[1:]]
    (root / "points.txt").write_text("file,x0,y0\ne\u0301.jpg,60,19\n", encoding="utf-8")
    assert objects.keypoints(source, root / "points.txt", 1).mask.tolist() == [[True], [False], [False]]


def test_keypoints_outside_the_frame_are_masked(root):
    path = root / "points.txt"
    path.write_text("file,x0,y0,x1,y1\na.jpg,2,10,30,10\n")  # crop keeps the middle 20 of 61 columns
    xy, mask = objects.keypoints(opened(root, fit="crop"), path, 2)
    assert mask[0].tolist() == [False, True]
    assert xy[0, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("", r"points.txt: the first line must be file,x0,y0"),
        ("file\na.jpg\n", r"points.txt: the first line must be file,x0,y0"),
        ("file,x0,y0,x1\na.jpg,1,2,3\n", r"points.txt: the first line must be file,x0,y0"),
        ("file,x0,y0,score0\na.jpg,1,2,3\n", r"points.txt: the first line must be file,x0,y0"),
        ("file,x0,y0\n", r"points.txt lists no images"),
        ("file,x0,y0\na.jpg,1,2\nno.jpg,1,2\n", r"names 1 of 2 files that are not among the images, first no.jpg"),
        ("file,x0,y0\n2.png,1,2\n", r"names 1 of 1 files .*, first 2.png; write names as in a.jpg"),
        ("file,x0,y0\na.jpg,1,2,3,4\n", r"points.txt, line 2 has 5 columns where the first line has 3"),
        ("file,x0,y0\na.jpg,1\n", r"points.txt, line 2: one of x0 and y0 is empty"),
        ("file,x0,y0,x1,y1\nc.png,1,1\na.jpg,1,2,3,O\n", r"points.txt, line 3, column y1: 'O' is not a number"),
        ("file,x0,y0\na.jpg,1,2\n./a.jpg,1,2\n", r"points.txt, line 3: ./a.jpg is the file of line 2"),
        ("file,x0,y0\na.jpg,0.5,200\n", r"points.txt, line 2: point 0 at \(0.5, 200\) lies far outside its image"),
    ],
)
def test_bad_keypoints_are_one_sentence(root, csv, message):
    path = root / "points.txt"
    path.write_text(csv)
    with pytest.raises(UserError, match=message) as error:
        objects.keypoints(opened(root), path, 4)
    assert "\n" not in str(error.value)


def test_a_file_of_keypoints_that_is_not_there(root):
    with pytest.raises(UserError, match=r"no.csv cannot be read \(no such file or directory\); give a csv file"):
        objects.keypoints(opened(root), root / "no.csv", 4)


def test_doctests():
    assert doctest.testmod(objects).failed == 0

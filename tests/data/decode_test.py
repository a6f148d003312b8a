"""Decoding against the frame map, for every orientation, mode, fit and decoder shortcut."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from uld_jax.data import decode
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

EXIF_TURNS = {  # orientation -> the pixels as they are stored, from the upright ones (EXIF 2.3, tag 0x0112)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def dots(height, width, points, sigma):
    """White Gaussian dots on black, [H,W,3] uint8, centred on the points (x, y) given to a fraction of a pixel."""
    grid = coordinates.pixel_grid(height, width)[None]
    r2 = ((grid - np.asarray(points)[:, None, None]) ** 2).sum(-1)
    value = np.exp(-r2 / (2 * sigma**2)).max(0)
    return np.repeat((255 * value).astype(np.uint8)[..., None], 3, -1)


def encode(pixels, kind="PNG", orientation=1, **options):
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    image.save(out, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}), **options)
    return out.getvalue()


def centre_of_mass(frame, near, radius):
    """Intensity-weighted centre of the pixels within `radius` of a point, refined from where it lands first."""
    grid = coordinates.pixel_grid(*frame.shape[:2]).astype(np.float64)
    at = np.asarray(near, np.float64)
    for _ in range(3):
        weight = frame[..., 0].astype(np.float64) * (np.abs(grid - at).max(-1) <= radius)
        at = (weight[..., None] * grid).sum((0, 1)) / weight.sum()
    return at


@pytest.mark.parametrize("fit", coordinates.FITS)
@pytest.mark.parametrize(
    ("height", "width", "frame"),
    [(97, 131, 64), (131, 97, 200), (64, 64, 64), (50, 50, 149), (1001, 803, 64), (810, 1203, 72)],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_dots_lie_where_the_frame_map_says(fit, height, width, frame, kind):
    # Wide enough to survive shrinking; near the corners too, where a shift by half a pixel or a wrong scale would show.
    scale = coordinates.frame_map((height, width), (frame, frame), fit)[:2]
    sigma = 1.5 * max(1.0, 1 / scale.min())
    inset = 5 * sigma
    centre = np.array([width - 1, height - 1]) / 2
    reach = np.minimum(centre, frame / scale / 2 - 0.5) - inset
    points = [centre + reach * sign for sign in ((-1, -1), (1, -0.9), (-0.8, 1), (0.97, 0.93))]
    found, fmap, size = decode.decode_image(encode(dots(height, width, points, sigma), kind), frame, fit)
    assert found.shape == (frame, frame, 3)
    assert found.dtype == np.uint8
    assert size == (height, width)
    np.testing.assert_array_equal(fmap, coordinates.frame_map(size, (frame, frame), fit))
    for expected in coordinates.file_to_frame(np.stack(points), fmap):
        radius = max(3.0, 3.2 * sigma * scale.max())
        np.testing.assert_allclose(centre_of_mass(found, expected, radius), expected, atol=0.1)


@pytest.mark.parametrize(("kind", "height", "width"), [("JPEG", 411, 603), ("PNG", 41, 60)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_by_their_exif_tag(orientation, kind, height, width):
    sigma = 2.0 * height / 41
    upright = dots(height, width, [(0.2 * width, 0.3 * height), (0.7 * width, 0.75 * height)], sigma)
    upright[..., 1] //= 2
    stored = EXIF_TURNS[orientation](upright)
    found, fmap, size = decode.decode_image(encode(stored, kind, orientation), 48)
    wanted, wanted_map, _ = decode.decode_image(encode(upright, kind), 48)
    assert size == (height, width) == decode.image_size(encode(stored, kind, orientation))
    np.testing.assert_array_equal(fmap, wanted_map)
    np.testing.assert_allclose(found.astype(int), wanted.astype(int), atol=4)


def test_exif_turns_of_the_test_equal_pillows():
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    for orientation, turn in EXIF_TURNS.items():
        stored = Image.open(io.BytesIO(encode(turn(pixels), "PNG", orientation)))
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(stored)), pixels)
        np.testing.assert_array_equal(decode.turn_upright(turn(pixels), orientation), pixels)


def test_same_size_is_the_identity():
    pixels = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    found, fmap, _ = decode.decode_image(encode(pixels), 32)
    np.testing.assert_array_equal(found, pixels)
    assert fmap.tolist() == [1, 1, 0, 0]


def test_empty_part_of_the_frame_repeats_the_border():
    pixels = np.random.default_rng(2).integers(0, 255, (20, 40, 3), np.uint8)
    found, _, _ = decode.decode_image(encode(pixels), 40, "pad")
    np.testing.assert_array_equal(found[10:30], pixels)
    np.testing.assert_array_equal(found[:10], np.repeat(pixels[:1], 10, 0))
    np.testing.assert_array_equal(found[30:], np.repeat(pixels[-1:], 10, 0))
    cropped, _, _ = decode.decode_image(encode(pixels), 20, "crop")
    np.testing.assert_array_equal(cropped, pixels[:, 10:30])


@pytest.mark.parametrize("fit", coordinates.FITS)
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (2000, 3)])
def test_extreme_shapes_fill_the_frame(fit, size):
    found, fmap, _ = decode.decode_image(encode(np.full((*size, 3), 200, np.uint8)), 16, fit)
    assert (found == 200).all()
    assert np.isfinite(fmap).all()


def test_shrinking_is_antialiased():
    y, x = np.mgrid[:240, :240]
    checks = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, -1)
    found, _, _ = decode.decode_image(encode(checks), 48)
    assert np.abs(found.astype(int) - 127.5).max() < 12


def test_every_mode_becomes_rgb():
    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    colour = np.stack([ramp, ramp[::-1].T, 255 - ramp], -1)
    grey = np.repeat(ramp[..., None], 3, -1)

    def frame(image, kind="PNG", **options):
        return decode.decode_image(encode(image, kind, **options), 16)[0].astype(int)

    np.testing.assert_array_equal(frame(Image.fromarray(ramp)), grey)
    np.testing.assert_array_equal(frame(Image.fromarray(ramp.astype(np.uint16) * 257)), grey)
    np.testing.assert_allclose(frame(Image.fromarray(ramp), "JPEG"), grey, atol=4)
    np.testing.assert_allclose(frame(Image.fromarray(colour).convert("CMYK"), "JPEG"), colour, atol=12)
    np.testing.assert_array_equal(frame(Image.fromarray(ramp > 99)), 255 * (grey > 99))

    palette = Image.fromarray(colour).quantize(256)
    np.testing.assert_array_equal(frame(palette), np.asarray(palette.convert("RGB")))

    opaque = np.concatenate([colour, np.full((16, 16, 1), 255, np.uint8)], -1)
    opaque[:8, :, 3] = 0
    expected = colour.copy()
    expected[:8] = 255  # transparent parts lie on white
    np.testing.assert_array_equal(frame(Image.fromarray(opaque)), expected)
    with_alpha = Image.merge("LA", [Image.fromarray(ramp), Image.fromarray(opaque[..., 3])])
    assert (frame(with_alpha)[:8] == 255).all()
    np.testing.assert_array_equal(frame(with_alpha)[8:], grey[8:])
    keyed = frame(Image.fromarray(ramp), transparency=int(ramp[0, 3]))
    assert (keyed[:, 3] == 255).all()
    assert (keyed[:, 4] == grey[:, 4]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pictures_keep_their_proportions(kind, orientation):
    height, width, point = 633, 911, (700.0, 150.0)
    stored = EXIF_TURNS[orientation](dots(height, width, [point], 12.0))
    data = encode(stored, kind, orientation)
    np.testing.assert_allclose(decode.decode_picture(data).astype(int), dots(height, width, [point], 12.0), atol=8)
    small = decode.decode_picture(data, longest=100)
    assert small.shape == (69, 100, 3)
    expected = coordinates.rescale_points(np.array(point), (height, width), small.shape[:2])
    np.testing.assert_allclose(centre_of_mass(small, expected, 6), expected, atol=0.1)
    assert decode.decode_picture(encode(np.zeros((1, 900, 3), np.uint8)), longest=20).shape == (1, 20, 3)


@pytest.mark.parametrize("fit", coordinates.FITS)
def test_arrays_are_fitted_as_files_are(fit):
    pixels = np.random.default_rng(6).integers(0, 255, (23, 31, 3), np.uint8)
    frame, fmap = decode.fit_array(pixels[:, ::-1], 17, fit)
    wanted, wanted_map, _ = decode.decode_image(encode(pixels[:, ::-1]), 17, fit)
    np.testing.assert_array_equal(frame, wanted)
    np.testing.assert_array_equal(fmap, wanted_map)


def test_paths_and_bytes_give_the_same(tmp_path):
    data = encode(np.random.default_rng(3).integers(0, 255, (9, 11, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(data)
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(decode.decode_image(path, 8)[0], decode.decode_image(data, 8)[0])


def test_unreadable_files_are_named(tmp_path):
    good = encode(np.random.default_rng(4).integers(0, 255, (64, 64, 3), np.uint8), "JPEG")
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"not an image at all", "another kind"),
        "cut.jpg": (good[: len(good) // 2], "truncated"),
        "gif.png": (b"GIF89a" + bytes(40), "another kind"),
    }
    for name, (data, why) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=why) as error:
            decode.decode_image(tmp_path / name, 32)
        assert str(tmp_path / name) in str(error.value)
        with pytest.raises(UserError, match=f"the image cannot be read.*{why}"):
            decode.decode_image(data, 32)
    with pytest.raises(UserError, match=r"gone.jpg.*no such file"):
        decode.decode_image(tmp_path / "gone.jpg", 32)
    with pytest.raises(UserError, match=r"empty"):
        decode.image_size(tmp_path / "empty.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged EXIF
def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(5)
    messages = []
    for kind in ("JPEG", "PNG"):
        good = np.frombuffer(encode(rng.integers(0, 255, (40, 40, 3), np.uint8), kind, 6), np.uint8)
        for _ in range(150):
            bad = good.copy()
            at = rng.integers(0, min(len(bad), 400), 6)
            bad[at] = rng.integers(0, 256, 6)
            try:
                frame, _, _ = decode.decode_image(bad.tobytes(), 16)
            except UserError as e:
                messages.append(str(e))
            else:
                assert frame.shape == (16, 16, 3)
    assert len(messages) > 50
    assert not any("\n" in m for m in messages)


def test_list_images_finds_nested_files_in_order(tmp_path):
    for name in (
        "b/2.PNG",
        "b/10.jpeg",
        "a.jpg",
        "b.jpg",
        "B/x.jpg",
        ".hidden/x.jpg",
        "b/.x.jpg",
        "notes.txt",
        "c/d/e.Jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "c" / "loop")
    assert decode.list_images(tmp_path) == ["B/x.jpg", "a.jpg", "b/10.jpeg", "b/2.PNG", "b.jpg", "c/d/e.Jpg"]
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        decode.list_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not a folder"):
        decode.list_images(tmp_path / "a.jpg")

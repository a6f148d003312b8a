"""Decoding against the frame map, for every orientation, mode, fit and decoder shortcut."""

import io
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, features

from uld_jax.data import decode, listing
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


def test_arrays_of_every_kind_are_read_as_files_are():
    rng = np.random.default_rng(10)
    rgb = rng.integers(0, 256, (12, 9, 3), np.uint8)
    grey, alpha = rgb[..., 0], np.where(rgb[..., 1:2] > 90, np.uint8(255), np.uint8(0))
    rgba = np.concatenate([rgb, alpha], -1)
    for image in (rgb, grey, rgba, grey // 4, (grey.astype(np.uint16) * 16)):
        np.testing.assert_array_equal(decode.array_pixels(image), decode.decode_picture(encode(image)))
    np.testing.assert_array_equal(decode.array_pixels(grey[..., None]), decode.array_pixels(grey))
    np.testing.assert_allclose(decode.array_pixels(rgb.astype(np.uint16) * 16), rgb, atol=1)
    deep = np.concatenate([rgb.astype(np.uint16) * 16, alpha.astype(np.uint16) * 257], -1)
    np.testing.assert_allclose(decode.array_pixels(deep), decode.array_pixels(rgba), atol=1)
    for image in (rgb[..., :2], rgb.astype(np.float32), rgb[:0], rgb[0, 0], rgb[None]):
        with pytest.raises(UserError, match=r"give uint8 \(or uint16\) RGB \[H,W,3\], grey"):
            decode.array_pixels(image)


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
        "gif.png": (b"GIF89a" + bytes(40), "not found in GIF frame"),
    }
    for name, (data, why) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=why) as error:
            decode.decode_image(tmp_path / name, 32)
        assert str(tmp_path / name) in str(error.value)
        with pytest.raises(UserError, match=f"the image cannot be read.*{why}"):
            decode.decode_image(data, 32)
    with pytest.raises(UserError, match=r"gone.jpg is absent \(no such file or directory\); put it there"):
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


def need(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif", reason="HEIC needs the optional package pillow-heif").register_heif_opener()


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "BMP", "GIF", "AVIF", "HEIF", "MPO"])
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_every_format_is_upright_and_in_place(kind, orientation, tmp_path):
    need(kind)
    if kind in ("BMP", "GIF") and orientation > 1:
        pytest.skip("it has no orientation")
    height, width = 411, 603
    upright = dots(height, width, [(0.2 * width, 0.3 * height), (0.7 * width, 0.75 * height)], 20.0)
    stored = Image.fromarray(np.ascontiguousarray(EXIF_TURNS[orientation](upright)))
    if kind == "HEIF":  # whose encoder takes the tag from the image alone
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.info["exif"] = exif.tobytes()
        stored.save(tmp_path / "it.dat", kind, quality=90)
        data = (tmp_path / "it.dat").read_bytes()
    else:
        data = encode(stored, kind, orientation, **({"quality": 90} if kind in ("WEBP", "AVIF", "MPO") else {}))
    (tmp_path / "it.dat").write_bytes(data)  # the ending says nothing
    wanted, wanted_map, size = decode.decode_image(encode(upright), 48)
    for file in (data, tmp_path / "it.dat"):
        found, fmap, found_size = decode.decode_image(file, 48)
        np.testing.assert_array_equal(fmap, wanted_map)
        assert found_size == size == decode.image_size(file)
        np.testing.assert_allclose(found.astype(int), wanted.astype(int), atol=8)


def test_the_first_of_several_pages_is_read_and_said_once(tmp_path):
    first, second = (Image.new("RGB", (20, 20), c) for c in ((250, 0, 0), (0, 0, 250)))
    for name in ("pages.tif", "film.gif", "film.png", "film.webp"):
        first.save(
            tmp_path / name, save_all=True, append_images=[second], **({"lossless": True} if "webp" in name else {})
        )
        with pytest.warns(decode.FirstPageWarning, match=f"{name} has several .*; the first is read"):
            frame = decode.decode_image(tmp_path / name, 8)[0]
        assert frame[4, 4].tolist() == [250, 0, 0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            decode.decode_picture(tmp_path / name)


def test_heic_without_its_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(UserError, match="pip install pillow-heif"):
        decode.decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), 8)


def test_what_is_no_picture_is_never_opened():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PCX")
    for data in (postscript, out.getvalue(), b"%PDF-1.4"):
        with pytest.raises(UserError, match="none of JPEG, PNG"):
            decode.decode_image(data, 8)
    with pytest.raises(UserError, match="ffmpeg -i"):
        decode.decode_image(b"\x1aE\xdf\xa3" + bytes(80), 8)


def test_camera_raw_is_not_read_by_its_thumbnail(tmp_path):
    thumbnail = encode(np.zeros((12, 16, 3), np.uint8), "TIFF")
    (tmp_path / "shot.nef").write_bytes(thumbnail)
    with pytest.raises(UserError, match="camera raw file; develop it to JPEG or TIFF"):
        decode.decode_image(tmp_path / "shot.nef", 8)
    marked = encode(np.zeros((12, 16, 3), np.uint8), "TIFF", tiffinfo={0xC612: b"\1\4\0\0"})
    with pytest.raises(UserError, match="camera raw"):
        decode.decode_image(marked, 8)


def test_deep_colour_that_would_come_out_black_is_told():
    def deep_png(values):  # Pillow writes none
        height, width = values.shape[:2]

        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
        parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    values = np.random.default_rng(8).integers(0, 4096, (9, 11, 3))
    with pytest.raises(UserError, match="16 bits a channel and uses only 4095 of 65535 values"):
        decode.decode_image(deep_png(values), 8)
    found = decode.decode_picture(deep_png(values * 16))
    np.testing.assert_allclose(found, values // 16, atol=1)


def test_cmyk_without_jpeg():
    cmyk = Image.new("RGB", (9, 9), (200, 40, 10)).convert("CMYK")
    np.testing.assert_allclose(decode.decode_image(encode(cmyk, "TIFF"), 8)[0][4, 4], (200, 40, 10), atol=2)


def test_large_photos_are_reduced_by_the_decoder_without_a_warning():
    """16,320 x 12,240 pixels, which Pillow would warn of as an attack."""
    big = Image.new("L", (16320, 12240), 60)
    big.paste(220, (8160, 6120, 16320, 12240))
    data = encode(big, "JPEG")
    del big
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame, fmap, size = decode.decode_image(data, 64)
        assert decode.image_size(data) == size == (12240, 16320)
        assert decode.decode_picture(data).shape == (768, 1024, 3)
    np.testing.assert_array_equal(fmap, coordinates.frame_map(size, (64, 64)))
    assert np.abs(frame[10:30, 5:60].astype(int) - 60).max() < 4
    assert np.abs(frame[34:54, 34:60].astype(int) - 220).max() < 4


def test_pictures_beyond_the_limit_are_refused_by_their_header(tmp_path, monkeypatch):
    def png(width, height):
        data = bytearray(encode(np.zeros((2, 2, 3), np.uint8)))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        return bytes(data)

    for call in (decode.image_size, lambda data: decode.decode_image(data, 64)):
        with pytest.raises(UserError, match=r"its 20000 x 20000 pixels take 1600 MB .* PNG.* the limit is 900 MB"):
            call(png(20000, 20000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode.image_size(png(16320, 12240)) == (12240, 16320)  # which is read whole, within the limit
    # What is reduced while it is decoded counts as reduced; all coefficients of a progressive file are held at once.
    monkeypatch.setattr(decode, "MOST_MEMORY", 2_000_000)
    grey = np.full((1000, 1600, 3), 90, np.uint8)
    assert decode.decode_image(encode(grey, "JPEG"), 64)[0].mean() == 90
    for data in (encode(grey, "JPEG", progressive=True), encode(grey, "WEBP"), encode(grey, "TIFF"), encode(grey)):
        with pytest.raises(UserError, match=r"its 1600 x 1000 pixels take"):
            decode.decode_image(data, 64)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_pictures_read_in_bands_equal_those_read_at_once(mode, monkeypatch):
    rng = np.random.default_rng(9)
    small = Image.fromarray(rng.integers(0, 255, (17, 23, 3), np.uint8)).resize((700, 510), Image.Resampling.BICUBIC)
    image = small.convert(mode)
    if mode == "RGBA":
        image.putalpha(small.convert("L"))
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encode(image, kind, orientation=6)
    whole, wanted_map, size = decode.decode_image(data, 40)
    picture = decode.decode_picture(data, longest=90)
    monkeypatch.setattr(decode, "_WHOLE", 1000)
    monkeypatch.setattr(decode, "_BAND", 5000)
    found, fmap, found_size = decode.decode_image(data, 40)
    assert (found_size, fmap.tolist()) == (size, wanted_map.tolist())
    np.testing.assert_allclose(found.astype(int), whole.astype(int), atol=4)
    np.testing.assert_allclose(decode.decode_picture(data, longest=90).astype(int), picture.astype(int), atol=6)


def test_threads_share_the_memory_and_large_pictures_get_their_turn():
    room, together, most, order = decode._Room(100), [0], [0], []
    lock = threading.Lock()

    def use(amount):
        with room.taken(amount):
            with lock:
                together[0] += min(amount, 100)
                most[0] = max(most[0], together[0])
                order.append(amount)
            time.sleep(0.002)
            with lock:
                together[0] -= min(amount, 100)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, [30, 40, 1000, *[20] * 40, 90]))
    assert most[0] <= 100
    assert sorted(order) == sorted([30, 40, 1000, *[20] * 40, 90])
    assert order.index(1000) < 30  # those that came later waited for it


MEMORY_OF_ONE = """
import resource, sys, warnings
warnings.simplefilter("error")
from uld_jax.data import decode
decode.Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(decode.decode_image(sys.argv[1], 160)[0].shape)
decode.decode_picture(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "PNG 16 bits", "TIFF"])
def test_one_photo_takes_less_than_a_gigabyte(kind, tmp_path):
    size, path = (16320, 12240), tmp_path / "it"
    if kind == "PNG 16 bits":
        Image.fromarray(np.full(size[::-1], 900, np.uint16)).save(path, "PNG", compress_level=1)
    else:
        options = {"compress_level": 1} if kind == "PNG" else {"progressive": True} if kind == "progressive" else {}
        Image.new("RGB", size, (90, 80, 70)).save(path, "JPEG" if kind == "progressive" else kind, **options)
    done = subprocess.run([sys.executable, "-c", MEMORY_OF_ONE, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(160, 160, 3)")
    assert int(done.stdout.split()[-1]) < 1e9


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (b"P6 # of a camera\n2 1\n255\n" + bytes([9, 8, 7, 6, 5, 4]), [[9, 8, 7], [6, 5, 4]]),
        (b"P3 2 1 15 15 0 0 0 15 0\n", [[255, 0, 0], [0, 255, 0]]),
        (b"P5 2 1 255\n" + bytes([0, 255]), [[0, 0, 0], [255, 255, 255]]),
        (b"P5 2 1 65535\n" + bytes([0, 0, 255, 255]), [[0, 0, 0], [255, 255, 255]]),
        (b"P1 2 1\n0 1\n", [[255, 255, 255], [0, 0, 0]]),
    ],
)
def test_netpbm_of_every_kind(data, want, tmp_path):
    (tmp_path / "picture").write_bytes(data)  # told by its content
    assert listing.list_images(tmp_path) == ["picture"]
    np.testing.assert_array_equal(decode.decode_picture(tmp_path / "picture")[0], want)
    (tmp_path / "picture").write_bytes(b"P5 parts of 2 kinds\n" + data)
    assert listing.list_images(tmp_path) == []

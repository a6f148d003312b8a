"""Grey pictures of any depth against their eight-bit copies."""

import io

import numpy as np
import pytest
from PIL import Image

from uld_jax.data import decode, tones


def picture():
    """Smooth grey values that fill 0..255, [64,80] float."""
    y, x = np.mgrid[:64, :80]
    values = np.sin(x / 9) + np.cos(y / 7) + np.sin((x + 2 * y) / 13)
    return 255 * (values - values.min()) / np.ptp(values)


GREY = picture()
EIGHT = np.round(GREY).astype(np.uint8)
COPIES = {
    "10 bits in 16": np.round(GREY * 4).astype(np.uint16),
    "12 bits in 16": np.round(GREY * 16).astype(np.uint16),
    "14 bits in 16": np.round(GREY * 64).astype(np.uint16),
    "16 bits": np.round(GREY * 257).astype(np.uint16),
    "eight bits in 16": EIGHT.astype(np.uint16),
    "12 bits in 32": np.round(GREY * 16).astype(np.int32),
    "counts between 21,000 and 24,000": np.round(21000 + GREY / 255 * 3000).astype(np.uint16),
    "Hounsfield units": np.round(GREY / 255 * 3000 - 1000).astype(np.int32),
    "six bits in eight": np.round(GREY / 255 * 63).astype(np.uint8),
    "faint in eight": np.round(100 + GREY / 255 * 50).astype(np.uint8),
    "float up to 1": (GREY / 255).astype(np.float32),
    "float up to 0.1249": (GREY * (0.1249 / 255)).astype(np.float32),
    "float up to 255": GREY.astype(np.float32),
    "float up to 4095": (GREY * 4095 / 255).astype(np.float32),
}


def encode(values, kind="TIFF", **options):
    out = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_every_depth_gives_the_eight_bit_picture(name, kind):
    values = COPIES[name]
    if kind == "PNG" and values.dtype not in (np.uint8, np.uint16):
        pytest.skip("PNG holds no such values")
    wanted = decode.decode_image(encode(EIGHT, "PNG"), 40)[0].astype(int)
    found = decode.decode_image(encode(values, kind), 40)[0].astype(int)
    step = 256 / len(np.unique(values)) if values.dtype == np.uint8 else 1
    offset = 5 if name == "Hounsfield units" else 0  # white is 2047, not 2000
    assert np.abs(found - wanted).max() <= 1 + step + offset
    picture = decode.decode_picture(encode(values, kind)).astype(int)
    assert np.abs(picture[..., 0] - EIGHT).max() <= 1 + step + offset


@pytest.mark.parametrize(
    "values", [EIGHT, np.minimum(EIGHT, 200), np.maximum(EIGHT, 30), np.full_like(EIGHT, 7), EIGHT // 16]
)
def test_usual_eight_bit_pictures_and_masks_stay_as_they_are(values):
    np.testing.assert_array_equal(decode.decode_picture(encode(values, "PNG"))[..., 0], values)


def test_grey_kept_in_other_modes_is_grey_and_colour_stays():
    faint = (EIGHT // 7 + 150).astype(np.uint8)
    wanted = decode.decode_picture(encode(faint, "PNG"))
    assert wanted.min() < 5
    assert wanted.max() > 250
    grey = Image.fromarray(faint)
    opaque = np.full((*faint.shape, 1), 255, np.uint8)
    for mode in ("RGB", "LA", "RGBA", "P"):
        np.testing.assert_array_equal(decode.decode_picture(encode(grey.convert(mode), "PNG")), wanted, err_msg=mode)
    np.testing.assert_array_equal(decode.decode_picture(encode(grey, "PNG"), as_is=True)[..., 0], faint)
    colour = np.stack([faint, faint, faint + 1], -1)
    np.testing.assert_array_equal(decode.decode_picture(encode(colour, "PNG")), colour)
    see_through = np.concatenate([np.repeat(faint[..., None], 3, -1), opaque], -1)
    see_through[:8, :, 3] = 0
    found = decode.decode_picture(encode(see_through, "PNG"))
    assert (found[:8] == 255).all()
    np.testing.assert_array_equal(found[8:], wanted[8:])


def test_hot_pixels_and_holes_decide_nothing():
    rng = np.random.default_rng(0)
    values = np.tile(np.round(GREY * 16).astype(np.uint16), (4, 4))
    clean = decode.decode_picture(encode(values)).astype(int)
    values[tuple(rng.integers(0, 200, (2, 6)))] = 65535
    assert np.quantile(np.abs(decode.decode_picture(encode(values)).astype(int) - clean), 0.999) <= 1
    floats = np.tile(GREY.astype(np.float32), (4, 4))
    floats[3, 5], floats[9, 9], floats[11, 2] = np.nan, np.inf, -np.inf
    found = decode.decode_picture(encode(floats))[..., 0]
    assert np.abs(found.astype(int) - clean[..., 0]).max(where=np.isfinite(floats), initial=0) <= 1
    assert (found[3, 5], found[9, 9], found[11, 2]) == (0, 255, 0)
    assert tones.tones(np.full((3, 3), np.nan, np.float32)) == (0, 1)


def test_white_is_zero_is_turned_round():
    for values in (EIGHT, 4095 - np.round(GREY * 16).astype(np.uint16)):  # Pillow turns the first when it writes it
        data = encode(Image.fromarray(values), tiffinfo={262: 0})
        assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
        found = decode.decode_picture(data)[..., 0].astype(int)
        assert np.abs(found - EIGHT).max() <= 1


def test_large_pictures_are_sampled_and_read_in_bands():
    values = np.zeros((4400, 4000), np.uint16)
    values[1000:3000, 500:2500] = 4095
    found = decode.decode_image(encode(values, "PNG", compress_level=1), 44)[0]
    assert found[15, 15].tolist() == [255] * 3
    assert found[2, 2].tolist() == [0] * 3
    assert found.mean() == pytest.approx(255 * 20 * 20 / 44**2, abs=1)


def test_arrays_alone():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 3000, 5000)
    assert tones.tones(values) == (0, 4095)
    np.testing.assert_allclose(tones.to_bytes(values, tones.Tones(0, 4095)), values * 255 / 4095, atol=0.51)
    assert tones.tones(np.zeros(5, np.uint16)) == (0, 255)
    assert tones.tones(np.zeros(0, np.uint16)) == (0, 255)
    assert tones.tones(np.array([5, 31], np.uint16)) == (0, 255)
    assert tones.tones(np.array([40000, 40031], np.uint16)).white == 65535

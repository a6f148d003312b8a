import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.backbones.gradient import GradientHistograms
from uld_jax.errors import UserError


def reference(image, scale, bins, offsets, cell, stride, color, floor):
    """One map of one image, straight from the class's description: float64, pixel by pixel and cell by cell."""
    image = image.astype(np.float64) / 255
    if color == "grey":
        image = image.mean(-1, keepdims=True)
    height, width, channels = image.shape
    at = lambda y, x, c: image[min(max(y, 0), height - 1), min(max(x, 0), width - 1), c]
    energy = np.zeros((height, width, bins))
    for y in range(height):
        for x in range(width):
            slopes = [
                ((at(y, x + 1, c) - at(y, x - 1, c)) / 2, (at(y + 1, x, c) - at(y - 1, x, c)) / 2)
                for c in range(channels)
            ]
            gx, gy = max(slopes, key=lambda g: g[0] ** 2 + g[1] ** 2)
            length, angle = np.hypot(gx, gy), np.arctan2(gy, gx)
            for b in range(bins):
                edge = np.cos(2 * np.pi / bins)
                energy[y, x, b] = length * max(0, (np.cos(angle - 2 * np.pi * b / bins) - edge) / (1 - edge))
    side = max(1, round(cell * scale))
    side += (side - stride) % 2
    triangle = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)).astype(float)
    triangle /= triangle.sum()
    out = np.zeros((height // stride, width // stride, len(offsets), len(offsets), bins))
    for i in range(height // stride):
        for j in range(width // stride):
            centre_y, centre_x = (i + 0.5) * stride - 0.5, (j + 0.5) * stride - 0.5
            for a, dy in enumerate(offsets):
                for b, dx in enumerate(offsets):
                    for s, weight_y in enumerate(triangle):
                        for t, weight_x in enumerate(triangle):
                            y = centre_y + round(dy * scale) + s - (side - 1) / 2
                            x = centre_x + round(dx * scale) + t - (side - 1) / 2
                            assert y == int(y)  # cells lie on whole pixels
                            if 0 <= y < height and 0 <= x < width:
                                out[i, j, a, b] += weight_y * weight_x * energy[int(y), int(x)]
    out = out.reshape(*out.shape[:2], -1)
    return np.sqrt(out / (out.sum(-1, keepdims=True) + floor))


OPTIONS = [
    dict(),
    dict(color="max", bins=5, offsets=(-5.0, 0.0, 4.0), cell=3.0, stride=2, scales=(1.0,)),
    dict(bins=4, offsets=(2.0,), cell=4.0, stride=1, scales=(1.0, 1.5)),
    dict(color="max", offsets=(-4.0, 4.0), cell=5.0, stride=3, scales=(0.5, 1.0)),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_brute_force(options):
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 18, 3), np.uint8)
    images[1, :6] = 77  # flat: there the floor alone decides
    backbone = GradientHistograms(**options)
    found = jax.jit(backbone.features)(backbone.load(), images)
    assert list(found) == [tap.name for tap in backbone.spec.taps]
    fields = {k: getattr(backbone, k) for k in ("bins", "offsets", "cell", "stride", "color", "floor")}
    for tap, scale in zip(backbone.spec.taps, backbone.scales, strict=True):
        assert found[tap.name].shape == (2, 12 // backbone.stride, 18 // backbone.stride, tap.channels)
        for b in range(2):
            expected = reference(images[b], scale, **fields)
            np.testing.assert_allclose(found[tap.name][b], expected, atol=2e-4)


def test_default_has_the_size_it_promises():
    backbone = GradientHistograms()
    shapes = jax.eval_shape(lambda i: backbone.features({}, i), jax.ShapeDtypeStruct((2, 80, 64, 3), jnp.uint8))
    for tap in backbone.spec.taps:
        assert shapes[tap.name].shape == (2, 80 // tap.stride, 64 // tap.stride, tap.channels)


def test_follows_a_shift_and_ignores_brightness_and_contrast():
    rng = np.random.default_rng(1)
    image = rng.integers(40, 200, (64, 64, 3)).astype(np.uint8)
    backbone = GradientHistograms(scales=(1.0,))
    describe = jax.jit(lambda i: backbone.features({}, i)["scale0"])
    plain = np.asarray(describe(image[None]))[0]
    moved = np.asarray(describe(np.roll(image, (4, -6), (0, 1))[None]))[0]
    inner = plain[9:-9, 9:-9]  # cells that reach no border
    np.testing.assert_allclose(moved[11:-7, 6:-12], inner, atol=1e-5)
    paler = np.asarray(describe((image // 2 + 60)[None]))[0]
    assert np.abs(paler[9:-9, 9:-9] - inner).mean() < 0.01 < np.abs(moved[9:-9, 9:-9] - inner).mean()
    np.testing.assert_allclose((inner**2).sum(-1), 1, atol=0.02)  # unit length, but for the floor


def test_fingerprint_tells_options_apart():
    prints = {GradientHistograms(**options).spec.fingerprint for options in OPTIONS}
    assert len(prints) == len(OPTIONS)
    assert GradientHistograms().spec == GradientHistograms(scales=(1.0, 2.0)).spec


def test_bad_input_is_named():
    with pytest.raises(UserError, match="color"):
        GradientHistograms(color="hue")
    with pytest.raises(UserError, match="bins"):
        GradientHistograms(bins=2)
    with pytest.raises(UserError, match="multiples of the stride"):
        GradientHistograms().features({}, jnp.zeros((1, 9, 8, 3), jnp.uint8))

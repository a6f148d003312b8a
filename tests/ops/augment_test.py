import colorsys
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter1d

from uld_jax.ops import augment, coordinates

SOURCE, VIEW = (40, 50), (24, 20)
IMAGE = np.random.default_rng(0).uniform(0, 1, (*SOURCE, 3)).astype(np.float32)
STILL = jnp.arange(4)  # brightness, contrast, saturation, hue
NOTHING = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def boxes(geometry):
    """Left, top, right and bottom borders of the parts that views show, in pixels' borders, and which are mirrored."""
    scale_x, scale_y, shift_x, shift_y = np.asarray(geometry, np.float64).T
    ends = [shift_x - 0.5 * scale_x, shift_x + (VIEW[1] - 0.5) * scale_x]
    top, bottom = shift_y - 0.5 * scale_y, shift_y + (VIEW[0] - 0.5) * scale_y
    return np.stack([np.min(ends, 0), top, np.max(ends, 0), bottom], -1) + 0.5, scale_x < 0


draw_crops = jax.jit(jax.vmap(lambda key: augment.random_crop(key, SOURCE, VIEW, area=(0.1, 0.8), flip=0.3)))


def test_examples():
    found = doctest.testmod(augment)
    assert found.attempted >= 1
    assert found.failed == 0


def test_crops_have_the_law_of_torchvision():
    box, mirrored = boxes(draw_crops(keys(4000)))
    assert (box[:, :2] > -1e-4).all()
    assert (box[:, 2] < SOURCE[1] + 1e-4).all()
    assert (box[:, 3] < SOURCE[0] + 1e-4).all()
    wide, high = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    share, ratio = wide * high / (SOURCE[0] * SOURCE[1]), np.log(wide / high)
    assert 0.1 <= share.min() < 0.101
    assert 0.79 < share.max() <= 0.8001
    assert abs(ratio).max() < np.log(4 / 3) + 1e-4
    # Small boxes always fit, so that their laws are those of the draw: uniform shares and logarithms of the aspect.
    small = share < 0.4
    np.testing.assert_allclose(np.quantile(share[small], [0.25, 0.5, 0.75]), [0.175, 0.25, 0.325], atol=0.015)
    np.testing.assert_allclose(np.quantile(ratio[small], [0.25, 0.5, 0.75]) / np.log(4 / 3), [-0.5, 0, 0.5], atol=0.1)
    places = box[:, :2] / (np.array(SOURCE[::-1]) - np.stack([wide, high], -1))
    np.testing.assert_allclose(np.quantile(places, [0.25, 0.5, 0.75], axis=0).T, [[0.25, 0.5, 0.75]] * 2, atol=0.03)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.05
    assert 0.27 < mirrored.mean() < 0.33


def test_a_crop_beside_another_keeps_its_size_and_stays_near_and_inside():
    first, second = draw_crops(keys(4000)), draw_crops(keys(4000, 1))
    move = jax.jit(jax.vmap(lambda key, g, other: augment.beside(key, g, other, SOURCE, VIEW, 0.3)))
    (one, _), (old, was), (box, mirrored) = boxes(first), boxes(second), boxes(move(keys(4000, 2), second, first))
    middle = lambda b: (b[:, :2] + b[:, 2:]) / 2
    side = lambda b: b[:, 2:] - b[:, :2]
    np.testing.assert_allclose(side(box), side(old), atol=1e-4)
    np.testing.assert_array_equal(mirrored, was)
    assert (box[:, :2] > -1e-4).all()
    assert (box[:, 2:] < np.array(SOURCE[::-1]) + 1e-4).all()
    away = (middle(box) - middle(one)) / side(one)
    half = side(box) / 2
    free = ((middle(one) - 0.3 * side(one) > half) & (middle(one) + 0.3 * side(one) < SOURCE[::-1] - half)).all(-1)
    assert free.sum() > 200
    assert abs(away[free]).max() < 0.3 + 1e-4
    np.testing.assert_allclose(
        np.quantile(away[free], [0.25, 0.5, 0.75], axis=0), [[-0.15] * 2, [0] * 2, [0.15] * 2], atol=0.05
    )


def test_without_a_box_that_fits_the_centre_is_shown():
    options = dict(area=(1.0, 1.0), aspect=(0.5, 0.8))  # of an image that is wider than high
    box, mirrored = boxes(jax.jit(jax.vmap(lambda key: augment.random_crop(key, SOURCE, VIEW, **options)))(keys(3)))
    np.testing.assert_allclose(box, [[9, 0, 41, 40]] * 3, atol=1e-4)
    assert not mirrored.any()


@pytest.mark.parametrize(("method", "resample"), [("cubic", Image.BICUBIC), ("linear", Image.BILINEAR)])
def test_views_equal_pillow(method, resample):
    geometry = draw_crops(keys(12, 3))
    box, mirrored = boxes(geometry)
    assert mirrored.any()
    assert not mirrored.all()
    smaller = (box[:, 2] - box[:, 0]) / VIEW[1]
    assert smaller.min() < 1 < smaller.max()  # enlarged and reduced
    views = jax.jit(jax.vmap(lambda g: augment.crop(jnp.asarray(IMAGE), g, VIEW, method)))(geometry)
    channels = [Image.fromarray(IMAGE[..., c]) for c in range(3)]  # of mode F, without rounding
    for found, one, flip in zip(views, box, mirrored, strict=True):
        one = np.clip(one, 0, [*SOURCE[::-1]] * 2)
        expected = np.stack([np.asarray(c.resize(VIEW[::-1], resample, tuple(one))) for c in channels], -1)
        np.testing.assert_allclose(found, np.clip(expected[:, ::-1] if flip else expected, 0, 1), atol=1e-4)


def test_a_whole_image_equals_torch_and_bytes_are_taken():
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(1).integers(0, 256, (*SOURCE, 3), np.uint8)
    whole = jnp.asarray([SOURCE[1] / VIEW[1], SOURCE[0] / VIEW[0], 0.75, 1 / 3])
    for method, name in (("cubic", "bicubic"), ("linear", "bilinear")):
        found = augment.crop(jnp.asarray(image), whole, VIEW, method)
        given = torch.tensor(np.moveaxis(image, -1, 0)[None] / np.float32(255))
        expected = torch.nn.functional.interpolate(given, VIEW, mode=name, antialias=True)[0].clamp(0, 1)
        np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 0, -1), atol=1e-5)


def test_points_go_with_the_view():
    ramp = np.stack(np.meshgrid(np.arange(SOURCE[1]) / 64, np.arange(SOURCE[0]) / 64), -1).astype(np.float32)
    for geometry in draw_crops(keys(4, 5)):
        view = np.asarray(augment.crop(jnp.asarray(ramp), geometry, VIEW, "linear"))
        cells = coordinates.pixel_grid(*VIEW).reshape(-1, 2)
        places = coordinates.file_to_frame(cells, np.asarray(geometry))
        inside = ((places > 3) & (places < np.array(SOURCE[::-1]) - 4)).all(-1)  # the kernel reads no border
        # A widened kernel keeps a ramp's mean, and each value of it up to a tenth of a pixel.
        away = 64 * view.reshape(-1, 2)[inside] - places[inside]
        assert abs(away).max() < 0.12
        assert abs(away.mean(0)).max() < 0.01
        np.testing.assert_allclose(coordinates.frame_to_file(places, np.asarray(geometry)), cells, atol=1e-3)


def jitter_reference(image, order, factors, law):
    """One change after the other, pixel by pixel for HSV, in float64."""
    image = image.astype(np.float64)
    grey = lambda x: (x @ np.array([0.299, 0.587, 0.114]))[..., None]

    def in_hsv(x, change):
        flat = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in x.reshape(-1, 3)]
        return np.array(flat).reshape(x.shape)

    for number in order:
        by = factors[number]
        if number == 0:
            image = image + by if law == "byol" else image * by
        elif number == 1:
            level = image.mean((0, 1)) if law == "byol" else grey(image).mean()
            image = level + by * (image - level)
        elif number == 2 and law == "byol":
            image = in_hsv(image, lambda h, s, v, by=by: (h, min(1, s * by), v))
        elif number == 2:
            image = grey(image) + by * (image - grey(image))
        else:
            image = in_hsv(image, lambda h, s, v, by=by: ((h + by) % 1, s, v))
        image = np.clip(image, 0, 1)
    return image


def amount(name, law, image, found):
    """The random number of a jitter of one change alone, from where nothing was clipped."""
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    free = (found > 0.02) & (found < 0.98) & (image > 0.02)
    if name == "brightness":
        values = (found - image)[free] if law == "byol" else (found / image)[free]
    elif name == "hue":
        pairs = zip(image.reshape(-1, 3), found.reshape(-1, 3))
        turns = [(colorsys.rgb_to_hsv(*b)[0] - colorsys.rgb_to_hsv(*a)[0] + 0.5) % 1 - 0.5 for a, b in pairs]
        values = np.array(turns)
    else:
        if name == "contrast":
            level = np.broadcast_to(image.mean((0, 1)) if law == "byol" else grey.mean(), image.shape)
        else:
            level = np.broadcast_to(image.max(-1, keepdims=True) if law == "byol" else grey, image.shape)
        away = free & (np.abs(image - level) > 0.1)
        values = ((found - level) / np.where(away, image - level, 1))[away]
    return np.median(values)


@pytest.mark.parametrize("law", ["byol", "torchvision"])
def test_jitter_equals_the_changes_one_after_the_other(law):
    image = IMAGE[:9, :8]
    amounts = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)

    def jitter(**amounts):
        one = lambda key, order: augment.color_jitter(key, jnp.asarray(image), order, law=law, **amounts)
        return jax.jit(jax.vmap(one, (0, None)))

    some = keys(40, 7)
    alone = {name: np.asarray(jitter(**NOTHING | {name: size})(some, STILL)) for name, size in amounts.items()}
    factors = np.array([[amount(name, law, image, found) for found in alone[name]] for name in amounts]).T
    low = np.array([-0.4 if law == "byol" else 0.6, 0.6, 0.8, -0.1])
    high = np.array([0.4 if law == "byol" else 1.4, 1.4, 1.2, 0.1])
    assert (factors > low - 1e-3).all()
    assert (factors < high + 1e-3).all()
    assert (factors.min(0) < low + 0.15 * (high - low)).all()
    assert (factors.max(0) > high - 0.15 * (high - low)).all()
    whole = jitter(**amounts)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        found = whole(some[:6], jnp.asarray(order))
        for one, by in zip(found, factors):
            np.testing.assert_allclose(one, jitter_reference(image, order, by, law), atol=2e-4)


def test_torchvision_changes_equal_pillow():
    bytes_ = np.random.default_rng(2).integers(0, 256, (12, 10, 3), np.uint8)
    image, picture = bytes_ / np.float32(255), Image.fromarray(bytes_)
    enhancers = (("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast))
    for name, enhance in (*enhancers, ("saturation", ImageEnhance.Color)):
        found = np.asarray(
            augment.color_jitter(
                jax.random.key(3), jnp.asarray(image), STILL, law="torchvision", **NOTHING | {name: 0.3}
            )
        )
        expected = np.asarray(enhance(picture).enhance(amount(name, "torchvision", image, found)))
        assert abs(255 * found - expected).max() < 1.6  # Pillow rounds grey levels, then results, to whole numbers
        assert abs(255 * (found - image)).max() > 5


def test_an_order_for_all_images_is_a_branch_and_one_for_each_is_not():
    jitter = lambda k, o: augment.color_jitter(k, jnp.asarray(IMAGE), o)
    shared = str(jax.make_jaxpr(jax.vmap(jitter, (0, None)))(keys(3), STILL))
    assert shared.count("cond[") == 4
    each = str(jax.make_jaxpr(jax.vmap(jitter))(keys(3), jnp.stack([STILL] * 3)))
    assert "cond[" not in each


def test_orders_are_all_equally_likely():
    orders = np.asarray(jax.jit(jax.vmap(augment.random_order))(keys(2400)))
    assert (np.sort(orders) == np.arange(4)).all()
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert counts.min() > 60


def recolored(count=200, **options):
    off = dict(jitter=0.0, grey=0.0, blur=0.0, solarize=0.0)
    one = lambda key: augment.recolor(key, jnp.asarray(IMAGE), STILL, **off | options)
    return np.asarray(jax.jit(jax.vmap(one))(keys(count, 9)))


def test_probabilities_are_those_asked_for():
    untouched = lambda found: (found == IMAGE).all((1, 2, 3)).mean()
    assert untouched(recolored(4)) == 1
    for name in ("jitter", "blur", "solarize"):
        assert 0.22 < untouched(recolored(**{name: 0.7})) < 0.38
        assert untouched(recolored(20, **{name: 1.0})) == 0
    grey = np.ptp(recolored(grey=0.25), axis=-1).max((1, 2)) == 0
    assert 0.18 < grey.mean() < 0.32


def test_blur_has_a_random_width_and_the_kernel_of_a_tenth_of_the_image():
    found = recolored(30, blur=1.0, sigma=(0.3, 1.5))
    error = {}
    for sigma in np.linspace(0.3, 1.5, 121):
        blurred = IMAGE
        for axis in (0, 1):
            blurred = gaussian_filter1d(blurred, sigma, axis=axis, mode="nearest", radius=2)  # of 40 rows: 5 taps
        error[sigma] = np.abs(found - blurred).max((1, 2, 3))
    nearest = np.array(list(error))[np.argmin(list(error.values()), 0)]
    assert np.min(list(error.values()), 0).max() < 0.01
    assert nearest.min() < 0.45
    assert nearest.max() > 1.35


def test_solarisation_and_lighting():
    found = recolored(2, solarize=1.0)[0]
    np.testing.assert_allclose(found, np.where(IMAGE < 0.5, IMAGE, 1 - IMAGE), atol=1e-6)
    light = jax.jit(jax.vmap(lambda key: augment.pca_lighting(key, jnp.asarray(IMAGE[:6, :5]), 0.1)))
    added = np.asarray(light(keys(3000, 11))) - IMAGE[:6, :5]
    assert np.ptp(added, axis=(1, 2)).max() < 1e-6
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(added[:, 0, 0].T), expected, atol=0.05 * expected.max())
    np.testing.assert_allclose(added.mean((0, 1, 2)), 0, atol=2e-3)


def test_rows_keep_their_draws_in_another_batch():
    def view(key, order):
        crop_key, color_key = jax.random.split(key)
        geometry = augment.random_crop(crop_key, SOURCE, VIEW)
        return augment.recolor(color_key, augment.crop(jnp.asarray(IMAGE), geometry, VIEW), order, solarize=0.2)

    make = jax.jit(jax.vmap(view, (0, None)))
    every = make(keys(8), STILL)
    assert every.shape == (8, *VIEW, 3)
    assert len(np.unique(np.asarray(every).mean((1, 2, 3)))) == 8
    np.testing.assert_allclose(make(keys(8)[jnp.array([5, 2])], STILL), every[jnp.array([5, 2])], atol=1e-6)

import warnings

import jax
import numpy as np
import pytest

from uld_jax.evaluation import stability as st
from uld_jax.evaluation.measure import SCALED
from uld_jax.ops import warp

SPOTS = np.array([[20.0, 24.0], [40.0, 22.0], [31.0, 42.0]])
COLOURS = np.eye(3)


def blobs(n=6, side=64, seed=0):
    """Images with one red, one green and one blue blob, and where these are."""
    rng = np.random.default_rng(seed)
    xy = SPOTS * side / 64 + rng.uniform(-4, 4, (n, 3, 2))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)
    near = np.exp(-((grid[None, :, :, None] - xy[:, None, None]) ** 2).sum(-1) / (2 * (side / 21) ** 2))
    return np.round(255 * near @ COLOURS).astype(np.uint8), xy


def stable(predict, images, **options):
    return st.stability(predict, images.__getitem__, len(images), **options)


def mirrored(predict, images, **options):
    return st.mirrored_distances(predict, images.__getitem__, *predict(images), **options)


def centroid(images):
    """A detector that follows the blobs: the centroid of each colour."""
    images = np.asarray(images, np.float64)
    weights = images / images.sum((1, 2), keepdims=True)
    grid = np.stack(np.meshgrid(np.arange(images.shape[2]), np.arange(images.shape[1])), -1)
    return np.einsum("bhwk,hwc->bkc", weights, grid), np.ones((len(images), 3))


def frozen(images):
    return np.broadcast_to(SPOTS, (len(images), 3, 2)), np.ones((len(images), 3))


def test_a_detector_that_follows_is_stable_and_a_frozen_one_is_not():
    images, _ = blobs()
    good = stable(centroid, images, seed=1, batch_size=4)
    assert good.px < 0.15
    assert (good.counted == 6).all()
    assert (good.per_landmark < 0.2).all()
    bad = stable(frozen, images, seed=1, batch_size=4)
    turns = jax.vmap(lambda i: warp.random_warp(jax.random.fold_in(jax.random.key(1), i), rotation=15, clip=40 / 15))
    linear = np.asarray(turns(np.arange(6)).linear)  # view -> source; its inverse is its transpose
    moved = np.array([(SPOTS - 31.5) @ a + 31.5 for a in linear])
    np.testing.assert_allclose(bad.per_landmark, 2 * np.linalg.norm(moved - SPOTS, axis=-1).mean(0), rtol=1e-4)
    assert bad.px > 5 * good.px


def test_landmarks_are_what_each_view_takes_them_for():
    images, _ = blobs()

    def by_height(batch):
        """Follows the blobs, but the highest is landmark 0: a turn makes the upper two change places."""
        xy, score = centroid(batch)
        return np.take_along_axis(xy, np.argsort(xy[..., 1], 1)[..., None], 1), score

    named, ranked = (stable(find, images, seed=1, batch_size=6) for find in (centroid, by_height))
    assert named.px < 0.15
    assert ranked.per_landmark[2] < 0.3  # the lowest stays the lowest
    swapped = ranked.per_landmark[:2] / 2 * 6  # summed over the images, in their pixels
    apart = np.linalg.norm(SPOTS[0] - SPOTS[1])
    assert (swapped > 0.7 * apart).all()


def test_sizes_of_the_scaled_variant():
    key = jax.random.key(0)
    turns = jax.vmap(lambda i: warp.random_warp(jax.random.fold_in(key, i), rotation=15, scale=SCALED, clip=40 / 15))
    sizes = np.sqrt(np.abs(np.linalg.det(np.asarray(turns(np.arange(2000)).linear))))
    assert 0.9 < sizes.min() < 0.91
    assert 1.09 < sizes.max() < 1.11
    images, _ = blobs()
    scaled = stable(centroid, images, seed=1, batch_size=6, scale=SCALED).px
    assert scaled < 0.2
    assert scaled != stable(centroid, images, seed=1, batch_size=6).px
    assert stable(centroid, images, seed=1, batch_size=6, scale=SCALED).protocol == "turned_15_scaled_0.0375_px_128"


def test_the_unit_is_pixels_at_128():
    bad = []
    for side in (64, 32):
        place = SPOTS * side / 64
        detector = lambda batch, place=place: (np.tile(place, (len(batch), 1, 1)), np.ones((len(batch), 3)))
        bad.append(stable(detector, blobs(4, side)[0], batch_size=4).px)
    assert bad[0] == pytest.approx(bad[1], rel=0.05)


def test_batches_and_padding_do_not_matter():
    images, _ = blobs(7)
    one, two = (stable(centroid, images, batch_size=b, scale=0.1) for b in (7, 4))
    np.testing.assert_allclose(one.per_landmark, two.per_landmark, rtol=1e-5)
    np.testing.assert_array_equal(one.counted, two.counted)


def test_points_missing_or_turned_out_of_the_frame_do_not_count():
    images, _ = blobs(8)

    def detector(batch):
        xy, score = centroid(batch)
        corner = np.full((len(batch), 1, 2), 0.0)  # in the image's corner: a turn takes it out of the frame
        score[:, 0] = 0
        return np.concatenate([xy, corner], 1), np.concatenate([score, np.ones((len(batch), 1))], 1)

    result = stable(detector, images, batch_size=4)
    assert result.counted[0] == 0
    assert np.isnan(result.per_landmark[0])
    assert 0 < result.counted[1] <= 8
    assert result.counted[3] < 8
    nothing = stable(lambda i: (np.zeros((len(i), 2, 2)), np.zeros((len(i), 2))), images, batch_size=4)
    assert np.isnan(nothing.px)


def test_the_error_is_averaged_over_images_and_then_over_landmarks():
    images, _ = blobs(8)

    def detector(batch):
        """The centroids, the first twice as far from the middle and found on few images alone."""
        xy, score = centroid(batch)
        xy[:, 0] = 31.5 + 2 * (SPOTS[0] - 31.5)  # it does not follow
        score[:, 0] = xy[:, 1, 0] > 40
        return xy, score

    result = stable(detector, images, seed=3, batch_size=8)
    key = jax.random.key(3)
    sums, counts = np.zeros(3), np.zeros(3)
    for i, image in enumerate(images):  # one image after the other
        a = warp.random_warp(jax.random.fold_in(key, i), rotation=15, clip=40 / 15)
        view = warp.warp_image(a, image.astype(np.float32), image.shape[:2])
        xy, score = detector(image[None])
        other, other_score = detector(np.clip(np.round(np.asarray(view)), 0, 255)[None])
        wanted = np.asarray(warp.points_to_view(a, xy[0].astype(np.float32), (64, 64), (64, 64)))
        for k in range(3):
            if score[0, k] and other_score[0, k] and (np.abs(wanted[k] - 31.5) <= 32).all():
                sums[k] += 2 * np.hypot(*(other[0, k] - wanted[k]))
                counts[k] += 1
    np.testing.assert_array_equal(result.counted, counts)
    assert 0 < counts[0] < counts[1]
    assert result.px == pytest.approx(np.mean(sums / counts), rel=1e-4)
    assert result.px != pytest.approx(sums.sum() / counts.sum(), rel=0.1)
    assert result.protocol == "turned_15_px_128"


def test_bad_images_are_refused():
    for images in (np.zeros((2, 8, 9, 3), np.uint8), np.zeros((2, 8, 8, 3))):
        with pytest.raises(ValueError, match="uint8"):
            stable(centroid, images)
    with pytest.raises(ValueError, match="one image or more"):
        stable(centroid, np.zeros((0, 8, 8, 3), np.uint8))


def test_images_are_read_a_batch_at_a_time():
    images, asked = blobs()[0], []
    whole = stable(centroid, images, seed=2, batch_size=4)
    parts = st.stability(centroid, lambda i: (asked.append(i.tolist()), images[i])[1], 6, seed=2, batch_size=4)
    assert asked == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert parts.px == whole.px


def test_landmark_health():
    rng = np.random.default_rng(0)
    found = rng.uniform(10, 90, (40, 6, 2))
    score = np.ones((40, 6))
    found[:, 1] = rng.normal(50, 0.1, (40, 2))  # constant
    found[:, 3] = found[:, 0] + rng.normal(0, 0.3, (40, 2))  # lies on 0
    score[:, 4] = 0
    found[:20, 5] = found[:20, 2]  # lies on 2 in half of the images only
    with pytest.warns(st.LandmarkWarning) as seen:
        health = st.landmark_health(found, score, 100)
    assert health == st.Health(missing=[4], constant=[1], coincident=[(0, 3)])
    text = " / ".join(str(w.message) for w in seen)
    assert len(seen) == 3
    assert "0 and 3" in text
    assert "every image: 1;" in text
    assert "no image: 4;" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert st.landmark_health(found[:, [0, 2]], score[:, [0, 2]], 100) == ([], [], [])


def test_landmark_health_ignores_missing_points():
    rng = np.random.default_rng(1)
    found = rng.uniform(10, 90, (40, 2, 2))
    score = (np.arange(40) % 2 == 0)[:, None] * np.ones((40, 2))
    found[::2, 0] = 30
    found[1::2, 1] = np.nan
    with pytest.warns(st.LandmarkWarning, match="same place"):
        assert st.landmark_health(found, score, 100).constant == [0]


def test_mirrored_landmarks_are_compared_with_their_partners():
    """A red blob on the left and a green one on the right that change places in the mirror; the blue one stays."""
    images, _ = blobs()
    side = images.shape[1]

    def by_side(batch):
        found, score = centroid(batch)
        order = np.argsort(found[:, :2, 0], 1)
        return np.concatenate([np.take_along_axis(found[:, :2], order[..., None], 1), found[:, 2:]], 1), score

    distances = mirrored(by_side, images, batch_size=4)
    assert distances.shape == (6, 3)
    assert distances.max() < 0.2
    # Points that stay where they are: each is compared with the nearest mirrored one, in pixels at 128.
    far = np.linalg.norm(SPOTS[:, None] - np.stack([side - 1 - SPOTS[:, 0], SPOTS[:, 1]], -1)[None], axis=-1)
    expected = far[[0, 1, 2], [1, 0, 2]] * 2
    np.testing.assert_allclose(mirrored(frozen, images), np.broadcast_to(expected, (6, 3)), rtol=1e-6)
    missing = lambda batch: (frozen(batch)[0], np.array([[1.0, 1.0, 0.0]]).repeat(len(batch), 0))
    assert np.isnan(mirrored(missing, images)[:, 2]).all()

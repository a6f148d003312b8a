"""Parts: clusters of features against explicit cosines, and their agreement with points."""

import jax
import numpy as np
import pytest

from uld_jax.evaluation.dense import parts
from uld_jax.ops import hypercolumns


def test_maps_of_parts_are_those_of_the_largest_cosine():
    rng = np.random.default_rng(0)
    maps = tuple(rng.normal(size=shape).astype(np.float32) for shape in ((2, 6, 6, 3), (2, 3, 3, 2)))
    centroids = rng.normal(size=(4, 5))
    centroids = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float32)
    found = jax.jit(parts.part_maps, static_argnums=2)(maps, centroids, 12)
    columns = np.asarray(jax.jit(hypercolumns.materialise, static_argnums=1)(maps, 12), np.float64)
    cosine = np.einsum("byxc,mc->byxm", columns, centroids) / np.linalg.norm(columns, axis=-1, keepdims=True)
    np.testing.assert_array_equal(found, cosine.argmax(-1))


class Halves:
    """Images whose left half has one direction of features and whose right half has another."""

    def shapes(self, side):
        return [(4, 4, 2)]

    def batches(self, images, batch):
        for start in range(0, len(images), batch):
            maps = np.zeros((batch, 4, 4, 2), np.float32)
            maps[:, :, :2, 0], maps[:, :, 2:, 1] = 3.0, 0.2
            yield np.arange(start, min(start + batch, len(images))), (maps,)


def test_cells_of_two_kinds_make_two_parts():
    rows = parts.sample(Halves(), np.zeros((5, 8, 8, 3), np.uint8), 4, batch=2)
    assert rows.shape == (5 * 16, 2)  # every cell of each image, those that fill the last batch left out
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    found = parts.cluster(rows, 2)
    assert sorted(found.sizes) == [40, 40]
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert len({*found.labels[found.rows[:, 0] > 0.5]}) == 1


def test_parts_at_points():
    maps = np.arange(16).reshape(1, 4, 4)
    xy = np.array([[[0.0, 0.0], [7.4, 7.0], [3.0, 4.0], [8.0, 2.0], [np.nan, 1.0]]])
    assert parts.at_points(maps, xy, 8).tolist() == [[0, 15, 9, -1, -1]]


def test_agreement_with_landmarks():
    perfect = np.tile([2, 0, 1], (6, 1))
    assert parts.agreement(perfect, 4) == (pytest.approx(1, abs=1e-5), pytest.approx(1), 18)
    blurred = perfect.copy()
    blurred[:, 1], blurred[0, 0] = 2, -1
    nmi, purity, points = parts.agreement(blurred, 4)
    assert (purity, points) == (pytest.approx(12 / 17), 17)
    assert 0.3 < nmi < 0.9

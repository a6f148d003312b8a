import numpy as np
import pytest

from tests.evaluation.shapes import evaluate, landmarks
from uld_jax.evaluation.scores import averaged


def test_results_of_several_fits_are_averaged():
    train, test = landmarks(60, missing=0.2, seed=1), landmarks(30, missing=0.2, seed=2)
    results = [evaluate(train.take(rows), test) for rows in (range(20), range(20, 40), range(25, 60))]
    together = averaged(results)
    for name in ("forward_nme", "backward_nme", "mean_shape_nme", "forward_nme_visible", "ced_auc", "found_share"):
        assert getattr(together, name) == pytest.approx(np.mean([getattr(r, name) for r in results]))
    for name in ("forward_nme", "backward_nme"):
        assert getattr(together.spread, name) == pytest.approx(np.std([getattr(r, name) for r in results], ddof=1))
        some = np.stack([getattr(r.per_image, name) for r in results])
        np.testing.assert_allclose(getattr(together.per_image, name), np.nanmean(some, 0))
    table = [r.per_landmark.backward for r in results]
    np.testing.assert_allclose(together.per_landmark.backward, np.mean(table, 0))
    often = [r.often_found.forward_nme for r in results if r.often_found.forward_nme is not None]
    assert together.often_found.forward_nme == pytest.approx(np.mean(often))
    assert together.n_train == 20
    assert together.protocol == results[0].protocol
    np.testing.assert_array_equal(together.predicted, results[0].predicted)
    assert averaged(results[:1]) is results[0]
    assert results[0].spread is None
    with pytest.raises(ValueError, match="at least one"):
        averaged([])

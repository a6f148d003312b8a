import numpy as np
import pytest

from tests.evaluation.shapes import evaluate, landmarks
from uld_jax.errors import UserError
from uld_jax.evaluation.label_counts import label_counts


def test_label_counts():
    train, test = landmarks(60, seed=14), landmarks(25, seed=15)
    options = {"normaliser": "box", "repeats": 4}
    with pytest.warns(UserWarning, match="60 annotated"):
        rows = label_counts(train, test, counts=(1, 10, "all", 500), seed=3, **options)
    assert [r.n for r in rows] == [1, 10, 60]
    assert [r.repeats for r in rows] == [4, 4, 1]
    assert rows[0].forward_nme == pytest.approx(rows[0].mean_shape_nme)
    full = evaluate(train, test, normaliser="box")
    assert rows[2].forward_nme == pytest.approx(full.forward_nme)
    assert rows[2].forward_nme_std == 0
    assert rows[2].mean_shape_nme == pytest.approx(full.mean_shape_nme)
    assert rows[0].forward_nme > rows[1].forward_nme > rows[2].forward_nme
    alone = label_counts(train, test, counts=("10",), seed=3, **options)
    assert alone[0] == rows[1]  # draws do not depend on the other counts
    assert label_counts(train, test, counts=(10,), seed=4, **options)[0] != rows[1]
    draws = [evaluate(train.take(np.random.default_rng((3, 10, r)).permutation(60)[:10]), test, normaliser="box")
             for r in range(4)]  # fmt: skip
    assert rows[1].forward_nme == pytest.approx(np.mean([d.forward_nme for d in draws]))
    assert rows[1].forward_nme_std == pytest.approx(np.std([d.forward_nme for d in draws]))
    with pytest.raises(UserError, match="label_counts"):
        label_counts(train, test, counts=("many",), **options)


def test_few_labels_are_completed_on_all_images():
    train, test = landmarks(60, missing=0.2, seed=25), landmarks(25, missing=0.2, seed=26)
    rows = label_counts(train, test, normaliser=(0, 1), counts=(8,), repeats=3, seed=5)
    fits = [np.random.default_rng((5, 8, r)).permutation(60)[:8] for r in range(3)]
    assert rows[0].forward_nme == pytest.approx(evaluate(train, test, fits=fits).forward_nme)

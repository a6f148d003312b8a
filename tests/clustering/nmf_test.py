import doctest
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.decomposition import non_negative_factorization

from tests import tiny
from uld_jax.clustering import nmf
from uld_jax.errors import UserError

ROWS, SIZE, RANK, STEPS = 60, 24, 5, 30
RNG = np.random.default_rng(0)
X = np.maximum(RNG.gamma(1.0, 1.0, (ROWS, 6)) @ RNG.gamma(0.5, 1.0, (6, SIZE)) - 0.5, 0).astype(np.float32)
INIT = tuple(RNG.uniform(0.1, 1, shape).astype(np.float32) for shape in ((ROWS, RANK), (RANK, SIZE)))


def scikit(x, codes, dictionary, steps, update_dictionary=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        return non_negative_factorization(
            x.astype(np.float64),
            W=codes.astype(np.float64),
            H=dictionary.astype(np.float64),
            n_components=RANK,
            init="custom",
            update_H=update_dictionary,
            solver="mu",
            tol=0,
            max_iter=steps,
        )[:2]


def test_examples():
    found = doctest.testmod(nmf)
    assert found.attempted >= 4
    assert found.failed == 0


def test_updates_equal_scikit_learn():
    codes, dictionary = scikit(X, *INIT, STEPS)
    found = nmf.fit(None, X, RANK, STEPS, init=INIT)
    np.testing.assert_allclose(found.codes, codes, rtol=1e-4, atol=1e-5 * codes.max())
    np.testing.assert_allclose(found.dictionary, dictionary, rtol=1e-4, atol=1e-5 * dictionary.max())
    assert np.abs(codes - INIT[0]).max() > 0.1  # or the test shows nothing


def test_errors_are_those_of_the_factors_and_never_grow():
    found = nmf.fit(jax.random.key(1), X, RANK, STEPS)
    assert found.errors.shape == (STEPS + 1,)
    assert (np.diff(found.errors) <= 1e-5 * found.errors[0]).all()
    assert found.errors[-1] < 0.5 * found.errors[0]
    product = np.asarray(found.codes, np.float64) @ np.asarray(found.dictionary, np.float64)
    np.testing.assert_allclose(found.errors[-1], np.linalg.norm(X - product), rtol=1e-4)
    start = nmf.fit(jax.random.key(1), X, RANK, 0)
    np.testing.assert_allclose(start.errors, [np.linalg.norm(X - start.codes @ start.dictionary)], rtol=1e-4)
    np.testing.assert_allclose(start.errors[0], found.errors[0], rtol=1e-6)
    assert (np.asarray(found.codes) >= 0).all()
    assert (np.asarray(found.dictionary) >= 0).all()


def test_the_random_start_has_the_size_of_the_rows():
    starts = [nmf.fit(jax.random.key(seed), 9 * X, RANK, 0) for seed in (0, 1)]
    size = np.sqrt(9 * X.mean() / RANK)
    for factor in (starts[0].codes, starts[0].dictionary):
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(factor))), size, rtol=0.15)
    assert np.abs(starts[0].codes - starts[1].codes).max() > 0.1


def test_masked_rows_do_not_matter():
    mask = np.arange(ROWS) % 3 > 0
    broken = np.where(mask[:, None], X, np.array([np.nan, -7.0, 1e30] * 8, np.float32))
    found = nmf.fit(None, broken, RANK, STEPS, mask=mask, init=INIT)
    expected = nmf.fit(None, X[mask], RANK, STEPS, init=(INIT[0][mask], INIT[1]))
    np.testing.assert_allclose(found.dictionary, expected.dictionary, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found.codes)[mask], expected.codes, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-4)
    assert (np.asarray(found.codes)[~mask] == 0).all()
    drawn = nmf.fit(jax.random.key(2), broken, RANK, 0, mask=mask)
    assert np.isfinite(drawn.dictionary).all()
    codes = nmf.encode(broken, INIT[1], 5, mask=mask)
    np.testing.assert_allclose(codes[mask], nmf.encode(X[mask], INIT[1], 5), rtol=1e-5)
    assert (np.asarray(codes)[~mask] == 0).all()


def test_codes_equal_scikit_learn_and_come_to_least_squares():
    dictionary = np.asarray(nmf.fit(jax.random.key(1), X, RANK, STEPS).dictionary)
    start = np.asarray(nmf.encode(X, dictionary, 0))
    assert np.ptp(start, axis=1).max() < 1e-6
    common = dictionary.sum(0)
    np.testing.assert_allclose(start[:, 0], X @ common / (common @ common), rtol=1e-5)
    codes, _ = scikit(X, start, dictionary, 50, update_dictionary=False)
    np.testing.assert_allclose(nmf.encode(X, dictionary, 50), codes, rtol=1e-4, atol=1e-5 * codes.max())
    residual = np.linalg.norm(X - nmf.encode(X, dictionary, 2000) @ dictionary, axis=1)
    best = np.array([nnls(dictionary.T.astype(np.float64), row)[1] for row in X])
    np.testing.assert_allclose(residual, best, rtol=2e-3, atol=1e-4)


def test_the_code_of_a_row_is_its_own():
    every, few = nmf.encode(X, INIT[1], 20), nmf.encode(X[7:9], INIT[1], 20)
    np.testing.assert_allclose(few, every[7:9], rtol=1e-5)
    assert (nmf.encode(np.zeros((1, SIZE), np.float32), INIT[1], 20) == 0).all()


def test_unit_atoms_keep_the_product():
    found = nmf.fit(None, X, RANK, 3, init=INIT)
    scaled = nmf.unit_atoms(found)
    np.testing.assert_allclose(np.linalg.norm(scaled.dictionary, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(scaled.codes @ scaled.dictionary, found.codes @ found.dictionary, rtol=1e-4)


def test_low_precision_rows_are_factorised_in_float32():
    low = jnp.asarray(X, jnp.bfloat16)
    found = nmf.fit(None, low, RANK, 3, init=INIT)
    assert found.codes.dtype == jnp.float32
    np.testing.assert_allclose(found.codes, nmf.fit(None, low.astype(jnp.float32), RANK, 3, init=INIT).codes, rtol=1e-6)


def test_bad_input_is_refused_and_tracing_is_not():
    for wrong in (-X, np.full_like(X, np.nan)):
        with pytest.raises(UserError, match="below 0 or not finite"):
            nmf.fit(None, wrong, RANK, 3, init=INIT)
    with pytest.raises(UserError, match=r"\[N,C\] and \[C,D\]"):
        nmf.fit(None, X, RANK + 1, 3, init=INIT)
    with pytest.raises(UserError, match=r"give \[C,24\]"):
        nmf.encode(X, INIT[0])
    with pytest.raises(UserError, match=r"give \[N,D\] and \[N\]"):
        nmf.fit(None, X, RANK, 3, mask=np.ones(3, bool))
    with pytest.raises(UserError, match="rank 0"):
        nmf.fit(None, X, 0)
    traced = jax.jit(lambda x: nmf.encode(x, INIT[1], 5))(X)
    np.testing.assert_allclose(traced, nmf.encode(X, INIT[1], 5), rtol=1e-5)


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    x, mask = np.tile(X[:8], (8, 1)), np.arange(64) % 5 > 0
    factorise = jax.jit(lambda x, mask, init: nmf.fit(None, x, RANK, 9, mask=mask, init=init))
    init = np.tile(INIT[0][:8], (8, 1)), INIT[1]
    codes, dictionary = (
        jax.device_put(init[0], sharding.split(mesh)),
        jax.device_put(init[1], sharding.replicated(mesh)),
    )
    split = *jax.device_put((x, mask), sharding.split(mesh)), (codes, dictionary)
    compiled = factorise.lower(*split).compile()
    whole, parts = factorise(x, mask, init), compiled(*split)
    report = dict(
        devices=mesh.size,
        differ=[float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.max(a)) for a, b in zip(whole, parts)],
        codes_split=parts.codes.sharding.is_equivalent_to(sharding.split(mesh), 2),
        collectives=collectives.list_collectives(compiled),
    )
    print(json.dumps(report))


@pytest.mark.slow
def test_eight_devices_equal_one_and_move_no_rows():
    report = json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])
    assert report["devices"] == 8
    assert max(report["differ"]) < 1e-5
    assert report["codes_split"]
    sent = {(kind, tuple(shape)) for kind, _, shape in report["collectives"]}
    assert sent <= {("all-reduce", shape) for shape in ((), (RANK, RANK), (RANK, SIZE))}
    assert ("all-reduce", (RANK, SIZE)) in sent


if __name__ == "__main__":
    sharded()

"""The ids of protocols, and each paper's number by a program of its own."""

import doctest

import jax
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge

from tests import tiny
from tests.evaluation.shapes import flat, landmarks, svd_completed
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_regression as lr
from uld_jax.evaluation import protocol as pr
from uld_jax.evaluation import protocols as reg
from uld_jax.evaluation.protocol import Protocol, draws

EYES = (0, 1)


def test_examples():
    assert doctest.testmod(pr).failed == 0


def measured(protocol, train, test, fits=None, data="p"):
    return lr.evaluate(train, test, data=data, normaliser=EYES, image_side=128, protocol=protocol, fits=fits)


def eyes(test):
    return np.linalg.norm(test.truth[:, 0] - test.truth[:, 1], axis=-1)


def nme(predicted, target, lengths):
    """Percent, mean over points and images."""
    apart = np.sqrt(((predicted.reshape(target.shape) - target) ** 2).sum(-1))
    return 100 * (apart / lengths[:, None]).mean()


def centred_ridge(x, y, strength, side):
    """The regressor of Sanchez, Mallis and Awan et al., on coordinates in shares of a side around the middle."""
    x, y = flat(x) / side - 0.5, flat(y) / side - 0.5
    gram = (x - x.mean(0)).T @ (x - x.mean(0))
    fit = Ridge(alpha=strength * (gram.max() + 1e-12), solver="svd").fit(x, y)
    return lambda z: side * (fit.predict(flat(z) / side - 0.5) + 0.5)


def sets(seed, missing=0.0, train=90):
    return landmarks(train, k=7, missing=missing, seed=seed), landmarks(35, k=7, missing=missing, seed=seed + 1)


def test_jakab_2018_has_no_intercept():
    train, test = sets(seed=100)
    fit = LinearRegression(fit_intercept=False).fit(flat(train.found), flat(train.truth))
    forward = nme(fit.predict(flat(test.found)), test.truth, eyes(test))
    result = measured(pr.JAKAB_2018, train, test)
    assert result.forward_nme == pytest.approx(forward, rel=1e-10)
    assert result.protocol == "p+ridge_0+no_intercept"
    affine = measured(pr.JAKAB_2018._replace(intercept=True), train, test)
    with_bias = LinearRegression().fit(flat(train.found), flat(train.truth)).predict(flat(test.found))
    assert affine.forward_nme == pytest.approx(nme(with_bias, test.truth, eyes(test)), rel=1e-10)
    assert abs(affine.forward_nme - forward) > 0.01
    assert affine.protocol == "p+ridge_0"


def test_awan_2023_fits_on_all_images_with_one_strength():
    train, test = sets(seed=200)
    forward = centred_ridge(train.found, train.truth, 0.01, side=32)(test.found)
    backward = centred_ridge(train.truth, train.found, 0.01, side=32)(test.truth)
    result = measured(pr.AWAN_2023, train, test)
    assert result.forward_nme == pytest.approx(nme(forward, test.truth, eyes(test)), rel=1e-10)
    assert result.backward_nme == pytest.approx(nme(backward, test.found, eyes(test)), rel=1e-10)
    assert (result.protocol, result.settings) == ("p", Protocol().asdict())


@pytest.mark.parametrize(
    ("paper", "strengths", "pool", "count"),
    [
        ("mallis2024", (0.001, 0.1), 0, 10),
        ("mallis2024_ls3d", (0.1, 0.1), 1000, 10),
        ("tourani2024", (0.001, 0.1), 0, 5),
        ("tourani2024_ls3d", (0.1, 0.1), 1000, 5),
    ],
)
def test_mallis_2024_and_tourani_2024_have_two_strengths_and_draw_300_images(paper, strengths, pool, count):
    protocol = reg.published(paper)
    assert (protocol.pool_images, protocol.fit_images, protocol.repeats) == (pool, 300, count)
    train, test = sets(seed=300, train=400)
    fits = draws(protocol, 400, seed=4)
    assert len(fits) == count
    assert {len(np.unique(rows)) for rows in fits} == {300}
    forward, backward = [], []
    for rows in fits:
        found, truth = train.found[rows], train.truth[rows]
        there, back = centred_ridge(found, truth, strengths[0], 218), centred_ridge(truth, found, strengths[1], 218)
        forward.append(nme(there(test.found), test.truth, eyes(test)))
        backward.append(nme(back(test.truth), test.found, eyes(test)))
    result = measured(protocol, train, test, fits)
    assert result.forward_nme == pytest.approx(np.mean(forward), rel=1e-10)
    assert result.backward_nme == pytest.approx(np.mean(backward), rel=1e-10)
    assert result.spread.forward_nme == pytest.approx(np.std(forward, ddof=1), rel=1e-8)
    assert (result.n_train, result.n_pool) == (300, 400)


def mallis_2020(train, test, fits, first):
    """Forward, from draws of a completed pool, and backward, from the first rows, of landmarks found often."""
    pool, unseen = train.score > 0, test.score > 0
    lost = (~pool).sum(0) + (~unseen).sum(0)
    kept = [k for k in range(pool.shape[1]) if lost[k] < 0.2 * (len(pool) + len(unseen))]
    found, target = train.found[:, kept], test.found[:, kept]
    pool, unseen = pool[:, kept], unseen[:, kept]
    completed = svd_completed(found, pool, 128)
    means = np.stack([found[pool[:, j], j].mean(0) for j in range(len(kept))])
    given = np.where(unseen[..., None], target, means)
    forward = [
        nme(centred_ridge(completed[rows], train.truth[rows], 0.01, 128)(given), test.truth, eyes(test))
        for rows in fits
    ]
    backward = []
    for j in range(len(kept)):
        rows, seen = np.arange(first)[pool[:first, j]], unseen[:, j]
        back = centred_ridge(train.truth[rows], found[rows, j], 0.01, 128)
        backward.append(nme(back(test.truth[seen]), target[seen, j][:, None], eyes(test)[seen]))
    return len(kept), np.mean(forward), np.mean(backward)


def test_mallis_2020_completes_the_pool_and_drops_rare_landmarks():
    train, test = sets(seed=400, missing=0.06, train=125)
    assert (len(train.score), len(test.score)) == (125, 35)
    train.score[:, [1, 2]], test.score[:, [1, 2]] = 1, 1
    train.score[40:65, 1] = test.score[4:11, 1] = 0  # missing on 32 of 160, a fifth: dropped
    train.score[40:64, 2] = test.score[4:11, 2] = 0  # missing on 31 of 160: kept
    protocol = pr.MALLIS_2020._replace(pool_images=0, fit_images=60)
    fits = draws(protocol, 125, seed=8)
    assert len(fits) == 10
    kept, forward, backward = mallis_2020(train, test, fits, first=60)
    with jax.enable_x64(True):
        result = measured(protocol, train, test, fits).often_found
        once = measured(protocol, train, test, [np.arange(60)]).often_found
    assert kept == result.landmarks == 6
    assert result.forward_nme == pytest.approx(forward, rel=1e-9)
    assert once.backward_nme == pytest.approx(backward, rel=1e-10)
    assert result.protocol == "p+fit_60x10+missing_svt+found_above_0.8"


@pytest.mark.parametrize(
    ("protocol", "complete", "wanted"),
    [
        (Protocol(), True, "d"),
        (Protocol(), False, "d+missing_mean"),
        (Protocol(ridge_forward=0.1, ridge_backward=0.1, missing="svt"), True, "d+ridge_0.1"),
        (Protocol(ridge_forward=0.001, ridge_backward=0.1), True, "d+ridge_0.001_0.1"),
        (Protocol(ridge_backward=0.1), True, "d+ridge_0.01_0.1"),
        (Protocol(fit_images=300), True, "d+fit_300"),
        (pr.TOURANI_2024, True, "d+ridge_0.001_0.1+fit_300x5"),
        (pr.MALLIS_2020_BODIES, False, "d+pool_1000+fit_800x10+missing_svt"),
    ],
)
def test_ids_name_every_choice(protocol, complete, wanted):
    assert protocol.id("d", complete) == wanted


def test_papers_have_different_ids():
    ids = [paper.id("d", complete=False) for paper in pr.PAPERS.values()]
    assert len(set(ids)) == len(ids)
    with pytest.raises(UserError, match="--protocol is 'jakob2018'; use one of jakab2018, mallis2020"):
        reg.published("jakob2018", "--protocol")


def test_a_small_split_is_fitted_whole():
    assert pr.TOURANI_2024.on(300) == pr.TOURANI_2024._replace(fit_images=0, repeats=1)
    assert pr.TOURANI_2024.on(301) == pr.TOURANI_2024
    assert pr.MALLIS_2020.on(900).pool_images == 0
    assert pr.MALLIS_2020.on(900).fit_images == 300
    assert Protocol(pool_images=50, fit_images=80, repeats=3).on(100) == Protocol(pool_images=50)


@pytest.mark.parametrize(
    ("name", "arguments", "paper"),
    [
        ("zeroshot", "", "tourani2024"),
        ("duld", "", "tourani2024"),
        ("imm", "", "jakab2018"),
        ("cgb", "", "awan2023"),
        ("self_training", "", "mallis2020"),
        ("self_training", ",variant=extended", "mallis2024"),
        ("self_training", ",variant=extended,protocol=mallis2024_ls3d", "mallis2024_ls3d"),
        ("duld", ",protocol=awan2023", "awan2023"),
    ],
)
def test_each_config_has_its_papers_protocol(name, arguments, paper):
    more = tiny.ARGUMENTS.get(name, "") + arguments
    assert Protocol.of(tiny.config(name, more=more)) == pr.PAPERS[paper]


def test_configs_of_older_runs_have_the_defaults():
    config = tiny.config(more=",protocol=awan2023")
    with config.unlocked():
        for name in Protocol._fields:
            del config.eval[name]
    assert Protocol.of(config) == Protocol()
    with config.unlocked():
        config.eval.ridge = 0.05
    assert Protocol.of(config) == Protocol(ridge_forward=0.05, ridge_backward=0.05)
    with config.unlocked():
        config.eval.ridge_backward = 0.1
    assert Protocol.of(config) == Protocol(ridge_forward=0.05, ridge_backward=0.1)


@pytest.mark.parametrize("bad", [0, -3, 1.5, True, "few", "1,5,all", ""])
def test_numbers_of_labels_that_mean_nothing_are_refused(bad):
    config = tiny.config(**{"eval.label_counts": (1, "5", "all")})
    Protocol.of(config)
    with config.unlocked():
        config.eval.label_counts = (1, bad)
    with pytest.raises(
        UserError, match=rf"^eval\.label_counts holds {bad!r}; give whole numbers above 0 and 'all', such"
    ):
        Protocol.of(config)
    with pytest.raises(UserError, match=r"^--label_counts holds .*, such as 1,10,100,all$"):
        pr.check_label_counts([bad], "--label_counts")

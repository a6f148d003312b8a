"""The registry of protocols: its rows, their ids, and each row's number by the published program written anew."""

import doctest
import re

import jax
import numpy as np
import pytest

from tests import tiny
from tests.evaluation import programs, shapes
from tests.evaluation.dense.programs import flags
from tests.evaluation.made_up import Finds
from uld_jax.data.open import Data
from uld_jax.data.schemes import NO_SCHEME, SCHEMES
from uld_jax.data.specs import Source, spec_of
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_regression as lr
from uld_jax.evaluation import measure as measure_lib
from uld_jax.evaluation import protocols
from uld_jax.evaluation.alignment import pck
from uld_jax.evaluation.dense import protocols as dense
from uld_jax.evaluation.dense import regression
from uld_jax.evaluation.protocol import PAPERS, Protocol
from uld_jax.evaluation.protocols import BY_ID, EVALUATED, ROWS

# The pairs of points that the programs divide by, from their files; 68 points of MAFL have the lower lids.
LENGTHS = {
    ("eyes_nose_mouth5", "eyes"): programs.two_points(0, 1),
    ("ibug68", "41-46"): programs.two_points(41, 46),
    ("ibug68", "box"): programs.box,
    ("cat9", "box"): programs.box,
    ("human36m_32", "shoulders"): programs.two_points(25, 17),
    ("bbc_pose7", "shoulders"): programs.two_points(5, 6),
}
IMAGES, TESTED = 90, 25
FEWER = {"pool_images": {0: 0, 1000: 60, 11_970: 60}, "fit_images": {0: 0, 300: 30, 301: 31, 800: 50}}


def test_examples():
    assert doctest.testmod(protocols).failed == 0


def test_ids_are_unique_and_each_row_has_a_source():
    assert len(BY_ID) == len(ROWS)
    assert not set(BY_ID) & set(PAPERS)
    for row in ROWS:
        assert row.source
        assert row.metric
        assert row.papers
        assert row.data.train
        assert row.data.test


@pytest.mark.parametrize("row", ROWS, ids=BY_ID)
def test_rows_fit_schemes_and_papers(row):
    data = row.data
    if row.command == "align":
        assert row.id in pck.PROTOCOLS
        assert pck.PROTOCOLS[row.choices].length == data.normaliser
        assert data.scheme == NO_SCHEME
        return
    if row.metric in ("stability", "silhouette and Calinski-Harabasz index of descriptors"):
        every = data.test_images or 1
        assert row.id == protocols.plain(data.name, row.choices, every, every)
        assert row.command in ("evaluate", "train", "clusters")
        return
    assert data.landmarks == SCHEMES[data.scheme].landmarks
    spec = spec_of(data.name, data.landmarks, scheme=data.scheme, normaliser=data.normaliser)
    assert spec.normaliser == data.normaliser
    if row.command == "evaluate":
        assert row.choices.checked() is row.choices
        assert set(row.papers) <= set(PAPERS)
        assert row.often <= (row.choices.missing == "svt")
        return
    preset = dense.preset(row.choices, data.landmarks, **flags(row))
    few = row.metric == "regression, a few labels"
    fit = None if row.metric.startswith("matching") else preset.few if few else preset.full
    measure = row.id.rpartition("+")[2] if fit is None else "regression"
    assert preset.id(spec.protocol, measure, fit, preset.repeats if few else 1) == row.id
    assert row.papers == (row.choices,)


def test_every_protocol_that_configs_and_pages_name_exists():
    known = {*PAPERS, *BY_ID, *dense.PRESETS, *pck.PROTOCOLS, "NAME", "ID", "auto"}
    pages = [tiny.ROOT / "README.md", *(tiny.ROOT / "docs").rglob("*.md"), *(tiny.ROOT / "configs").rglob("*.py")]
    named = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"\bprotocol(?:=|\s*==\s*)[\"']?([\w+]+)", page.read_text())
    }
    assert len(named) > 10
    assert {name for _, name in named} <= known, sorted(one for one in named if one[1] not in known)
    for name in tiny.SHIPPED:
        assert tiny.config(name).eval.paper in PAPERS


def test_the_page_has_the_registry():
    page = (tiny.ROOT / "docs/evaluation.md").read_text()
    table = re.search(r"<!-- protocols -->\n(.*?)\n<!-- /protocols -->", page, re.DOTALL)[1]
    assert table == protocols.markdown()
    assert all(f"| `{name}` |" in table for name in BY_ID)
    assert all(f"`{name}`" in page for name in PAPERS)


def test_names_are_papers_or_ids():
    assert protocols.published("awan2023") == Protocol()
    assert protocols.published("ls3d_68_awan_code").pool_images == 11_970
    with pytest.raises(
        UserError, match=r"^--protocol is 'mafl'; use one of jakab2018, .*, or an id of docs/ev.*: mafl_5_f"
    ):
        protocols.published("mafl", "--protocol")
    with pytest.raises(
        UserError, match=r"^eval.protocol=pf_pascal_box is measured by `uld align`; use an id such as mafl"
    ):
        protocols.row_of("pf_pascal_box", "eval.protocol")
    with pytest.raises(UserError, match=r"^eval.protocol=shoes.turned_15_px_128 is an id of stability alone; use an "):
        protocols.row_of("shoes+turned_15_px_128", "eval.protocol")


# Each row by the program of its paper


class Made(Source):
    """Made points as a data set of a row; `Finds` reads what is found from it."""

    def __init__(self, row, images, seed, missing):
        data = row.data
        self.made = shapes.landmarks(images, k=6, points=data.landmarks, seed=seed, missing=missing)
        self.spec = spec_of(data.name, data.landmarks, scheme=data.scheme)._replace(sides=data.sides)
        self.frame_size, self.columns = 128, {}
        self.names = [str(i) for i in range(images)]
        self.found, self.score, self.landmarks, self.visible, _ = self.made
        self.pose = None
        if missing:
            self.score[::4, 3] = 0  # one landmark is found too rarely

    def image(self, row):
        return np.full((128, 128, 3), row % 256, np.uint8)

    def points(self):
        """Found points, NaN where missing."""
        return np.where(self.score[..., None] > 0, self.found, np.nan)


def measured(row, missing):
    """Both sets, and the errors that the evaluator finds under a row with fewer images and fits."""
    train, test = Made(row, IMAGES, 1, missing), Made(row, TESTED, 2, missing)
    choices = row.choices
    fewer = {f"eval.{key}": given[getattr(choices, key)] for key, given in FEWER.items()}
    fewer["eval.repeats"] = min(choices.repeats, 3)
    config = tiny.config(more=f",protocol={row.id}", **fewer)
    report = measure_lib.measure(config, Finds(), None, Data(train, test, train, test))
    return train, test, report.errors


def program(row, train, test, kept=slice(None)):
    """The published program of a row on the same points: pool, forward errors [L], backward errors [K]."""
    found, test_found = train.points()[:, kept], test.points()[:, kept]
    truth, choices, paper = train.landmarks, row.choices, row.papers[0]
    given = test_found, test.landmarks, LENGTHS[row.data.scheme, row.data.normaliser]
    if paper == "jakab2018":
        return np.arange(IMAGES), *programs.imm(found, truth, *given, bias=row.id.endswith("_bias"))
    most = FEWER["pool_images"][choices.pool_images] or IMAGES
    first = row.id.endswith("_code") or most == IMAGES
    pool = np.arange(most) if first else np.linspace(0, IMAGES - 1, most).astype(int)
    if paper in ("awan2023", "sanchez2019"):
        strength = {"awan2023": 0.01, "sanchez2019": 1e-5 if row.id.endswith("_default") else 1e-4}[paper]
        return pool, *programs.saic(found[pool], truth[pool], *given, strength)
    count = FEWER["fit_images"][choices.fit_images] or most
    fits = [np.random.default_rng((0, r)).permutation(most)[:count] for r in range(min(choices.repeats, 3))]
    late, once = paper.startswith(("mallis2024", "tourani2024")), row.id.endswith("_code") and paper == "mallis2020"
    strengths = ((0.1, 0.1) if row.data.name.startswith("ls3d") else (0.001, 0.1)) if late else (0.01, 0.01)
    return pool, *programs.mallis(
        found[pool],
        truth[pool],
        *given,
        strengths=strengths,
        size=218 if late and row.data.name == "mafl" else 256,
        fits=[np.sort(rows) for rows in fits],
        backward_fits=[np.arange(count)] if once else [np.sort(rows) for rows in fits],
        frame=128,
    )


def equal(given, wanted):
    np.testing.assert_allclose(given, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EVALUATED)
def test_a_row_gives_the_number_of_its_program(name, still):
    row = BY_ID[name]
    train, test, errors = measured(row, missing=0.0)
    _, forward, backward = program(row, train, test)
    equal(errors.per_landmark.forward, forward)
    equal(errors.per_landmark.backward, backward)
    equal((errors.forward_nme, errors.backward_nme), (forward.mean(), backward.mean()))
    assert errors.protocol.startswith(name)
    assert "missing" not in errors.protocol


@pytest.mark.parametrize("name", [name for name in EVALUATED if BY_ID[name].choices.missing == "svt"])
def test_a_row_gives_the_number_of_its_program_with_missing_points(name, still):
    row = BY_ID[name]
    with jax.enable_x64(True):
        train, test, errors = measured(row, missing=0.15)
        if not row.often:
            _, forward, backward = program(row, train, test)
            equal(errors.per_landmark.forward, forward)
            equal(errors.per_landmark.backward, backward)
            assert errors.protocol.startswith(name)
            assert "min_found" not in errors.protocol
            assert errors.often_found.protocol == f"{errors.protocol}+min_found=0.8"
            return
        pool = program(row, train, test)[0]
        kept = programs.kept_2020(train.points()[pool], test.points())
        assert kept == [0, 1, 2, 4, 5]
        _, forward, backward = program(row, train, test, kept)
        often = errors.often_found
        assert often.landmarks == len(kept)
        equal((often.forward_nme, often.backward_nme), (forward.mean(), backward.mean()))
        assert errors.protocol == f"{often.protocol}+min_found=0"
        choices = row.choices._replace(fit_images=FEWER["fit_images"][row.choices.fit_images], repeats=3)
        alone = lr.evaluate(
            train.made.take(pool).only(kept),
            test.made.only(kept),
            data="p",
            normaliser=lr_normaliser(row),
            image_side=128,
            protocol=choices,
            fits=[np.sort(np.random.default_rng((0, r)).permutation(60)[: choices.fit_images]) for r in range(3)],
        )
        equal(alone.per_landmark.forward, forward)
        equal(alone.per_landmark.backward, backward)


def lr_normaliser(row):
    data = row.data
    spec = spec_of(data.name, data.landmarks, scheme=data.scheme, normaliser=data.normaliser)
    return spec.eyes or spec.normaliser


def test_landmarks_are_kept_by_the_strict_rule_of_2020(still):
    """Missing on exactly a fifth of all images is dropped, on one image less is kept."""
    row = BY_ID["mafl_68_2020_code"]
    train, test = Made(row, 75, 1, 0.0), Made(row, 25, 2, 0.0)
    train.score[40:60, 1], train.score[40:59, 2] = 0, 0
    config = tiny.config(more=f",protocol={row.id}", **{"eval.fit_images": 30, "eval.repeats": 2})
    errors = measure_lib.measure(config, Finds(), None, Data(train, test, train, test)).errors
    kept = programs.kept_2020(train.points(), test.points())
    assert kept == [0, 2, 3, 4, 5]
    assert errors.often_found.landmarks == 5


def test_the_error_of_dve_is_that_of_the_dense_regression():
    rng = np.random.default_rng(0)
    for points, eyes in ((5, (0, 1)), (68, (36, 45))):
        truth = rng.uniform(8, 88, (40, points, 2))
        placed = truth + rng.normal(0, 3, truth.shape)
        lengths = lr.normaliser_lengths(truth, eyes)
        given = regression.errors(placed[None], truth, lengths)
        equal(given[0].mean(0), programs.dve(placed, truth, 96, eyes))


@pytest.mark.parametrize(("name", "procedure"), [("pf_pascal_ncnet", "scnet"), ("pf_pascal_box", "pf")])
def test_pck_is_that_of_ncnet(name, procedure):
    rng = np.random.default_rng(1)
    sizes = rng.integers(150, 500, (60, 2))
    truth = rng.uniform(0.1, 0.9, (60, 9, 2)) * sizes[:, None, ::-1]
    truth[rng.random((60, 9)) < 0.3] = np.nan
    truth[:, :2] = rng.uniform(0.2, 0.8, (60, 2, 2)) * sizes[:, None, ::-1]
    carried = truth + rng.normal(0, 25, truth.shape)
    right = pck.correct(pck.PROTOCOLS[BY_ID[name].choices], carried, truth, sizes)
    wanted = programs.ncnet(carried, truth, sizes, procedure)
    equal(pck.pck(right), wanted)
    assert 20 < wanted.mean() < 80

"""The protocol that a config has on its data, and the ids that its numbers get."""

import numpy as np
import pytest

from tests import tiny
from tests.evaluation.made_up import Points, measure
from uld_jax.data.open import Data
from uld_jax.data.specs import Source, spec_of
from uld_jax.errors import UserError
from uld_jax.evaluation.chosen import check, choose
from uld_jax.evaluation.protocol import PAPERS, Protocol
from uld_jax.evaluation.protocols import BY_ID, EVALUATED
from uld_jax.evaluation.report import metrics

MANY = 70_000  # training images where a row does not know their number


class Annotated(Source):
    """A split without images, of which only the number of annotated images matters."""

    def __init__(self, spec, images):
        self.spec, self.names = spec, range(images)
        self.landmarks = np.zeros((images, spec.landmarks, 2), np.float16)


def official(row, **changes):
    """The data of a row as they are published; `changes` are of the spec and of `train`, `test`, numbers of images."""
    data = row.data
    train, test = changes.pop("train", data.train_images or MANY), changes.pop("test", data.test_images or 50)
    changes = {"name": data.name, "landmarks": data.landmarks, "scheme": data.scheme} | changes
    spec = spec_of(changes.pop("name"), changes.pop("landmarks"), scheme=changes.pop("scheme"), **changes)
    spec = spec._replace(sides=data.sides)
    return Data(Annotated(spec, train), Annotated(spec, test), None, None)


def config(more="", **changes):
    return tiny.config(more=more and f",{more}", **changes)


@pytest.mark.parametrize("name", EVALUATED)
def test_official_data_give_the_bare_id(name):
    row = BY_ID[name]
    chosen = choose(config(f"protocol={name}"), official(row))
    assert chosen.id(complete=True) == name
    assert (chosen.often() if row.often else chosen.id(complete=False)) == name
    assert chosen.spec.normaliser == row.data.normaliser
    assert chosen.protocol == row.choices.on(row.data.train_images or MANY)
    assert chosen.protocol.missing == row.choices.missing


@pytest.mark.parametrize(
    ("paper", "of", "wanted"),
    [
        ("mallis2024", "mafl_5_full", "mafl_5_full"),
        ("tourani2024", "mafl_5_full", "mafl_5_full"),
        ("tourani2024", "mafl_68_300", "mafl_68_300x5"),
        ("mallis2024", "mafl_68_300", "mafl_68_300"),
        ("awan2023", "mafl_5_full", "mafl_5_awan"),
        ("jakab2018", "mafl_5_imm", "mafl_5_imm"),
        ("tourani2024", "ls3d_68_300", "ls3d_68_300x5"),
        ("tourani2024_ls3d", "ls3d_68_300", "ls3d_68_300x5"),
        ("mallis2020", "human36m_32_800", "human36m_32_800"),
        ("awan2023", "cat_9_300", "cat_9_awan"),
        # Papers without a row for the data have ids of data and choices.
        ("jakab2018", "mafl_5_full", "mafl_5_eyes+ridge_0+no_intercept"),
        ("mallis2024_ls3d", "mafl_5_full", "mafl_5_eyes+ridge_0.1+pool_1000+fit_300x10"),
        ("awan2023", "human36m_32_800", "human36m_32_shoulders_image_sides"),
    ],
)
def test_auto_takes_the_row_of_the_paper_for_the_data(paper, of, wanted):
    assert choose(config(f"protocol={paper}"), official(BY_ID[of])).id(complete=True) == wanted


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("name", ["folder", "synthetic"])
def test_other_data_have_the_ids_that_they_had(paper, name):
    data = official(BY_ID["mafl_5_full"], name=name, train=400)
    chosen = choose(config(f"protocol={paper}"), data)
    for complete in (True, False):
        assert chosen.id(complete) == PAPERS[paper].on(400).id(f"{name}_5_eyes", complete)
    assert chosen.often() == PAPERS[paper].on(400).often(f"{name}_5_eyes")
    assert chosen.spec is data.test.spec


def test_configs_of_older_runs_keep_their_ids_on_any_data():
    older = config("protocol=tourani2024")
    with older.unlocked():
        for key in ("protocol", "paper", "pool_from", "backward_draw"):
            del older.eval[key]
    chosen = choose(older, official(BY_ID["mafl_5_full"]))
    assert chosen.id(complete=True) == "mafl_5_eyes+ridge_0.001_0.1+fit_300x5"
    with older.unlocked():
        older.eval.protocol, older.eval.paper = "mafl_5_full", ""  # as `uld evaluate --config.eval.protocol=ID` has it
    assert choose(older, official(BY_ID["mafl_5_full"])).id(complete=True) == "mafl_5_full+fit_images=300+repeats=5"


@pytest.mark.parametrize(
    ("changes", "data", "wanted"),
    [
        ({"eval.ridge_forward": 0.1}, {}, "+ridge=0.1"),
        ({"eval.ridge_forward": 0.2}, {}, "+ridge_forward=0.2"),
        ({"eval.ridge_forward": 0.2, "eval.ridge_backward": 0.3}, {}, "+ridge_forward=0.2+ridge_backward=0.3"),
        ({"eval.intercept": False}, {}, "+intercept=False"),
        ({"eval.fit_images": 50, "eval.repeats": 4}, {}, "+fit_images=50+repeats=4"),
        ({"eval.pool_images": 100, "eval.pool_from": "first"}, {}, "+pool_images=100+pool_from=first"),
        ({"data.normaliser": "box"}, {"normaliser": "box"}, "+normaliser=box"),
        ({"data.normaliser": "eyes"}, {}, ""),
        ({}, {"train": 30}, "+train_images=30"),
        ({}, {"test": 29}, "+test_images=29"),
        ({}, {"name": "folder", "train": 30}, "+data=folder"),
        ({"eval.ridge_forward": 0.1}, {"name": "folder", "test": 9}, "+data=folder+ridge=0.1"),
        ({"eval.match_radius": 0.2}, {}, ""),  # of no error
        ({"eval.missing": "mean"}, {}, ""),  # nothing is missing
    ],
)
def test_what_departs_is_written_behind_the_id(changes, data, wanted):
    given = config("protocol=mafl_5_full", **changes)
    assert choose(given, official(BY_ID["mafl_5_full"], **data)).id(complete=True) == f"mafl_5_full{wanted}"


def test_a_key_of_auto_departs_where_it_is_not_the_papers():
    data = official(BY_ID["mafl_5_full"])
    assert choose(config("protocol=tourani2024"), data).id(True) == "mafl_5_full"
    changed = config("protocol=tourani2024", **{"eval.fit_images": 50})
    chosen = choose(changed, data)
    assert chosen.id(True) == "mafl_5_full+fit_images=50"
    assert (chosen.protocol.fit_images, chosen.protocol.repeats) == (50, 1)
    same = config("protocol=tourani2024")  # the paper's own 300 images five times, asked for on the command line
    with same.unlocked():
        same.eval.given = ("fit_images", "repeats")
    assert choose(same, data).id(True) == "mafl_5_full+fit_images=300+repeats=5"
    taken = config("protocol=awan2023", **{"eval.protocol": "mafl_5_full"})  # by the key alone
    assert choose(taken, data).protocol == BY_ID["mafl_5_full"].choices
    assert choose(taken, data).id(True) == "mafl_5_full"


def test_small_data_and_evaluations_on_the_way_depart():
    few = official(BY_ID["mafl_68_300"], name="folder", train=200)
    assert choose(config("protocol=mafl_68_300"), few).id(True) == "mafl_68_300+data=folder+fit_images=0+repeats=1"
    way = config("protocol=mafl_5_full", **{"eval.train_images": 5000})
    data = official(BY_ID["mafl_5_full"])
    assert choose(way, data, thorough=False).id(True) == "mafl_5_full+pool_images=5000"
    assert choose(way, data, split="train").id(True) == "mafl_5_full+split=train"


def test_missing_points_depart_where_the_row_treats_them_otherwise():
    data = official(BY_ID["mafl_5_full"])
    mean = choose(config("protocol=mafl_5_full", **{"eval.missing": "mean"}), data)
    assert mean.id(complete=False) == "mafl_5_full+missing=mean"
    assert mean.often() == "mafl_5_full+missing=mean+min_found=0.8"
    data = official(BY_ID["mafl_68_2020"])
    rare = choose(config("protocol=mafl_68_2020", **{"eval.min_found": 0.5}), data)
    assert (rare.id(True), rare.often()) == ("mafl_68_2020", "mafl_68_2020+min_found=0.5")
    assert rare.id(complete=False) == "mafl_68_2020+min_found=0"


def test_ids_that_do_not_exist_or_fit_are_refused():
    with pytest.raises(
        UserError, match=r"^protocol is 'mafl_6'; use one of jakab2018, .*, or an id of docs/evaluation.md: "
    ):
        config("protocol=mafl_6")
    for key, value, words in (
        (
            "protocol",
            "mafl_6",
            r"^eval.protocol is 'mafl_6'; use one of auto, or an id of docs/evaluation.md: mafl_5_full,",
        ),
        ("protocol", "pf_pascal_box", "is measured by `uld align`"),
        ("paper", "awan", "^eval.paper is 'awan'; use one of jakab2018"),
        ("ridge_forward", -1.0, "eval.ridge_forward is -1.0; use 0 or more"),
    ):
        with pytest.raises(UserError, match=words):
            check(config(**{f"eval.{key}": value}))
    fits = config("protocol=mafl_5_full")
    check(fits)
    for spec in (spec_of("folder", 5), spec_of("folder", 20), spec_of("folder", 68, scheme="ibug68")):
        data = Data(Annotated(spec, 9), Annotated(spec, 9), None, None)
        points = f"{spec.landmarks} of the scheme {spec.scheme}"
        with pytest.raises(
            UserError, match=f"^eval.protocol=mafl_5_full is for 5 points of .*, and .* folder has {points};"
        ):
            choose(fits, data)


def test_a_protocol_of_one_fit_cannot_be_repeated():
    with pytest.raises(UserError, match="every repeat fits on all training images"):
        choose(config("protocol=mafl_5_full", **{"eval.repeats": 3}), official(BY_ID["mafl_5_full"]))


def test_images_alone_need_no_row():
    data = official(BY_ID["mafl_5_full"], name="folder")
    for part in (data.train, data.test):
        part.spec, part.landmarks = part.spec._replace(landmarks=None, scheme="none"), None
    assert choose(config("protocol=mafl_5_full"), data).row is None


def test_reports_have_the_id_and_the_normaliser_of_the_row(still):
    """A normaliser of the row replaces that of the data, in errors and matches alike."""
    train, test = Points(60, seed=1), Points(50, seed=2)
    for part in (train, test):
        part.spec = spec_of("folder", 5, scheme="eyes_nose_mouth5", normaliser="box")
        part.score[:, 0] = np.arange(len(part.score)) % 2
    report = measure(train, test, {"eval.protocol": "mafl_5_full"})
    given = metrics(report)
    assert given["protocol"] == "mafl_5_full+data=folder"
    assert given["normaliser"] == "points 0 and 1"
    assert given["settings"] == BY_ID["mafl_5_full"].choices._asdict()
    assert report.errors.often_found.protocol == "mafl_5_full+data=folder+min_found=0.8"
    composed = metrics(measure(train, test))
    assert composed["protocol"] == "folder_5_box+missing_mean"
    assert given["precision"] != composed["precision"]
    assert Protocol().asdict() == composed["settings"]


@pytest.mark.parametrize(("name", "data"), [("human36m_32_800", ""), ("mafl_5_full", "mafl_imm")])
def test_a_part_of_a_data_set_never_has_the_id_of_the_whole(name, data):
    row = BY_ID[name]
    found = official(row, train=12, test=5, **({"name": data} if data else {}))
    for source in (found.train, found.test):
        source.spec = source.spec._replace(partial=True)
    told = choose(config(f"protocol={name}"), found).id(complete=True)
    more = f"+data={data}" if data else ""
    assert told.startswith(f"{name}{more}+train_images=12+test_images=5")
    assert found.test.spec.protocol.endswith("_part")

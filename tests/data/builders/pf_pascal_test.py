"""PF-Pascal prepared: pairs whose names become rows again, official counts, parts, and what is read from it."""

import json
import pickle

import numpy as np
import pytest

from tests import pascal
from tests.data.builders import miniature
from uld_jax import data, sharding
from uld_jax.data import builders, partners
from uld_jax.data import pf_pascal as reader
from uld_jax.data.builders import pf_pascal
from uld_jax.data.open import open_data
from uld_jax.engine import loop
from uld_jax.errors import UserError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return pascal.write(tmp_path_factory.mktemp("pascal") / "photos")


@pytest.fixture(scope="module")
def out(official, tmp_path_factory):
    """What `uld prepare` makes of it."""
    out = tmp_path_factory.mktemp("prepared")
    sources, _ = miniature.opened("pf_pascal", official)
    builders.prepared.prepare("pf_pascal", sources, out)
    return out


@pytest.fixture
def root(tmp_path):
    """A copy whose files may be changed."""
    return pascal.write(tmp_path / "photos")


def by_name(source):
    """The pairs with names and categories in place of rows."""
    rows = list(zip(source.names, source.columns["category"], strict=True))
    return [(rows[a], rows[b]) for a, b in source.pairs.rows]


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_of_rows_come_back(official, out, split):
    wanted, found = (data.open_source("pf_pascal", split, data_dir=d, frame_size=24) for d in (official, out))
    assert type(found).__name__ == "Prepared"
    assert sorted(found.names) == wanted.names
    assert found.names != wanted.names
    assert by_name(found) == by_name(wanted)
    assert found.pairs.flip.tolist() == wanted.pairs.flip.tolist()
    assert found.pairs.places[1].endswith(f"image_pairs/{split}_pairs.csv, line 3")
    if split == "test":
        np.testing.assert_allclose(found.pairs.xy, wanted.pairs.xy, atol=1e-12)
        assert reader.leaked(found.where).tolist() == reader.leaked(wanted.where).tolist() == [True] + [False] * 3
    else:
        assert found.pairs.xy is None
    for name in found.names:
        row, other = found.names.index(name), wanted.names.index(name)
        np.testing.assert_array_equal(found.image(row), wanted.image(other))  # stretched, as the official folder is
        np.testing.assert_array_equal(found.frame_maps[row], wanted.frame_maps[other])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).pairs.rows, found.pairs.rows)


def test_partners_are_the_other_photo_of_a_pair(out):
    train = data.open_source("pf_pascal", "train", data_dir=out, frame_size=24)
    np.testing.assert_array_equal(partners.law_of(train, "pairs").rows, train.pairs.rows)
    opened = open_data(pascal.config(out), sharding.make_mesh())
    batch = next(opened.train_reader.payloads())
    listed = {tuple(pair) for pair in opened.train.pairs.rows.tolist()}
    found = zip(*(np.asarray(batch[key]).ravel().tolist() for key in ("index", "index2")), strict=True)
    assert {*found} <= listed


def test_a_photo_of_two_categories_is_two_rows(root, tmp_path):
    path = root / "image_pairs/train_pairs.csv"
    a, b = pascal.name_of(1, 0), pascal.name_of(8, 0)
    path.write_text(path.read_text() + f"\n{a},{b},8,0\n")
    train = miniature.prepare("pf_pascal", root, tmp_path / "out")["train"]
    assert len(train) == 10
    assert sorted(c for n, c in zip(train.names, train.columns["category"], strict=True) if n == a) == [
        "aeroplane",
        "cat",
    ]
    assert by_name(train)[-1] == ((a, "cat"), (b, "cat"))


def test_official_counts_are_checked(official, monkeypatch):
    with pytest.raises(
        UserError, match=r"train_pairs.csv has 12 pairs where the official file has 2,940; .*allow_part"
    ):
        miniature.opened("pf_pascal", official, partial=False)
    notes = "\n".join(miniature.opened("pf_pascal", official)[1])
    for said in (
        "train_pairs.csv has 6 mirrored pairs where the official file has 1,470",
        "val_pairs.csv has 3 pairs where the official file has 308",
        "test_pairs.csv has 4 pairs where the official file has 299",
        "test_pairs.csv has 2 pairs of the training list where the official file has 95",  # one in the other order
    ):
        assert said in notes
    monkeypatch.setattr(pf_pascal, "PAIRS", {"train": 12, "val": 3, "test": 4})
    monkeypatch.setattr(pf_pascal, "MIRRORED", {"train": 6, "val": 0, "test": 0})
    monkeypatch.setattr(pf_pascal, "LEAKED", 2)
    sources, notes = miniature.opened("pf_pascal", official, partial=False)
    assert (list(sources), notes) == ([*SPLITS], [])


def test_parts_leave_pairs_out(root, tmp_path, uld):
    (root / pascal.name_of(8, 0)).unlink()
    (root / "image_pairs/val_pairs.csv").unlink()
    argv = ["prepare", "--dataset=pf_pascal", f"--src={root}", f"--data_dir={tmp_path / 'out'}"]
    code, _, err = uld(*argv)
    assert (code, "has no split val (it has train and test); use one of them" in err) == (1, True)
    code, out, err = uld(*argv, "--allow_partial")
    assert (code, "dataset=pf_pascal" in out) == (3, True)
    assert f"{root} has no list of pairs of the split val" in err
    assert pascal.name_of(8, 0) in (tmp_path / "out/pf_pascal/1.0.0/skipped.csv").read_text()
    train, test = (data.open_source("pf_pascal", s, data_dir=tmp_path / "out", frame_size=8) for s in ("train", "test"))
    assert (len(train), len(train.pairs.rows), len(test.pairs.rows)) == (8, 10, 3)
    assert len(reader.leaked(test.where)) == 3
    (root / pascal.name_of(1, 0)).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2008_001000.jpg cannot be read"):
        miniature.opened("pf_pascal", root)
    for path in (root / pascal.FOLDER).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"train_pairs.csv, line 2: .* holds none of its photos; give the folder"):
        miniature.opened("pf_pascal", root)
    for path in (root / "image_pairs").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"holds no image_pairs/train_pairs.csv; give the folder with"):
        miniature.opened("pf_pascal", root)


@pytest.mark.slow
def test_a_run_on_prepared_pairs_is_measured(official, out, tmp_path, uld_says):
    loop.run(pascal.config(out, 2), tmp_path / "run")
    reports = []
    for where in (out, official):
        uld_says("align", f"--workdir={tmp_path / 'run'}", "--stage=pairwise", f"--data_dir={where}")
        path = max((tmp_path / "run/eval").rglob("pf_pascal_ncnet.json"), key=lambda path: path.stat().st_mtime)
        reports.append(json.loads(path.read_text()))
    assert reports[0]["leak_free"] == reports[1]["leak_free"]
    assert reports[0]["all"] == reports[1]["all"]

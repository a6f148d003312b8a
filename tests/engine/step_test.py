"""Partners and tables of the images in the steps of a run."""

import json

import jax
import numpy as np
import pytest

from tests import pascal
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.engine import loop
from uld_jax.engine.step import with_tables
from uld_jax.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return pascal.write(tmp_path_factory.mktemp("pascal") / "photos")


def trained(root, workdir, steps=4, **more):
    """What the steps saw in all, and the lines of their numbers."""
    done = loop.run(pascal.config(root, steps, **more), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return float(done.model.state.aux.seen), [line for line in lines if "same" in line]


def test_steps_see_categories_and_resume_with_the_same_partners(root, tmp_path):
    seen, lines = trained(root, tmp_path / "whole")
    assert len(lines) == 4
    assert all((line["same"], line["itself"]) == (1, 0) for line in lines)
    trained(root, tmp_path / "parts", steps=2)
    again, _ = trained(root, tmp_path / "parts")  # goes on from step 2
    assert again == seen
    chunks, lines = trained(root, tmp_path / "chunks", steps_per_dispatch=2, log_every=2)
    assert (chunks, len(lines)) == (pytest.approx(seen), 2)


def test_another_list_of_pairs_is_not_resumed(root, tmp_path):
    other = pascal.write(tmp_path / "photos")
    trained(other, tmp_path / "run", steps=2, pairwise__named=False)
    path = other / "image_pairs/train_pairs.csv"
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([header, *rest, first]))  # the same images
    with pytest.raises(UserError, match="stage pairwise differ from those that"):
        trained(other, tmp_path / "run", pairwise__named=False)


def test_a_stage_may_refuse_other_partners(root):
    config = pascal.config(root, data__partner_by="any")
    with pytest.raises(UserError, match=r"takes partners by category or pairs and not by any; set config\.data\."):
        config_lib.stage(config, "pairwise")


class Rows:
    """A reader of row numbers alone."""

    def __init__(self):
        self.store = {"images": np.arange(3)}

    def fetch(self, store, payload):
        assert list(store) == ["images"]
        return payload


def test_tables_come_with_images_and_partners():
    mesh, plain = sharding.make_mesh(jax.devices()[:1]), Rows()
    assert with_tables(plain, mesh, {}) is plain
    reader = with_tables(plain, mesh, {"sizes": np.array([5, 6, 7]), "boxes": (np.eye(3),)})
    payload = {"index": np.array([2, 0])}
    batch = jax.jit(reader.fetch)(reader.store, payload)
    assert set(batch) == {"index", "sizes", "boxes"}
    assert batch["sizes"].tolist() == [7, 5]
    np.testing.assert_array_equal(batch["boxes"][0], np.eye(3)[[2, 0]])
    batch = jax.jit(reader.fetch)(reader.store, payload | {"index2": np.array([1, 1])})
    assert set(batch) == {"index", "sizes", "boxes", "index2", "sizes2", "boxes2"}
    assert batch["sizes2"].tolist() == [6, 6]

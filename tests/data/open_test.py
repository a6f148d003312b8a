"""The splits that a config names."""

import types

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from uld_jax import sharding
from uld_jax.data.open import check_label_counts, open_data, open_split
from uld_jax.errors import UserError


def test_runs_of_before_keep_their_protocol(tmp_path):
    """They have no `data.scheme`: schemes were told by the number of points then."""
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text("file,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\na.png,1,2,3,4,5,6,7,8,9,10\n")
    config = tiny.config(dataset="folder", data_dir=str(tmp_path))
    assert open_split(config, "train").spec.protocol == "folder_5_box"
    with config.unlocked():
        config.data.scheme = "eyes_nose_mouth5"
        assert open_split(config, "train").spec.protocol == "folder_5_eyes"
        del config.data.scheme
    assert open_split(config, "train").spec.protocol == "folder_5_eyes"


def test_more_labels_than_there_are_is_refused_when_the_data_is_opened():
    rows = {"data.rows": (24, 8), "eval.label_counts": (1, 24, "all")}
    mesh = sharding.make_mesh()
    train = open_data(tiny.config(**rows), mesh).train
    with pytest.raises(
        UserError, match=r"^eval\.label_counts holds 25, but fits are on 24 annotated training images; use"
    ):
        open_data(tiny.config(**rows | {"eval.label_counts": (1, 25)}), mesh)
    with pytest.raises(UserError, match="holds 24, but fits are on 10 annotated training images; use numbers up to 10"):
        open_data(tiny.config(**rows | {"eval.pool_images": 10}), mesh)
    check_label_counts(["24"], train, 100, "--label_counts")
    with pytest.raises(UserError, match=r"^--label_counts holds 30, "):
        check_label_counts(["30"], train, 0, "--label_counts")
    check_label_counts([30], types.SimpleNamespace(landmarks=None), 0, "--label_counts")  # nothing will be fitted


@pytest.mark.parametrize("rows", [(5,), (5, 0), (-5, 4), (5, 4, 3), ("5", "4"), (5.5, 4)])
def test_numbers_of_synthetic_images_are_two(rows):
    with pytest.raises(UserError, match=r"^data\.rows is .*; give the numbers of training and of test images, such as"):
        open_split(tiny.config(**{"data.rows": rows}), "train")

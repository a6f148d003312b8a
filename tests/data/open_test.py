"""The splits that a config names."""

import numpy as np
from PIL import Image

from tests import tiny
from uld_jax.data.open import open_split


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

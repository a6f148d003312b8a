"""Variables of MATLAB files that SciPy wrote."""

import sys

import numpy as np
import pytest
from scipy.io import savemat

from uld_jax.data.builders import matlab
from uld_jax.errors import UserError


@pytest.fixture
def path(tmp_path):
    box = np.empty((1, 2), object)
    box[0] = [{"name": "a b.jpg", "box": np.array([[1.0, 2, 3, 4]])}, {"name": "c.jpg", "box": np.ones((1, 4))}]
    savemat(
        tmp_path / "a.mat",
        {
            "pts": np.arange(6, dtype=np.float32).reshape(3, 2),
            "roi": np.array([[1, 2, 3, 4]], np.int16),
            "word": "text",
            "gap": np.array([[1.0, np.nan]]),
            "boxes": box,
        },
        do_compression=True,
    )
    return tmp_path / "a.mat"


def test_numbers_come_back_as_float64(path):
    found = matlab.arrays(path, {"pts": (3, 2), "roi": (1, None)})
    assert {name: (v.dtype.name, v.tolist()) for name, v in found.items()} == {
        "pts": ("float64", [[0, 1], [2, 3], [4, 5]]),
        "roi": ("float64", [[1, 2, 3, 4]]),
    }


def test_structures_become_dictionaries(path):
    first, second = matlab.load(path, "boxes")["boxes"]
    assert first["name"] == "a b.jpg"
    assert first["box"].tolist() == [1, 2, 3, 4]
    assert second["name"] == "c.jpg"


@pytest.mark.parametrize(
    ("shapes", "error"),
    [
        ({"pts": (2, 3)}, r"a.mat: the variable pts is 3 x 2 where 2 x 3 is needed"),
        ({"pts": (3,)}, r"a.mat: the variable pts is 3 x 2 where 3 is needed"),
        ({"word": (1, None)}, r"a.mat: the variable word holds no numbers"),
        ({"boxes": (1, 2)}, r"a.mat: the variable boxes holds no numbers"),
        ({"gap": (1, 2)}, r"a.mat: the variable gap holds NaN or infinity"),
        ({"pts": (3, 2), "points": (3, 2)}, r"a.mat has no variable points; get the official file again"),
    ],
)
def test_other_variables_are_told(path, shapes, error):
    with pytest.raises(UserError, match=error):
        matlab.arrays(path, shapes)


def test_damaged_files_are_named(path):
    data = path.read_bytes()
    for cut in (b"", b"<html>", data[:128], data[:150], data[:140] + bytes(30) + data[170:]):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=r"a\.mat "):
            matlab.arrays(path, {"pts": (3, 2)})
    path.unlink()
    with pytest.raises(UserError, match=r"a.mat cannot be read \(no such file"):
        matlab.load(path, "pts")


def test_scipy_is_asked_for(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"a.mat is a MATLAB file, .* `pip install 'uld_jax\[datasets\]'`"):
        matlab.load(path, "pts")

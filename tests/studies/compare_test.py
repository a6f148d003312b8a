import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.made_up import Points
from tests.studies import compared
from uld_jax import sharding
from uld_jax.data.open import open_split
from uld_jax.engine import runs
from uld_jax.errors import UserError
from uld_jax.evaluation import measure as measure_lib
from uld_jax.studies import compare


@pytest.fixture
def finished(monkeypatch):
    return compared.Finished(monkeypatch)


def test_runs_side_by_side(finished, photos, tmp_path):
    one = finished.make(tmp_path / "a/run", photos, kinds=("swaps", "alone"), **{"k": 5})
    other = finished.make(tmp_path / "b/run", photos, landmarks=3, kinds=("swaps",), step=9, **{"seed": 3})
    said, out = [], tmp_path / "out"
    asked = compare.Asked((str(one), str(other)), str(out), order_by="yaw", images=4)
    record, markdown = compare.compare(asked, said.append)
    assert {path.name for path in out.iterdir()} == {"comparison.json", "comparison.md", *record["files"]}
    assert record["files"] == ["ced.png", "pictures_swaps.png", "sheet.png", "yaw.png"]
    assert json.loads((out / "comparison.json").read_text()) == record
    assert (out / "comparison.md").read_text() == markdown
    assert "a/run: 1 of 2 runs" in said
    # The numbers are those of `uld evaluate`.
    assert [(row["name"], row["stage"], row["step"], row["landmarks"]) for row in record["rows"]] == [
        ("a/run", "detector", 7, 5),
        ("b/run", "detector", 9, 3),
    ]
    for row, where in zip(record["rows"], (one, other), strict=True):
        want = compared.evaluated(where, sharding.make_mesh())
        assert {key: row.get(key) for key in compare.KEPT} == {key: want.get(key) for key in compare.KEPT}
        assert f"| {want['forward_nme']:.2f} | {want['backward_nme']:.2f} |" in markdown
    assert record["rows"][0]["forward_nme"] != record["rows"][1]["forward_nme"]
    assert (record["errors_comparable"], record["notes"]) == (True, [])
    # Four of the eight images, from the least to the largest yaw.
    source = open_split(runs.find(one)[1], "test")
    yaw = measure_lib.yaw_of(source)
    assert record["images"] == source.fingerprint
    assert record["shown"] == np.argsort(yaw)[[0, 2, 4, 7]].tolist()
    sheet, swaps = (np.asarray(Image.open(out / name)) for name in ("sheet.png", "pictures_swaps.png"))
    assert sheet.shape[0] == 27 + 2 * 132
    assert sheet.shape[1] > 4 * 132 + 60  # with the names of the rows
    assert swaps.shape[0] == 4 * (27 + 2 * 132)  # two runs below each other, for each of the images


def test_errors_of_other_protocols_are_told_apart(finished, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_lib, "_stability", lambda *a: {})  # what costs time
    finished.make(tmp_path / "a", photos)
    finished.make(tmp_path / "b", photos, **{"data.normaliser": "image"})
    asked = compare.Asked((str(tmp_path / "a"), str(tmp_path / "b:detector")), str(tmp_path / "out"), images=3)
    (tmp_path / "out").mkdir()
    old = {"files": ["pictures_old.png"]}
    (tmp_path / "out/comparison.json").write_text(json.dumps(old))
    for name in ("pictures_old.png", "mine.png"):
        (tmp_path / "out" / name).touch()
    record, markdown = compare.compare(asked)
    ids = [row["protocol"] for row in record["rows"]]
    assert [name.partition("+")[0] for name in ids] == ["folder_20_box", "folder_20_image"]
    assert not record["errors_comparable"]
    (note,) = record["notes"]
    assert f"may not be compared: `{ids[0]}` (a); `{ids[1]}` (b)." in note
    assert markdown.startswith(f"**{note}**\n\n| run |")
    assert all(f"`{name}`" in markdown.partition("| run |")[2] for name in ids)
    assert record["shown"] == [0, 3, 7]
    assert not (tmp_path / "out/pictures_old.png").exists()
    assert (tmp_path / "out/mine.png").exists()
    with pytest.raises(UserError, match="--protocol is 'awan'; use one of jakab2018, "):
        compare.compare(asked._replace(protocol="awan"))


def test_a_protocol_for_all_runs(finished, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_measured", lambda run, *a: pytest.fail(str(run.config.eval.ridge_forward)))
    for name, ridge in (("a", 0.5), ("b", 0.25)):
        finished.make(tmp_path / name, photos, **{"eval.ridge_forward": ridge})
    asked = compare.Asked((str(tmp_path / "a"), str(tmp_path / "b")), str(tmp_path / "out"))
    for protocol, ridge in (("", "0.5"), ("jakab2018", "0.0")):
        with pytest.raises(pytest.fail.Exception, match=f"^{ridge}$"):
            compare.compare(asked._replace(protocol=protocol))


def test_runs_are_named_by_what_tells_them_apart():
    named = compare._names([("/a/x", "s"), ("/b/x", "s"), ("/b/y", "s"), ("/b/y", "t"), ("/x", "s")])
    assert named == ["a/x", "b/x", "y:s", "y:t", "/x"]


def test_images_are_ordered_by_numbers_words_or_not_at_all():
    ages, names = ["30", "", "4", "12345"], ["b", "a", "", "c"]
    source = Points(4, seed=0)
    source.columns = {"age": ages, "name": names, "yaw": ["1", "2", "3", "4"]}

    def chosen(column, images=4, yaw=None):
        rows, values = compare._chosen(source, yaw, compare.Asked((), "", order_by=column, images=images))
        return rows.tolist(), values

    assert chosen("") == ([0, 1, 2, 3], ["0", "1", "2", "3"])
    assert chosen("", 2) == ([0, 3], ["0", "3"])
    assert chosen("age") == ([2, 0, 3], ["4", "30", "12345"])
    assert chosen("name", 2) == ([1, 3], ["a", "c"])
    assert chosen("yaw", yaw=np.array([5.0, -7.25, np.nan, 0.0])) == ([1, 3, 0], ["-7.25", "0", "5"])

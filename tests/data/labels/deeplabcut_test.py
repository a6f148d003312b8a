"""DeepLabCut and Lightning Pose: csv in two layouts, HDF5 of pandas without unpickling."""

import pickle

import numpy as np
import pytest

from tests.data.labels import made
from uld_jax.data import annotation, labels
from uld_jax.data.labels import deeplabcut
from uld_jax.errors import UserError

h5py = pytest.importorskip("h5py")

OLD = (
    "scorer,ann,ann,ann,ann\nbodyparts,nose,nose,tail base,tail base\ncoords,x,y,x,y\n"
    "labeled-data/v1/img1.png,1.5,2,,\nlabeled-data/v1/img2.png,3,4,5,6.25\nlabeled-data/v2/img1.png,,,,\n"
)
NEW = OLD.replace("scorer,", "scorer,,,").replace("bodyparts,", "bodyparts,,,").replace("coords,", "coords,,,")
NEW = NEW.replace("data/v1/", "data,v1,").replace("data/v2/", "data,v2,")
FILES = [f"labeled-data/{name}" for name in ("v1/img1.png", "v1/img2.png", "v2/img1.png")]
VALUES = np.array([[1.5, 2, np.nan, np.nan], [3, 4, 5, 6.25], [np.nan] * 4])
COLUMNS = [("ann", part, axis) for part in ("nose", "tail base") for axis in "xy"]
WANTED = {FILES[0]: {"nose": (1.5, 2)}, FILES[1]: {"nose": (3, 4), "tail base": (5, 6.25)}, FILES[2]: {}}


def table(path, columns=COLUMNS, protocol=0, values=VALUES):
    """The layout `table` of pandas."""
    rows = np.zeros(3, [("index", "S30"), ("values_block_0", "f8", (values.shape[1],))])
    rows["index"], rows["values_block_0"] = [f.encode() for f in FILES], values
    with h5py.File(path, "w") as file:
        file["df_with_missing/table"] = rows
        file["df_with_missing/table"].attrs["values_block_0_kind"] = np.void(pickle.dumps(columns, protocol))


def fixed(path, columns=COLUMNS, values=VALUES):
    """The layout `fixed` of pandas, with an index of three levels."""
    with h5py.File(path, "w") as file:
        group = file.create_group("df_with_missing")
        group.attrs["nblocks"] = 1
        for axis, rows in (("axis1", [f.split("/") for f in FILES]), ("block0_items", columns)):
            for level, cells in enumerate(zip(*rows, strict=True)):
                words = sorted(set(cells))
                group[f"{axis}_level{level}"] = np.array(words, "S")
                group[f"{axis}_label{level}"] = np.array([words.index(c) for c in cells], np.int8)
        group["block0_values"] = values


@pytest.mark.parametrize("text", [OLD, NEW, OLD.replace("/", "\\").replace("\n", "\r\n")])
def test_csv(tmp_path, text):
    made.photos(tmp_path, dict.fromkeys(FILES, (30, 40)))
    (tmp_path / "labeled-data/v1/CollectedData_ann.csv").write_text(text, newline="")
    found, said = made.read(tmp_path)
    assert made.points(found) == WANTED
    assert found.landmark_names == ("nose", "tail base")
    assert said == [f"{tmp_path}/labeled-data/v1/CollectedData_ann.csv: DeepLabCut, 2 points, labels of 3 images"]


@pytest.mark.parametrize("write", [table, fixed, lambda path: table(path, protocol=4)])
def test_hdf5(tmp_path, write):
    made.photos(tmp_path, dict.fromkeys(FILES, (30, 40)))
    write(tmp_path / "CollectedData_ann.h5")
    assert made.points(made.read(tmp_path)[0]) == WANTED
    (tmp_path / "CollectedData_ann.csv").write_text(OLD)  # both are written by DeepLabCut
    found, said = made.read(tmp_path)
    assert made.points(found) == WANTED
    assert len(said) == 1
    assert found.sources == {"CollectedData_ann.csv", "CollectedData_ann.h5"}


class Harm:
    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_unpickled(tmp_path, capsys):
    made.photos(tmp_path, dict.fromkeys(FILES, (30, 40)))
    for columns in ([Harm()], [(np.str_("ann"), "nose", "x")] * 4, {"a": 1}):
        table(tmp_path / "a.h5", columns)
        with pytest.raises(UserError, match=r"a.h5 is not a table of pandas that can be read safely .* as csv"):
            made.read(tmp_path)
    assert capsys.readouterr().out == ""
    for protocol in range(6):
        assert deeplabcut._texts(pickle.dumps([*COLUMNS, (), ("a",)], protocol)) == [*COLUMNS, (), ("a",)]


# Two mice, and a point that is none's.
MANY = [("ann", m, part, a) for m in ("m1", "m2") for part in ("nose", "tail base") for a in "xy"]
MANY += [("ann", "single", "corner", a) for a in "xy"]
EVERY = np.array([[1.5, 2, np.nan, np.nan, 7, 8, 9, 10, 0, 29], [3, 4, 5, 6, *[np.nan] * 6], [np.nan] * 10])
OBJECTS = {
    (FILES[0], "m1"): ({"nose": (1.5, 2)}, None),
    (FILES[0], "m2"): ({"nose": (7, 8), "tail base": (9, 10)}, None),
    (FILES[0], "single"): ({"corner": (0, 29)}, None),
    (FILES[1], "m1"): ({"nose": (3, 4), "tail base": (5, 6)}, None),
    (FILES[2], ""): ({}, None),
}


def many(path, split):
    """A csv of several animals, its path in one column or three."""
    split = (lambda name: name.split("/")) if split else lambda name: [name]
    blank = [""] * (len(split(FILES[0])) - 1)
    words = ("scorer", "individuals", "bodyparts", "coords")
    rows = [[word, *blank, *level] for word, level in zip(words, zip(*MANY, strict=True), strict=True)]
    rows += [[*split(f), *("" if np.isnan(v) else v for v in r)] for f, r in zip(FILES, EVERY, strict=True)]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))


@pytest.mark.parametrize("form", ["one column", "three columns", "table", "fixed"])
def test_tables_of_several_animals(tmp_path, form):
    made.photos(tmp_path, dict.fromkeys(FILES, (30, 40)))
    name = "a.csv" if "column" in form else "a.h5"
    if name == "a.csv":
        many(tmp_path / name, form == "three columns")
    else:
        {"table": table, "fixed": fixed}[form](tmp_path / name, MANY, values=EVERY)
    with pytest.raises(UserError, match=rf"a\..* has 3 objects \(m1, m2, single\), and {made.COMMAND}"):
        made.read(tmp_path)
    found, said = made.objects(tmp_path)
    assert found == OBJECTS
    assert labels.read_objects(tmp_path).annotation.landmark_names == ("nose", "tail base", "corner")
    assert said[0].endswith("DeepLabCut, 3 points, labels of 5 objects in 3 images")
    if name == "a.csv":
        (tmp_path / "train.csv").write_text((tmp_path / name).read_text())
        with pytest.raises(
            UserError, match=rf"train.csv is a table of several animals .*{made.COMMAND}.* its own name"
        ):
            annotation.read_folder(tmp_path)


def test_a_table_of_several_animals_with_one_an_image(tmp_path):
    """Where no image has several, the folder is one of single objects."""
    made.photos(tmp_path, dict.fromkeys(FILES, (30, 40)))
    text = OLD.replace("\n", "\nindividuals,m1,m1,m1,m1\n", 1)
    (tmp_path / "a.csv").write_text(text)
    assert made.points(made.read(tmp_path)[0]) == WANTED


def test_what_is_no_table_of_labels(tmp_path):
    made.photos(tmp_path, dict.fromkeys(FILES, (30, 40)))
    path = tmp_path / "a.h5"
    table(path, [("ann", "x", "m1", part, axis) for part in ("nose", "tail") for axis in "xy"])
    with pytest.raises(UserError, match=r"a.h5 has not the columns scorer, bodyparts and coords"):
        made.read(tmp_path)
    path.unlink()
    for text, message in (
        (OLD.replace("labeled-data/v1/img1.png", "0"), "line 4 names the frame '0' of a video"),
        (OLD.replace("1.5,2,,", "1.5,,,"), "line 4: one of x and y of the point nose is empty"),
        (OLD.replace("1.5,2,,", "1.5,q,,"), "line 4, point nose: 'q' is not a number"),
        (OLD.replace("coords", "individuals,m,m,m,m\ncoords"), "the next lines do not start with `bodyparts`"),
        (OLD.replace("\n", "\nindividuals,m,m,n,m\n", 1), "has no column y of the point tail base of n"),
    ):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            made.read(tmp_path)


def test_what_is_written_has_three_columns_for_the_path(tmp_path):
    found = made.predictions(1)
    labels.FORMATS["dlc"].write(tmp_path / "landmarks.csv", found)
    lines = (tmp_path / "landmarks.csv").read_text().splitlines()
    assert lines[0] == "scorer,,," + ",".join(["uld_jax"] * 6)
    assert lines[1] == "bodyparts,,,p 0,p 0,p 1,p 1,p 2,p 2"
    assert lines[2] == "coords,,,x,y,x,y,x,y"
    assert [line.split(",")[:3] for line in lines[3:]] == [
        ["labeled-data", "in", "a.jpg"],
        ["labeled-data", "b", "c d.jpg"],
    ]
    pandas = pytest.importorskip("pandas")
    read = pandas.read_csv(tmp_path / "landmarks.csv", header=[0, 1, 2], index_col=[0, 1, 2])
    want = np.where(found.score[..., None] > 0, found.xy, np.nan).reshape(2, -1)
    np.testing.assert_allclose(read.to_numpy(), want, atol=1e-3)

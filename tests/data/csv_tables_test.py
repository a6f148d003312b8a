"""Tables of other tools, in the project's layout; values that stand for missing points."""

import doctest

import numpy as np
import pytest

from uld_jax.data import csv_tables as tables
from uld_jax.data.names import Index
from uld_jax.errors import UserError

OWN = "file,x0,y0\na b.jpg,1.5,2\nc.jpg,3,4.25\n"


def read(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "train.csv"
    path.write_bytes(text.encode(encoding))
    return tables.read_table(path)


def test_examples():
    assert doctest.testmod(tables).failed == 0


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        (OWN, ","),
        (OWN.replace("\n", "\r\n"), ","),
        (OWN.replace(".5", ";5").replace(",", "\t").replace(";", ","), "\t"),
        (OWN.replace(",", ";").replace("1.5", "1,5").replace("4.25", "4,25"), ";"),
        ("sep=;\n" + OWN.replace(",", ";"), ";"),
        ("SEP=|\r\n" + OWN.replace(",", "|"), "|"),
        ("\ufeff" + OWN.replace("\n", ",,\n"), ","),
        (OWN.replace("2\n", "2,,, \n"), ","),
        (OWN.replace("file", ",file").replace("a b", "0,a b").replace("\nc", "\n1,c"), ","),
        ('"file","x0","y0"\n"a b.jpg","1,5","2"\n"c.jpg","3","4,25"\n', ","),
    ],
)
def test_the_same_table_however_it_is_written(tmp_path, text, separator):
    table = read(tmp_path, text)
    assert (table.header, table.separator, table.kind) == (["file", "x0", "y0"], separator, "")
    assert [row[0] for _, row in table.rows] == ["a b.jpg", "c.jpg"]
    assert [[tables.number(cell, str) for cell in row[1:]] for _, row in table.rows] == [[1.5, 2], [3, 4.25]]
    first = 3 if text.lower().startswith("sep") else 2
    assert [line for line, _ in table.rows] == [first, first + 1]


def test_a_column_without_a_name_is_told(tmp_path):
    with pytest.raises(UserError, match=r"train.csv: column 2 of its first line has no name"):
        read(tmp_path, "file,,x0,y0\na.jpg,1,2,3\n")
    with pytest.raises(UserError, match=r"train.csv, line 3: not valid csv"):
        read(tmp_path, 'sep=;\nfile;x0\n"a;1\n')


OLD = (
    "scorer,ann,ann,ann,ann\nbodyparts,nose,nose,tail base,tail base\ncoords,x,y,x,y\n"
    "labeled-data/v1/img01.png,1.5,2,,\nlabeled-data/v1/img02.png,,,3,4\nlabeled-data/v1/img03.png,,,,\n"
)
NEW = (
    "scorer,,,ann,ann,ann,ann\nbodyparts,,,nose,nose,tail base,tail base\ncoords,,,x,y,x,y\n"
    "labeled-data,v1,img01.png,1.5,2,,\nlabeled-data,v1,img02.png,,,3,4\nlabeled-data,v1,img03.png,,,,\n"
)
WINDOWS = OLD.replace("labeled-data/v1/", "labeled-data\\v1\\").replace("\n", "\r\n")
TRACKED = (
    "scorer,net,net,net,net,net,net\nbodyparts,nose,nose,nose,tail base,tail base,tail base\n"
    "coords,x,y,likelihood,x,y,likelihood\n"
    "labeled-data/v1/img01.png,1.5,2,.9,,,\nlabeled-data/v1/img02.png,,,,3,4,.8\nlabeled-data/v1/img03.png,,,,,,\n"
)


@pytest.mark.parametrize("text", [OLD, NEW, WINDOWS, NEW.replace(",", ";"), TRACKED])
def test_tables_of_deeplabcut(tmp_path, text):
    table = read(tmp_path, text)
    assert (table.kind, table.landmark_names) == ("DeepLabCut", ("nose", "tail base"))
    assert table.header == ["file", "x0", "y0", "x1", "y1"]
    files = Index([f"v1/img0{i}.png" for i in (1, 2, 3)])
    found = [tables.locate(row[0], "/data/labeled-data", files) for _, row in table.rows]
    assert found == ["v1/img01.png", "v1/img02.png", "v1/img03.png"]
    numbers = [[tables.number(cell, str) for cell in row[1:]] for _, row in table.rows]
    n = np.nan
    np.testing.assert_array_equal(numbers, [[1.5, 2, n, n], [n, n, 3, 4], [n] * 4])
    assert [line for line, _ in table.rows] == [4, 5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OLD.replace("bodyparts", "individuals,m1,m1,m2,m2\nbodyparts"), "is a table of several animals"),
        (OLD.replace("coords", "x"), "the next lines do not start with `bodyparts` and `coords`"),
        ("scorer,a,a\n", "the next lines do not start with `bodyparts` and `coords`"),
        (OLD.replace("tail base,tail base", "nose,nose"), "has the point nose twice"),
        (OLD.replace("coords,x,y,x,y", "coords,x,y,x,z"), "has no column y of the point tail base"),
    ],
)
def test_what_is_no_table_of_one_animal(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cell", ["", " ", "NaN", "nan", "NA", "n/a", "None", "null"])
def test_cells_that_say_missing(cell):
    assert np.isnan(tables.number(cell, str))


@pytest.mark.parametrize("cell", ["inf", "1,2,3", "1.2,3", "1O", "-"])
def test_cells_that_are_no_numbers(cell):
    with pytest.raises(UserError, match=f"here: '{cell}' is not a number"):
        tables.number(cell, lambda: "here")


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        (".\\a\\b.jpg", "a/b.jpg"),
        ("photos/a/b.jpg", "a/b.jpg"),
        ("/x/photos/a/b.jpg", "a/b.jpg"),
        ("C:\\Users\\me\\photos\\a\\b.jpg", "a/b.jpg"),
        ("../photos/a/b.JPG", "a/b.jpg"),
        ("A/B.JPG", "a/b.jpg"),
        ("photos/photos/c.jpg", "photos/c.jpg"),
        ("photos/c.jpg", "photos/c.jpg"),
        ("back\\slash.jpg", "back\\slash.jpg"),
        ("absent.jpg", "absent.jpg"),
        ("/etc/a/b.jpg", None),
        ("D:\\other\\b.jpg", None),
        ("../b.jpg", None),
        ("http://x/photos/a/b.jpg", None),
        ("", None),
    ],
)
def test_a_file_is_found_however_it_is_spelt(cell, name):
    files = Index(["a/b.jpg", "photos/c.jpg", "back\\slash.jpg"])
    assert tables.locate(cell, "/x/photos", files) == name


def labels(seed, rows=60, points=5, integers=False, size=100):
    """Points of a wobbling shape in images of different sizes."""
    rng = np.random.default_rng(seed)
    shape = rng.uniform(0.2, 0.8, (points, 2))
    sizes = rng.uniform(0.5, 1.5, (rows, 1, 1)) * size
    out = (shape + rng.normal(0, 0.05, (rows, 1, 2)) + rng.normal(0, 0.02, (rows, points, 2))) * sizes
    return np.round(out) if integers else out


@pytest.mark.parametrize("value", [(0, 0), (-1, -1), (1, 1), (999, 999)])
@pytest.mark.parametrize("integers", [False, True])
def test_a_value_that_repeats_exactly_apart_from_all_labels_is_missing(value, integers):
    for seed in range(5):
        points, rng = labels(seed, integers=integers), np.random.default_rng(seed)
        gone = rng.random(points.shape[:2]) < 0.2
        gone[7] = True  # a whole image
        points[gone] = value
        ((found, where),) = tables.repeated(points)
        assert found == value
        np.testing.assert_array_equal(where, gone)


def test_points_that_are_missing_in_few_images():
    points = labels(0)
    points[[3, 8], 2] = 0  # one point alone, twice
    assert [(v, w.sum()) for v, w in tables.repeated(points)] == [((0, 0), 2)]
    points[:, 4] = -1  # never annotated
    assert [(v, w.sum()) for v, w in tables.repeated(points)] == [((-1, -1), 60), ((0, 0), 2)]


@pytest.mark.parametrize("size", [12, 40, 400])
@pytest.mark.parametrize("rows", [3, 10, 200, 2000])
def test_whole_numbers_that_repeat_by_chance_stay(size, rows):
    for seed in range(5):
        assert tables.repeated(labels(seed, rows=rows, integers=True, size=size)) == []


def test_labels_that_are_the_same_for_good_reason_stay():
    aligned = np.round(np.array([69, 111]) + np.random.default_rng(0).normal(0, 1, (500, 5, 2)))
    assert tables.repeated(aligned) == []  # as in aligned faces: of all points at one place
    corners = np.array([[0, 0], [99, 0], [0, 99], [99, 99]], float) + np.zeros((30, 1, 1))
    assert tables.repeated(corners) == []  # of documents that fill the picture
    corners[::3] += np.random.default_rng(0).integers(0, 4, (10, 4, 2))
    assert tables.repeated(corners) == []
    still = labels(2)
    still[20:40, 3] = 31, 47  # one point of an animal that stays where it is, for some frames
    assert tables.repeated(still) == []
    assert tables.repeated(np.full((4, 3, 2), np.nan)) == []
    assert tables.repeated(labels(0, rows=1)) == []

"""What the csv files of a folder say together, and what is said of them."""

import warnings

import numpy as np
import pytest
from PIL import Image

from uld_jax import data
from uld_jax.data import annotation, specs
from uld_jax.data.names import Index
from uld_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
    for i in range(12):
        (tmp_path / "v1").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), i, np.uint8)).save(tmp_path / f"v1/{i}.png")
    return tmp_path


def opened(root, split="train"):
    return data.open_source("folder", split, data_dir=root, frame_size=50)


def test_a_table_of_deeplabcut_is_read_as_the_same_table_of_our_own(root):
    head = "scorer,,,me,me,me,me\nbodyparts,,,nose,nose,tail,tail\ncoords,,,x,y,x,y\n"
    (root / "train.csv").write_text(head + "labeled-data,v1,3.png,5,6,,\nlabeled-data,v1,1.png,7.5,8,9,10\n")
    (root.parent / "labeled-data").symlink_to(root)
    with pytest.warns(annotation.CsvNote, match=r"train.csv: DeepLabCut, 2 points, separator ,$"):
        source = opened(root.parent / "labeled-data")
    (root / "train.csv").write_text("file,x0,y0,x1,y1\nv1/3.png,5,6,,\nv1/1.png,7.5,8,9,10\n")
    own = opened(root)
    np.testing.assert_array_equal(source.landmarks, own.landmarks)
    assert source.spec == own.spec._replace(landmark_names=("nose", "tail"))
    assert [source.names[row] for row in specs.labelled(source)] == ["v1/1.png", "v1/3.png"]
    assert source.fingerprint == own.fingerprint


def test_columns_may_have_the_names_of_the_points(root):
    text = "file,nose_x,nose_y,nose_score,left ear_y,left ear_x,nose_visible,left ear_visible,yaw\n"
    (root / "train.csv").write_text(text + "v1/1.png,1,2,0.5,4,3,0,1,30\nv1/2.png,5,6,,,,1,,\n")
    with pytest.warns(annotation.CsvNote, match=r"train.csv: 2 points with names \(nose, left ear\), separator ,$"):
        source = opened(root)
    (root / "train.csv").write_text(
        "file,x0,y0,x1,y1,visible0,visible1,nose_score,yaw\nv1/1.png,1,2,3,4,0,1,0.5,30\nv1/2.png,5,6,,,1,,,\n"
    )
    own = opened(root)
    np.testing.assert_array_equal(source.landmarks, own.landmarks)
    np.testing.assert_array_equal(source.visible, own.visible)
    assert source.columns == own.columns
    assert (source.spec.landmark_names, own.spec.landmark_names) == (("nose", "left ear"), ())
    # Beside numbered columns, and without a partner, such columns stay what they were: facts about the image.
    for header in ("file,x0,y0,wind_x,wind_y", "file,x0,y0,wind_x,wind_z"):
        (root / "train.csv").write_text(header + "\nv1/1.png,1,2,3,4\n")
        assert opened(root).columns["wind_x"][1] == "3"
    (root / "train.csv").write_text("file,wind_x\nv1/1.png,3\n")
    assert opened(root).landmarks is None
    # Names in one table and numbers in the other go together; names and other names do not.
    (root / "train.csv").write_text("file,nose_x,nose_y\nv1/1.png,1,2\n")
    (root / "test.csv").write_text("file,x0,y0\nv1/2.png,1,2\n")
    with pytest.warns(annotation.CsvNote):
        assert opened(root, "test").spec.landmark_names == ("nose",)
    (root / "test.csv").write_text("file,ear_x,ear_y\nv1/2.png,1,2\n")
    with pytest.warns(annotation.CsvNote), pytest.raises(UserError, match="have other points, or in another order"):
        opened(root)


def test_points_at_zero_are_missing_and_it_is_said(root):
    rng = np.random.default_rng(0)
    points = rng.uniform(10, 40, (12, 2, 2)).round(1)
    points[[1, 4, 4], [0, 0, 1]] = 0
    lines = [f"v1/{i}.png,{','.join(f'{v:g}' for v in p.ravel())}" for i, p in enumerate(points)]
    (root / "train.csv").write_text("file,x0,y0,x1,y1\n" + "\n".join(lines))
    said = r"train.csv: 3 points in 2 rows all are \(0, 0\), and are taken as missing; write empty cells to be sure"
    with pytest.warns(annotation.CsvNote, match=said):
        source = opened(root)
    gone = {f"v1/{i}.png": n for i, n in ((1, 1), (4, 2))}
    assert {n: 2 - c for n, c in zip(source.names, specs.annotated(source).sum(1), strict=True) if c < 2} == gone
    np.testing.assert_array_equal(source.visible, specs.annotated(source))


def test_nothing_is_said_of_a_plain_table(root):
    (root / "train.csv").write_text("file,x0,y0\nv1/3.png,5,6\nv1/4.png,0,0\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(root)


def test_separators_are_told(root):
    (root / "train.csv").write_text("file;x0;y0\nv1\\3.PNG;5,5;6\n")
    with pytest.warns(annotation.CsvNote, match=r"train.csv: 1 points, separator ;$"):
        source = opened(root)
    assert source.landmarks[source.names.index("v1/3.png")].tolist() == [[5.5, 11]]  # padded by 5 above


def test_points_of_two_tables_go_together(root):
    head = "scorer,me,me,me,me\nbodyparts,{0},{0},{1},{1}\ncoords,x,y,x,y\n"
    (root / "train.csv").write_text(head.format("nose", "tail") + "v1/1.png,1,2,3,4\n")
    (root / "test.csv").write_text(head.format("tail", "nose") + "v1/2.png,1,2,3,4\n")
    with pytest.warns(annotation.CsvNote), pytest.raises(UserError, match="have other points, or in another order"):
        opened(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;x0;y0\nv1/1.png;1,5;one\n", "line 2, column y0: 'one' is not a number"),
        ("file,a_x,a_y,b_x\nv1/1.png,1,2,3\n", "has a column b_x but no b_y; add it, or if this is no point rename it"),
        ("file,a_x,a_y,b_x,b_y,a_visible\nv1/1.png,1,2,3,4,1\n", "has a column a_visible but no b_visible"),
        ("file,a_x,a_y\nv1/1.png,1,\n", "line 2: one of a_x and a_y is empty"),
        ("file,a_x,a_y,a_visible\nv1/1.png,1,2,3\n", "line 2, column a_visible: not 0 or 1"),
        ("sep=;\nfile;x0;y0\nv1/1.png;NaN;2\n", "line 3: one of x0 and y0 is empty"),
        ("file,x0,y0\nv1/1.png,1,2\nv1\\1.png,1,2\n", r"line 3: v1\\1.png is the file of line 2, typed otherwise"),
        ("scorer,a,a\nbodyparts,n,n\ncoords,x,y\nv1/1.png,1,b\n", "line 4, column y0: 'b' is not a number"),
        ("scorer,a,a\nindividuals,m,m\nbodyparts,n,n\ncoords,x,y\nv1/1.png,1,2\n", "several animals"),
    ],
)
def test_mistakes_name_file_line_and_column(root, text, message):
    (root / "train.csv").write_text(text)
    with pytest.raises(UserError, match=f"train.csv.*{message}") as error:
        opened(root)
    assert "\n" not in str(error.value)


def points(root, text):
    (root / "points.csv").write_text(text)
    return annotation.read_points(root / "points.csv", root, Index(["v1/3.png", "v1/4.png"]))


def test_points_of_a_program_are_read_as_they_are(root):
    text = "file,x0,y0,score0,x1,y1,score1,note\nv1/3.png,0,0,0.5,,,0,a\nv1\\4.PNG,0,0,,7,8,2,b\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = points(root, text)
    assert found.names == ["v1/3.png", "v1/4.png"]
    np.testing.assert_array_equal(found.score, [[0.5, 0], [0, 2]])
    np.testing.assert_array_equal(found.xy, [[[0, 0], [np.nan] * 2], [[np.nan] * 2, [7, 8]]])
    np.testing.assert_array_equal(points(root, "file,x0,y0\nv1/3.png,1,2\n").score, [[1]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,x0,y0,score0\nv1/3.png,1,2,-3\n", "line 2, column score0: -3 is below 0; use 0 for a missing point"),
        ("file,x0,y0\nv1/3.png,1,\n", "line 2: one of x0 and y0 is empty"),
        ("file,note\nv1/3.png,1\n", "points.csv has no points; its first line must be file,x0"),
        ("file,x0,y0,score0\nv1/3.png,1,2,high\n", "line 2, column score0: 'high' is not a number"),
        ("file,x0,y0\nv1/3.png,1,2\nv1/3.png,1,2\n", "line 3: v1/3.png is listed in line 2 already"),
    ],
)
def test_points_that_cannot_be_read_are_one_sentence(root, text, said):
    with pytest.raises(UserError, match=said):
        points(root, text)

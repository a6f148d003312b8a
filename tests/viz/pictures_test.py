import numpy as np
import pytest
from PIL import Image

from uld_jax import viz


def closest_colour(pixels, colours):
    return np.linalg.norm(np.asarray(pixels, float)[None] - colours.astype(float), axis=-1).argmin()


def test_dots_lie_where_the_landmarks_are():
    xy = np.array([[20.0, 30.0], [90.5, 12.25], [55.0, 60.0]])
    ground = np.full((80, 120, 3), 128, np.uint8)
    drawn = np.asarray(viz.draw_overlay(ground, xy, radius=4), float)
    assert drawn.shape == ground.shape
    assert (ground == 128).all()
    for k, (x, y) in enumerate(xy):
        inside = np.asarray(viz.palette(3)[k], float)
        np.testing.assert_allclose(drawn[round(y), round(x)], inside, atol=1)
        box = drawn[int(y) - 9 : int(y) + 10, int(x) - 9 : int(x) + 10]
        changed = np.abs(box - 128).sum(-1)
        rows, columns = np.mgrid[int(y) - 9 : int(y) + 10, int(x) - 9 : int(x) + 10]
        solid = changed > 20
        assert abs(columns[solid].mean() - x) < 0.25
        assert abs(rows[solid].mean() - y) < 0.25
        assert (box > 200).all(-1).any()  # the white rim


def test_missing_landmarks_are_not_drawn():
    ground = np.full((60, 60, 3), 100, np.uint8)
    xy = np.array([[10.0, 10.0], [30.0, 30.0], [np.nan, 5.0], [500.0, 500.0], [-500.0, 20.0]])
    drawn = np.asarray(viz.draw_overlay(ground, xy, np.array([0.0, 0.3, 1, 1, 1]), numbers=True))
    assert (drawn[:20, :20] == 100).all()
    assert (drawn[26:34, 26:34] != 100).any()
    nothing = viz.draw_overlay(ground, np.full((4, 2), np.nan), numbers=True)
    assert (np.asarray(nothing) == 100).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_images_of_any_mode_and_dots_on_the_border(mode):
    image = Image.new(mode, (33, 21))
    drawn = viz.draw_overlay(image, np.array([[0.0, 0.0], [32.0, 20.0], [16.0, -1.0]]))
    assert drawn.mode == "RGB"
    assert drawn.size == (33, 21)


def test_the_legend_of_a_contact_sheet_has_names():
    image, xy = np.zeros((64, 64, 3), np.uint8), np.array([[10.0, 10.0], [50.0, 50.0]])
    numbered, named = (viz.contact_sheet([image], [xy], cell=64, names=names) for names in ((), ("nose", "tail base")))
    assert named.height > numbered.height  # an entry takes the whole width
    long = viz.contact_sheet([image], [xy], cell=64, names=("nose", "n" * 100))
    assert numbered.width < named.width < long.width < 400
    bare = viz.contact_sheet([image], [xy], cell=64, names=("nose", "tail"), legend=False)
    assert bare.size == viz.contact_sheet([image], [xy], cell=64, legend=False).size


def test_contact_sheet_places_points_of_images_of_different_sizes():
    images = [np.zeros((40, 80, 3), np.uint8), np.zeros((64, 64), np.uint8), Image.new("RGB", (30, 90))]
    xys = [np.array([[79.5, 19.5]]), np.array([[31.5, 31.5]]), np.array([[14.5, 44.5]])]
    cell = 64
    sheet = np.asarray(viz.contact_sheet(images, xys, columns=2, cell=cell, title="three"))
    colour = viz.palette(1)[0].astype(float)
    gap, margin = 3, 8
    top = np.flatnonzero((sheet[:, margin + 32] == 0).all(-1))[0] - 16  # the first image is a band of half the height
    for i, centre in enumerate([(63.4, 31.5), (31.5, 31.5), (31.5, 31.5)]):
        x = margin + (i % 2) * (cell + gap) + centre[0]
        y = top + (i // 2) * (cell + gap) + centre[1]
        patch = sheet[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 1].reshape(-1, 3)
        assert np.abs(patch - colour).sum(1).min() < 30, i
    many = viz.contact_sheet([np.zeros((8, 8, 3), np.uint8)] * 3, [np.zeros((30, 2))] * 3, [np.zeros(30)] * 3)
    plain = viz.contact_sheet([np.zeros((8, 8, 3), np.uint8)] * 3, [np.zeros((0, 2))] * 3)
    assert many.height > plain.height
    assert many.width == plain.width
    with pytest.raises(ValueError, match="at least one"):
        viz.contact_sheet([], [])


def test_heatmap_panel_shows_each_map_in_its_colour():
    maps = np.zeros((16, 16, 3))
    maps[4, 4, 0], maps[4, 12, 1], maps[12, 8, 2] = 0.2, 1.0, 7.0
    panel = np.asarray(viz.heatmap_panel(np.zeros((32, 32, 3), np.uint8), maps, columns=4, cell=64), float)
    gap = 2
    for k, (x, y) in enumerate([(18, 18), (50, 18), (34, 50)]):
        alone = panel[gap + y, gap + (k + 1) * (64 + gap) + x - 3 : gap + (k + 1) * (64 + gap) + x + 4].max(0)
        together = panel[gap + y, gap + x - 3 : gap + x + 4].max(0)
        for seen in (alone, together):
            assert seen.max() > 100
            assert closest_colour(seen, viz.palette(6)[:6]) == k
    assert np.isfinite(np.asarray(viz.heatmap_panel(np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4, 2))))).all()


def test_pictures_are_stacked_and_sheets_may_have_no_legend():
    images, xy = np.full((3, 20, 20, 3), 90, np.uint8), np.full((3, 4, 2), 9.0)
    bare, whole = (viz.contact_sheet(images, xy, legend=legend) for legend in (False, True))
    assert bare.height < whole.height
    np.testing.assert_array_equal(np.asarray(whole)[: bare.height - 16], np.asarray(bare)[:-16])  # but for the margin
    both = viz.stacked([whole, bare.crop((0, 0, 50, 40))])
    assert both.size == (whole.width, whole.height + 40)
    np.testing.assert_array_equal(np.asarray(both)[: whole.height], np.asarray(whole))
    assert (np.asarray(both)[whole.height :, 50:] == 255).all()
    with pytest.raises(ValueError, match="no picture"):
        viz.stacked([])


def test_a_labelled_grid_has_its_pictures_below_their_names():
    red, blue = np.full((8, 8, 3), (200, 0, 0), np.uint8), np.full((8, 8, 3), (0, 0, 200), np.uint8)
    plain = np.asarray(viz.labelled_grid([[red, blue]], columns=["a", "b"], cell=32, gap=4))
    assert (plain[-20, 20].tolist(), plain[-20, 56].tolist()) == ([200, 0, 0], [0, 0, 200])
    named = np.asarray(viz.labelled_grid([[red, blue]], columns=["a", "b"], rows=["a long name"], cell=32, gap=4))
    assert named.shape[0] == plain.shape[0]
    assert named.shape[1] > plain.shape[1] + 30
    assert (named[-20, -20] == (0, 0, 200)).all()


def test_models_are_compared_on_the_same_images():
    images = [np.full((32, 32, 3), 30 * i, np.uint8) for i in range(3)]
    points = np.full((3, 2, 2), 15.5)
    points[:, 1] += 8
    rows = {"one": (points, np.array([[1, 0]] * 3)), "two": (points[:, :1] + 8, None)}
    sheet = np.asarray(viz.compared_landmarks(images, rows, columns=["a", "b", "c"], corner="yaw", cell=32))
    place = lambda row, column, at: sheet[-36 * (2 - row) + at, -36 * (3 - column) + at].tolist()
    first = viz.palette(1)[0].tolist()
    for column in range(3):
        assert place(0, column, 15) == first
        assert place(0, column, 24) == [30 * column] * 3  # of score 0
        assert place(1, column, 15) == [30 * column] * 3
        assert place(1, column, 23) == first
    sheets = {"one": np.full((2, 1, 8, 8, 3), 50, np.uint8), "another": np.full((2, 2, 4, 4, 3), 90, np.uint8)}
    sheets["one"][1], sheets["another"][1] = 150, 190
    shown = np.asarray(viz.compared_pictures(sheets, ["image 3", "image 8"], cell=32))
    column = shown[:, -56, 0]
    assert [int(v) for v, before in zip(column[1:], column) if v != before and v != 255] == [50, 90, 150, 190]
    assert (shown[:, -20, 0] == 50).sum() == 0  # one column
    assert (shown[:, -20, 0] == 90).sum() == 32


def test_overlays_of_numbers_and_labels():
    image = np.full((4, 4, 3), 100, np.uint8)
    heat = np.asarray(viz.heat_overlay(image, np.array([[0.0, 0.0], [0.0, 1.0]]), low=0.5, high=1.0, cell=16), int)
    assert heat[15, 15].sum() > heat[0, 0].sum() + 100
    assert (heat[0, 0] == heat[0, 15]).all()  # both below `low`
    labels = np.asarray(viz.label_overlay(image, np.array([[0, 1], [-1, 1]]), cell=16, strength=1.0))
    assert (labels[0, 0] == viz.palette(2)[0]).all()
    assert (labels[15, 15] == viz.palette(2)[1]).all()
    assert (labels[15, 0] == 100).all()

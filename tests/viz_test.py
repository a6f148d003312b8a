import io

import numpy as np
import pytest
from PIL import Image

from uld_jax import viz


def closest_colour(pixels, colours):
    return np.linalg.norm(np.asarray(pixels, float)[None] - colours.astype(float), axis=-1).argmin()


def test_one_colour_is_one_landmark_for_any_number_of_landmarks():
    many = viz.palette(120)
    assert many.dtype == np.uint8
    assert len(np.unique(many, axis=0)) == 120
    for k in (1, 7, 30):
        np.testing.assert_array_equal(viz.palette(k), many[:k])
    apart = np.linalg.norm(many[:30, None].astype(float) - many[None, :30], axis=-1) + 1e3 * np.eye(30)
    assert apart.min() > 30
    assert len(viz.palette(600)) == 600


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


def test_plots_hold_the_numbers_they_are_given(tmp_path):
    ced = viz.ced_plot({"forward": ([0, 5, 10], [0, 0.5, 1])}, {"backward": ([1, 2], [3.0, 4.0])}, title="x")
    np.testing.assert_array_equal(ced.axes[0].lines[0].get_xydata(), [[0, 0], [5, 50], [10, 100]])
    np.testing.assert_array_equal(ced.axes[1].lines[0].get_xydata(), [[1, 3], [2, 4]])
    groups = [
        {"group": "0 to 30", "n": 5, "forward_nme": 4.0, "mean_shape_nme": 9.0},
        {"group": "no value", "n": 1, "forward_nme": None, "mean_shape_nme": None},
    ]
    bars = viz.bar_plot(groups)
    assert bars.axes[0].patches[0].get_height() == 4.0
    assert [t.get_text() for t in bars.axes[0].get_xticklabels()] == ["0 to 30\n5 images", "no value\n1 images"]
    long = viz.bar_plot([{**groups[0], "group": f"person {i}", "forward_nme": float(i)} for i in range(60)], most=20)
    assert [p.get_width() for p in long.axes[0].patches] == list(range(59, 39, -1))
    assert "20 worst of 60" in long.axes[0].get_title(loc="left")
    counts = [
        {"n": n, "repeats": 3, "forward_nme": 10.0 / n, "forward_nme_std": 0.1, "mean_shape_nme": 9.0} for n in (1, 10)
    ]
    lines = viz.label_count_plot(counts).axes[0].lines
    np.testing.assert_allclose(lines[1].get_xydata(), [[1, 10], [10, 1]])
    metrics = viz.metrics_plot(
        [
            {"step": 0, "stage": "a", "loss": 2.0},
            {"step": 1, "stage": "a", "forward_nme": 9.0, "mean_shape_nme": 20.0},
            {"step": 2, "stage": "b", "loss": 1.0},
            {"step": 3, "stage": "b", "loss": float("nan"), "done": True},
        ]
    )
    np.testing.assert_array_equal(metrics.axes[0].lines[0].get_xydata(), [[0, 2], [2, 1]])
    assert [line.get_label() for line in metrics.axes[1].lines][:2] == ["forward", "mean shape"]
    viz.metrics_plot([])
    runs = [
        [
            {"step": 1, "stage": "a", "consistency": 0.5 + seed},
            {"step": 2, "stage": "a", "loss": 1.0},
            {"step": 2, "stage": "a", "forward_nme": 9.0 + seed},
            {"step": 3, "stage": "b", "forward_nme": 1.0},  # of another stage, in which there is no consistency yet
            *([{"step": 4, "stage": "b", "loss": 5.0}] if seed else []),
        ]
        for seed in (0, 1)
    ]
    sweep = viz.sweep_plot({"both": runs, "one": runs[1:]})
    titles = [(ax.get_xlabel(), ax.get_ylabel()) for ax in sweep.axes]
    assert [x for x, _ in titles] == ["step", "step", "step", "consistency"]
    means = [[line for line in ax.lines if line.get_linewidth() == 2] for ax in sweep.axes]
    assert [[line.get_label() for line in panel] for panel in means] == [["both", "one"]] * 4
    np.testing.assert_array_equal(means[0][0].get_xydata(), [[1, 1.0]])
    np.testing.assert_array_equal(means[1][0].get_xydata(), [[2, 9.5], [3, 1]])
    np.testing.assert_array_equal(means[2][0].get_xydata(), [[2, 1]])  # at the steps that both have
    np.testing.assert_array_equal(means[2][1].get_xydata(), [[2, 1], [4, 5]])
    np.testing.assert_array_equal(means[3][0].get_xydata(), [[1.0, 9.5]])
    assert len(sweep.axes[1].lines) == 4  # two thin ones
    viz.sweep_plot({})
    for i, picture in enumerate([ced, bars, long, Image.new("RGB", (5, 4))]):
        viz.save(picture, tmp_path / "new" / f"{i}.png")
        assert Image.open(tmp_path / "new" / f"{i}.png").size == Image.open(io.BytesIO(viz.png(picture))).size


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


@pytest.mark.parametrize("count", [5, 20])
def test_accuracy_bars(count):
    areas = {f"area {i}": dict(points=3, matched=1, exclusive=None if i else 0.5, best=0.9) for i in range(count)}
    found = {"areas": areas, "exclusive": 0.5, "best": 0.9, "radius": 0.2, "matched": 1}
    figure = viz.accuracy_plot(found)
    (ax,) = figure.axes
    bars = [max(p.get_width(), p.get_height()) for p in ax.patches]
    assert sorted(v for v in bars if v > 1) == pytest.approx([50, *[90] * count])
    labels = ax.get_yticklabels() if count > 8 else ax.get_xticklabels()
    assert [t.get_text() for t in labels][:2] == ["area 0\n1 of 3", "area 1\n1 of 3"]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["exclusive, mean of the 1 matched 50 %", "best, mean of all 90 %"]
    assert len(viz.png(figure)) > 1000


def test_heat_maps_of_a_grid():
    panels = {"forward": [[1.0, 2.0, np.nan], [3.0, 4.0, 12.34]], "backward": np.full((2, 3), np.nan)}
    figure = viz.grid_plot(panels, x="K", y="Q", at=([10, 20, 30], [5, 7]))
    first, second = figure.axes
    assert [t.get_text() for t in first.texts] == ["1.00", "2.00", "3.00", "4.00", "12.3"]
    assert not second.texts
    shown = first.images[0].get_array()
    assert (np.diff(shown[..., :3].sum(-1)[np.isfinite(panels["forward"])]) < 0).all()  # darker with the number
    assert (shown[0, 2] == 1).all()
    assert (first.get_xlabel(), first.get_ylabel()) == ("K", "Q")
    assert [t.get_text() for t in first.get_xticklabels()] == ["10", "20", "30"]
    assert len(viz.png(figure)) > 1000

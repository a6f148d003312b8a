import io

import numpy as np
import pytest
from PIL import Image

from uld_jax import viz
from uld_jax.evaluation.curves import Group
from uld_jax.evaluation.label_counts import LabelCount
from uld_jax.evaluation.landmark_accuracy import Area, LandmarkAccuracy


def test_plots_hold_the_numbers_they_are_given(tmp_path):
    ced = viz.ced_plot({"forward": ([0, 5, 10], [0, 0.5, 1])}, {"backward": ([1, 2], [3.0, 4.0])}, title="x")
    np.testing.assert_array_equal(ced.axes[0].lines[0].get_xydata(), [[0, 0], [5, 50], [10, 100]])
    np.testing.assert_array_equal(ced.axes[1].lines[0].get_xydata(), [[1, 3], [2, 4]])
    groups = [
        Group("0 to 30", 5, forward_nme=4.0, mean_shape_nme=9.0),
        Group("no value", 1, forward_nme=None, mean_shape_nme=None),
    ]
    bars = viz.bar_plot(groups)
    assert bars.axes[0].patches[0].get_height() == 4.0
    assert [t.get_text() for t in bars.axes[0].get_xticklabels()] == ["0 to 30\n5 images", "no value\n1 images"]
    long = viz.bar_plot([Group(f"person {i}", 5, forward_nme=float(i), mean_shape_nme=9.0) for i in range(60)], most=20)
    assert [p.get_width() for p in long.axes[0].patches] == list(range(59, 39, -1))
    assert "20 worst of 60" in long.axes[0].get_title(loc="left")
    counts = [
        LabelCount(n=n, repeats=3, forward_nme=10.0 / n, forward_nme_std=0.1, mean_shape_nme=9.0) for n in (1, 10)
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


def test_runs_are_compared_in_one_plot():
    curves = {"a": ([0, 5, 10], [0, 0.5, 1]), "mean shape": ([0, 5, 10], [0, 0, 0.5])}  # a run may have any name
    ced = viz.ced_plot(curves, baselines={"mean shape (9 %)": ([0, 5, 10], [0, 0, 0.2])}, title="x")
    lines = ced.axes[0].lines
    assert [line.get_label() for line in lines] == ["a", "mean shape", "mean shape (9 %)"]
    assert len({line.get_color() for line in lines}) == 3
    groups = lambda *errors: [
        Group(f"bin {i}", 5, forward_nme=error, mean_shape_nme=9.0) for i, error in enumerate(errors)
    ]
    bars = viz.grouped_bars_plot({"a": groups(4.0, 6.0, None), "b": groups(5.0, 3.0, 2.0)}, title="x")
    (ax,) = bars.axes
    heights = [[p.get_height() for p in container] for container in ax.containers]
    np.testing.assert_array_equal(heights, [[4, 6, np.nan], [5, 3, 2]])
    middles = [[p.get_x() + p.get_width() / 2 for p in container] for container in ax.containers]
    np.testing.assert_allclose(np.mean(middles, 0), [0, 1, 2], atol=1e-9)
    assert [t.get_text() for t in ax.get_xticklabels()] == [f"bin {i}\n5 images" for i in range(3)]
    assert [t.get_text() for t in bars.legends[0].get_texts()] == ["mean shape", "a", "b"]
    assert len(viz.png(bars)) > 1000


@pytest.mark.parametrize("count", [5, 20])
def test_accuracy_bars(count):
    areas = {f"area {i}": Area(points=3, matched=1, exclusive=None if i else 0.5, best=0.9) for i in range(count)}
    overall = dict(radius=0.2, n_train=1, n_test=1, matched=1, exclusive=0.5, best=0.9)
    found = LandmarkAccuracy(**overall, areas=areas, per_point=None)
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

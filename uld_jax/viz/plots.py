"""Matplotlib figures of curves, bars, scatters and grids of numbers, drawn without its global state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uld_jax.viz.style import BLUE, FAINT, INK, ORANGE, PAPER, SOFT, line_style, palette, series_style


def _figure(panels: int = 1, width: float = 4.6, height: float = 3.3) -> tuple[Figure, list]:
    figure = Figure(figsize=(width * panels, height), dpi=130, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    for ax in axes:
        _tidy(ax)
    return figure, axes


def _tidy(ax) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(SOFT)
    ax.tick_params(colors=INK, labelsize=8, length=3, color=SOFT)
    ax.grid(True, color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)


def _titles(ax, title: str | None, x: str, y: str) -> None:
    if title:
        ax.set_title(title, fontsize=10, color=INK, loc="left")
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)


def _from_zero(ax):
    """Let the y axis begin at 0 and end a little above the data."""
    ax.set_ylim(0, 1.06 * max(ax.get_ylim()[1], 1e-9))


def ced_plot(
    images: Mapping[str, tuple],
    landmarks: Mapping[str, tuple] | None = None,
    *,
    baselines: Mapping[str, tuple] | None = None,
    title: str | None = None,
) -> Figure:
    """Plot the cumulative error over images, and beside it the mean error of the best 1, 2, ... landmarks.

    Args:
      images: name -> (thresholds in percent, share of images), from `curves.ced`.
      landmarks: name -> (count, mean error in percent), from `ced_over_landmarks`; or None.
      baselines: curves as in `images`, of mean shapes, of a plot of several models; the legend is then below the plot.
      title: title above the first panel.
    """
    figure, axes = _figure(2 if landmarks else 1, height=3.3 if baselines is None else 4.2)
    styles = [line_style(name) if baselines is None else series_style(i) for i, name in enumerate(images)]
    styles += [line_style("mean shape")] * len(baselines or ())
    for (name, (thresholds, share)), style in zip([*images.items(), *(baselines or {}).items()], styles, strict=True):
        axes[0].plot(thresholds, 100 * np.asarray(share), label=name, **style)
        axes[0].set_xlim(0, max(thresholds))
    axes[0].set_ylim(0, 101)
    _titles(axes[0], title, "NME, % of the normaliser", "images at or below, %")
    if baselines is None:
        axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    else:
        figure.legend(frameon=False, fontsize=8, loc="outside lower center")
    for name, (count, error) in (landmarks or {}).items():
        marker = "o" if len(count) <= 30 else None
        axes[1].plot(count, error, label=name, marker=marker, markersize=3.5, **line_style(name))
    if landmarks:
        _from_zero(axes[1])
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        _titles(axes[1], None, "landmarks, best first", "mean NME of these, %")
        axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def bar_plot(groups: Sequence[Any], *, title: str | None = None, most: int = 40) -> Figure:
    """Plot the forward error of groups as bars, the mean shape as a line across, the number of images in the label.

    Args:
      groups: `evaluation.curves.Group`s.
      title: title above the plot.
      most: largest number of bars; of more groups only the worst are drawn, and the title says so.
    """
    shown = list(groups)
    if len(shown) > most:
        shown = sorted(shown, key=lambda g: -(g.forward_nme or 0.0))[:most]
        title = f"{title or 'error'}: the {most} worst of {len(groups)}"
    many = len(shown) * max((len(g.group) for g in shown), default=0) > 72  # more does not fit side by side

    forward = np.array([g.forward_nme for g in shown], np.float64)  # None becomes NaN
    baseline, at = np.array([g.mean_shape_nme for g in shown], np.float64), np.arange(len(shown))
    figure, (ax,) = _figure(
        width=max(4.6, 0.62 * len(shown) if not many else 5.2), height=3.3 if not many else 1 + 0.22 * len(shown)
    )
    place, span, label = (ax.barh, ax.vlines, "y") if many else (ax.bar, ax.hlines, "x")
    place(at, forward, 0.62, color=BLUE, label="forward")
    if np.isfinite(baseline).any():
        span(baseline, at - 0.36, at + 0.36, color=SOFT, linewidth=2.0, label="mean shape")
    top = np.nanmax(np.concatenate([forward, baseline, [1e-9]]))
    ticks = [f"{g.group} ({g.n})" if many else f"{g.group}\n{g.n} images" for g in shown]
    (ax.set_yticks if many else ax.set_xticks)(at, ticks)
    for i, value in enumerate(forward):
        if np.isfinite(value):
            inside = value > 0.12 * top  # at the bar's foot if there is room, away from the mean shape's tick
            edge = (0 if inside else value) + 0.015 * top
            style = {"fontsize": 7 if many else 8, "color": PAPER if inside else INK}
            if many:
                ax.text(edge, i, f"{value:.1f}", ha="left", va="center_baseline", **style)
            else:
                ax.text(i, edge, f"{value:.1f}", ha="center", va="bottom", **style)
    ax.grid(False, axis=label)
    if many:
        ax.set_ylim(len(shown) - 0.4, -1.6)
        ax.set_xlim(0, 1.05 * top)
        _titles(ax, title, "NME, % of the normaliser", "")
    else:
        ax.set_ylim(0, 1.25 * top)
        _titles(ax, title, "", "NME, % of the normaliser")
    ax.legend(frameon=False, fontsize=8, loc="upper right" if many else "upper left", ncols=2)
    return figure


def grouped_bars_plot(runs: Mapping[str, Sequence[Any]], *, title: str | None = None) -> Figure:
    """Plot the forward errors of several runs by groups of images: a bar a run in each group, its mean shape across.

    Args:
      runs: label of a run -> `evaluation.curves.Group`s, of the same images in the same groups.
      title: title above the plot.
    """
    groups = next(iter(runs.values()))
    at, wide = np.arange(len(groups)), 0.8 / len(runs)
    figure, (ax,) = _figure(width=max(4.6, 0.9 + 0.42 * len(groups) * len(runs)), height=4.2)
    top = 1e-9
    for i, (label, found) in enumerate(runs.items()):
        forward, baseline = (
            np.array([getattr(g, name) for g in found], np.float64) for name in ("forward_nme", "mean_shape_nme")
        )
        place = at + (i - (len(runs) - 1) / 2) * wide
        ax.bar(place, forward, 0.92 * wide, color=series_style(i)["color"], label=label)
        ax.hlines(
            baseline, place - wide / 2, place + wide / 2, color=INK, linewidth=1.2, label=None if i else "mean shape"
        )
        for x, value in zip(place[np.isfinite(forward)], forward[np.isfinite(forward)]):
            ax.annotate(
                f"{value:.1f}", (x, 0), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8, color=PAPER
            )
        top = np.nanmax([top, *forward, *baseline])
    ax.set_xticks(at, [f"{group.group}\n{group.n} images" for group in groups])
    ax.grid(False, axis="x")
    ax.set_ylim(0, 1.06 * top)
    _titles(ax, title, "", "forward NME, % of the normaliser")
    figure.legend(frameon=False, fontsize=8, loc="outside lower center")
    return figure


def label_count_plot(rows: Sequence[Any], *, title: str | None = None) -> Figure:
    """Plot the forward error against the number of labelled images (logarithmic), with the spread over draws.

    Args:
      rows: `evaluation.label_counts.LabelCount`s.
      title: title above the plot.
    """
    figure, (ax,) = _figure()
    n = np.array([r.n for r in rows])
    forward = np.array([r.forward_nme for r in rows], np.float64)
    spread = np.array([r.forward_nme_std for r in rows], np.float64)
    ax.plot(n, [r.mean_shape_nme for r in rows], label="mean shape", **line_style("mean shape"))
    ax.fill_between(n, forward - spread, forward + spread, color=BLUE, alpha=0.18, linewidth=0)
    ax.plot(n, forward, label="forward", marker="o", markersize=4, **line_style("forward"))
    for x, y in zip(n, forward):
        ax.annotate(f"{y:.1f}", (x, y), xytext=(0, -11), textcoords="offset points", ha="center", fontsize=8, color=INK)
    ax.set_xscale("log")
    ax.set_xticks(n, [str(v) for v in n])
    ax.minorticks_off()
    _from_zero(ax)
    _titles(ax, title, "labelled images", "NME, % of the normaliser")
    ax.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def metrics_plot(lines: Sequence[Mapping[str, Any]], *, panels: Sequence[Sequence[str]] | None = None) -> Figure:
    """Plot metrics over steps, a panel for each list of names; stage borders are marked.

    Args:
      lines: the objects of `metrics.jsonl`: `step`, `stage` and numbers.
      panels: names of metrics a panel; None for the loss and, if an evaluation wrote any, the errors.
    """
    if panels is None:
        panels = [["loss"], ["forward_nme", "backward_nme", "mean_shape_nme"], ["consistency"], ["clusters"]]
    known = {key for line in lines for key, value in line.items() if isinstance(value, int | float)}
    panels = [[name for name in names if name in known] for names in panels]
    panels = [names for names in panels if names] or [[]]
    stages = [line for line in lines if "stage" in line and "step" in line]
    starts = [b for a, b in zip([{}, *stages], stages) if a.get("stage") != b["stage"]]
    short = {"forward_nme": "forward", "backward_nme": "backward", "mean_shape_nme": "mean shape", "loss": "loss"}
    figure, axes = _figure(len(panels))
    for ax, names in zip(axes, panels):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line and "step" in line]
            points = [(s, v) for s, v in points if isinstance(v, int | float) and np.isfinite(v)]
            style = {"color": BLUE, "linewidth": 1.5} if name == "loss" else line_style(short.get(name, name))
            marker = "o" if len(points) < 25 else None
            ax.plot(
                *zip(*points) if points else ((), ()),
                label=short.get(name, name),
                marker=marker,
                markersize=3.5,
                **style,
            )
        last = max((line["step"] for line in stages), default=0)
        for i, line in enumerate(starts if len(starts) > 1 else []):
            if i + 1 < len(starts) and starts[i + 1]["step"] - line["step"] < 0.15 * last:
                continue  # a stage of (nearly) no steps has no room for its name
            if i:
                ax.axvline(line["step"], color=SOFT, linewidth=0.8, linestyle=":")
            place = {"xy": (line["step"], 1), "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            ax.annotate(str(line["stage"]), xytext=(2, 4), fontsize=8, color=SOFT, **place)
        if any(name.endswith("nme") for name in names):
            _from_zero(ax)
        _titles(
            ax, None, "step", "NME, % of the normaliser" if any(n.endswith("nme") for n in names) else ", ".join(names)
        )
        if len(names) > 1:
            ax.legend(frameon=False, fontsize=8)
    return figure


def _steps(lines: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """A dict step -> value of a metric."""
    values = {line["step"]: line[name] for line in lines if isinstance(line.get(name), int | float)}
    return {step: value for step, value in values.items() if np.isfinite(value)}


def _against(lines: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[int, tuple[float, float]]:
    """A dict step -> (the last x up to then in the same stage, y) of the lines that have y."""
    out, latest = {}, {}
    for line in lines:
        if isinstance(line.get(x), int | float):
            latest[line["stage"]] = line[x]
        if isinstance(line.get(y), int | float) and line["stage"] in latest:
            out[line["step"]] = (latest[line["stage"]], line[y])
    return out


def sweep_plot(
    rows: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    *,
    names: Sequence[str] = ("consistency", "clusters", "forward_nme", "loss"),
    against: tuple[str, str] = ("consistency", "forward_nme"),
) -> Figure:
    """Plot metrics of many runs over steps: a line for each row's mean over its runs, a thin one for every run.

    Args:
      rows: label -> runs, each the objects of its `metrics.jsonl`.
      names: names of metrics, a panel each if some run has them.
      against: two metrics of one more panel, the second over the first, a dot for each evaluation; by default CGB's
        figure 5, the error of the test images over the landmarks' consistency.
    """
    titles = {"forward_nme": "forward NME, % of the normaliser"}
    series = {n: {label: [_steps(run, n) for run in runs] for label, runs in rows.items()} for n in names}
    series = {n: found for n, found in series.items() if any(any(runs) for runs in found.values())}
    pairs = {label: [_against(run, *against) for run in runs] for label, runs in rows.items()}
    has_pairs = any(any(runs) for runs in pairs.values())
    figure, axes = _figure(max(1, len(series) + has_pairs))
    styles = [series_style(i) for i in range(len(rows))]

    def draw(ax, runs, style, label, points, **marks):
        """Draw the runs of a row; `points` maps (steps, values) to x, y."""
        runs = [run for run in runs if run]
        for run in runs if len(runs) > 1 else ():
            ax.plot(*points(list(run), np.array(list(run.values()))), linewidth=0.7, alpha=0.4, **style)
        shared = sorted(set.intersection(*map(set, runs))) if runs else []
        mean = np.array([np.mean([run[step] for run in runs], 0) for step in shared])
        ax.plot(*points(shared, mean) if shared else ((), ()), linewidth=2.0, label=label, **style, **marks)

    for ax, (name, found) in zip(axes, series.items()):
        for (label, runs), style in zip(found.items(), styles):
            few = max((len(run) for run in runs), default=0) < 25
            draw(ax, runs, style, label, lambda s, v: (s, v), marker="o" if few else None, markersize=3.5)
        _titles(ax, None, "step", titles.get(name, name))
    if has_pairs:
        for (label, runs), style in zip(pairs.items(), styles):
            draw(axes[-1], runs, style, label, lambda s, v: (v[:, 0], v[:, 1]), marker="o", markersize=3.5)
        _titles(axes[-1], None, *(titles.get(name, name) for name in against))
    if len(rows) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    return figure


def scatter_plot(places, groups: Mapping[str, Any]) -> Figure:
    """Plot points in panels, each coloured by a grouping, as CGB's figure 6 (left) and Mallis et al.'s figure 2a.

    Args:
      places: [R,2], for example from t-SNE; or title of a panel -> [R,2], if panels show different points.
      groups: title of a panel -> [R] int, the group of every point; -1 is drawn grey. Colours are those of `palette`.
    """
    figure, axes = _figure(len(groups), width=4.0, height=4.2)
    for ax, (title, group) in zip(axes, groups.items()):
        at, group = np.asarray(places[title] if isinstance(places, Mapping) else places), np.asarray(group)
        colours = palette(512)[np.maximum(group, 0) % 512] / 255
        colours = np.where((group < 0)[:, None], np.full(3, 0.75), colours)
        ax.scatter(at[:, 0], at[:, 1], s=5, c=colours, linewidths=0)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(False)
        _titles(ax, title, "", "")
    return figure


def lines_plot(
    panels: Mapping[str, Mapping[str, Sequence[tuple]]], *, x: str | Mapping[str, str], logarithmic: Sequence[str] = ()
) -> Figure:
    """Plot several lines in each of several panels, with bands for values that have a spread.

    Equal labels have equal colours in all panels.

    Args:
      panels: name of a panel's y axis -> label of a line -> (x, mean, spread or None) of its points.
      x: name of the x axis, or one for each panel.
      logarithmic: names of the panels whose x axis is logarithmic.
    """
    figure, axes = _figure(max(1, len(panels)))
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    handles = {}
    for ax, (name, lines) in zip(axes, panels.items()):
        for label, points in lines.items():
            at, mean, spread = (np.array(v, np.float64) for v in zip(*sorted(points, key=lambda p: p[0])))
            style = series_style(labels.index(label))
            handles[label] = ax.plot(at, mean, label=label, linewidth=2.0, marker="o", markersize=3.5, **style)[0]
            if np.isfinite(spread).any():
                spread = np.nan_to_num(spread)
                ax.fill_between(at, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0)
        if name in logarithmic:
            ax.set_xscale("log")
        _from_zero(ax)
        _titles(ax, None, x if isinstance(x, str) else x[name], name)
    if len(labels) > 1:  # some panels may lack some lines
        axes[0].legend(handles=[handles[label] for label in labels], frameon=False, fontsize=8)
    return figure


def bars_plot(panels: Mapping[str, Mapping[str, tuple]]) -> Figure:
    """Plot a bar for each of several runs in each of several panels.

    Args:
      panels: name of a panel's y axis -> label of a bar -> (mean, spread or None).
    """
    figure, axes = _figure(max(1, len(panels)), width=3.2)
    labels = list(dict.fromkeys(label for bars in panels.values() for label in bars))
    for ax, (name, bars) in zip(axes, panels.items()):
        for label, (mean, spread) in bars.items():
            at = labels.index(label)
            ax.bar(at, mean, 0.62, color=series_style(at)["color"], yerr=spread or None, ecolor=INK, capsize=3)
            place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            ax.annotate(f"{mean:.3g}", (at, mean + (spread or 0)), fontsize=8, color=INK, **place)
        ax.set_xticks(range(len(labels)), labels)
        ax.grid(False, axis="x")
        ax.set_ylim(0, 1.15 * max([mean + (spread or 0) for mean, spread in bars.values()] + [1e-9]))
        _titles(ax, None, "", name)
    return figure


def accuracy_plot(found: Any, *, title: str | None = None) -> Figure:
    """Plot the share of discovered landmarks near annotated ones, two bars an area: figure 4 of Tourani et al.

    Args:
      found: an `evaluation.landmark_accuracy.LandmarkAccuracy`.
      title: title above the plot.
    """
    areas, at = found.areas, np.arange(len(found.areas))
    lying = len(areas) > 8
    figure, (ax,) = _figure(width=5.2, height=1 + 0.3 * len(areas) if lying else 3.3)
    bar, colours = (ax.barh if lying else ax.bar), {"exclusive": BLUE, "best": ORANGE}
    for i, (name, colour) in enumerate(colours.items()):
        value = 100 * np.array([getattr(area, name) for area in areas.values()], np.float64)
        of = f"the {found.matched} matched" if name == "exclusive" else "all"
        overall = getattr(found, name)
        mean = "" if overall is None else f", mean of {of} {100 * overall:.0f} %"
        bar(at + 0.38 * i - 0.19, value, 0.36, color=colour, label=f"{name}{mean}")
        for x, y in zip(at + 0.38 * i - 0.19, value):
            if np.isfinite(y):
                place = {"xytext": (2, 0) if lying else (0, 2), "textcoords": "offset points", "fontsize": 7}
                place |= {"ha": "left", "va": "center"} if lying else {"ha": "center", "va": "bottom"}
                ax.annotate(f"{y:.0f}", (y, x) if lying else (x, y), color=INK, **place)
    one = all(area.points == 1 for area in areas.values())
    ticks = [name if one else f"{name}\n{area.matched} of {area.points}" for name, area in areas.items()]
    (ax.set_yticks if lying else ax.set_xticks)(at, ticks)
    ax.grid(False, axis="y" if lying else "x")
    words = f"images within {found.radius:g} of the normaliser, %"
    if lying:
        ax.set_xlim(0, 108)
        ax.set_ylim(len(areas) - 0.4, -1.8)
        _titles(ax, title, words, "")
    else:
        ax.set_ylim(0, 122)
        ax.set_yticks(range(0, 101, 20))
        _titles(ax, title, "", words)
    ax.legend(frameon=False, fontsize=8, loc="upper right" if lying else "upper left", ncols=2)
    return figure


def grid_plot(panels: Mapping[str, Any], *, x: str, y: str, at: tuple[Sequence, Sequence]) -> Figure:
    """Plot numbers over two grids as heat maps side by side, lower ones lighter: the Q x K figure of Tourani et al.

    Args:
      panels: title -> [rows,columns], NaN for a cell without a number, which stays blank.
      x, y: names of columns and rows.
      at: values of the columns and of the rows, in the form to be written.
    """
    figure, axes = _figure(max(1, len(panels)), width=max(3.4, 0.75 * len(at[0]) + 1.6), height=0.55 * len(at[1]) + 1.5)
    for ax, (title, values) in zip(axes, panels.items()):
        values = np.asarray(values, np.float64)
        known = values[np.isfinite(values)]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        light, dark = (np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for code in ("#eef3fa", BLUE))
        share = np.nan_to_num((values - low) / max(high - low, 1e-12))[..., None]
        colours = np.where(np.isfinite(values)[..., None], light + share * (dark - light), 1.0)
        ax.imshow(colours, aspect="auto", interpolation="nearest")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = PAPER if share[i, j, 0] > 0.6 else INK
                ax.text(
                    j,
                    i,
                    f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=ink,
                )
        ax.set_xticks(range(len(at[0])), [str(v) for v in at[0]])
        ax.set_yticks(range(len(at[1])), [str(v) for v in at[1]])
        ax.grid(False)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        _titles(ax, title, x, y)
    return figure

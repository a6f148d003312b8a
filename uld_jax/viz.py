"""Pictures: landmarks on images, contact sheets, heatmaps and plots.

One colour is one landmark everywhere: colour k of `palette` does not depend on how many there are. Pictures are Pillow
images, plots are matplotlib figures drawn without its global state; `save` writes either, to a local or gs:// path.
Missing landmarks (score 0, or NaN coordinates) are not drawn.
"""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from uld_jax import files
from uld_jax.ops.coordinates import frame_map

INK, SOFT, FAINT, PAPER = "#22262b", "#8a9099", "#e6e8eb", "#ffffff"
BLUE, ORANGE, GREY = "#2f6fbb", "#d9772b", "#a9afb8"
_SUPERSAMPLE = 4
# Chosen by hand, to have names: red, blue, yellow, green, magenta, cyan, orange, violet, lime, pink, teal, brown.
_FIRST = [
    "e41a1c",
    "2563eb",
    "ffd60a",
    "22a045",
    "e63cc8",
    "00cfe6",
    "ff7f0e",
    "7c3aed",
    "a6e22e",
    "ff9ab8",
    "0f8f8c",
    "96572a",
]


# Colours


def _oklab(rgb) -> np.ndarray:
    """sRGB in 0..1 [...,3] to Oklab, in which distances are close to what the eye sees."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


@lru_cache(maxsize=1)
def _colours(count: int) -> np.ndarray:
    """A dozen by hand, then vivid ones far from all before, from paper, ink and skin; [count,3] in 0..1."""
    levels = np.linspace(0, 1, 17)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    vivid = (lab[:, 0] > 0.45) & (lab[:, 0] < 0.9) & (chroma > 0.11)
    rgb, lab = rgb[vivid], lab[vivid]
    first = np.array([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in _FIRST])
    avoid = _oklab(np.concatenate([first, [[1, 1, 1], [0, 0, 0], [0.9, 0.72, 0.6], [0.55, 0.38, 0.28]]]))
    far = np.sqrt(((lab[:, None] - avoid) ** 2).sum(-1)).min(1)
    chosen = []
    for _ in range(count - len(first)):
        chosen.append(int(np.argmax(far)))
        far = np.minimum(far, np.sqrt(((lab - lab[chosen[-1]]) ** 2).sum(-1)))
    return np.concatenate([first, rgb[chosen]])


def palette(k: int) -> np.ndarray:
    """Colours of landmarks 0 to k - 1, [k,3] uint8. Colour i is the same for every k, up to 512 (then they repeat).

    >>> (palette(3) == palette(10)[:3]).all()
    np.True_
    """
    colours = _colours(512)
    return np.round(255 * colours[np.arange(k) % len(colours)]).astype(np.uint8)


# Landmarks on images


def _rgb(image) -> Image.Image:
    """uint8 [H,W,3] or [H,W] array, or a Pillow image, as an RGB Pillow image."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image, np.uint8))
    return image.convert("RGB")


def _font(size: float):
    return ImageFont.load_default(max(8.0, size))


def _present(xy, score) -> np.ndarray:
    xy = np.asarray(xy, np.float64)
    there = np.isfinite(xy).all(-1)
    return there if score is None else there & (np.asarray(score) > 0)


def _ranked(score, there) -> np.ndarray:
    """Sizes of dots: from 0.8 for the least sure landmark that is there to 1.2 for the surest; 1 if all are alike."""
    sizes = np.ones(len(there))
    if score is None or not there.any():
        return sizes
    known = np.asarray(score, np.float64)
    low, high = known[there].min(), known[there].max()
    return sizes if high - low < 1e-6 else np.where(there, 0.8 + 0.4 * (known - low) / (high - low), 1)


def draw_overlay(
    image, xy, score=None, *, radius: float | None = None, numbers: bool = False, colours=None
) -> Image.Image:
    """The image with its landmarks as coloured, rimmed dots; the surer a landmark, the larger and higher its dot.

    Args:
      image: uint8 [H,W,3] or a Pillow image; the result has its size.
      xy: [K,2] in pixels of the image.
      score: [K], 0 = missing; or None.
      radius: of a middling dot in pixels; None: 1.6 % of the image's mean side, less for more than 20 landmarks.
      numbers: whether the landmark's number stands beside its dot.
      colours: [K,3] uint8; None: `palette`.
    """
    image = _rgb(image)
    xy = np.asarray(xy, np.float64)
    side = float(np.sqrt(image.width * image.height))
    if radius is None:
        radius = max(1.4, 0.016 * side * (1.0 if len(xy) <= 20 else 0.75))
    colours = palette(len(xy)) if colours is None else colours
    s = _SUPERSAMPLE if side <= 1500 else 2  # large photos have pixels enough
    rim = max(0.6, 0.35 * radius)
    there = _present(xy, score)
    middle, sizes = radius, _ranked(score, there)
    for k in sorted(np.flatnonzero(there), key=lambda k: sizes[k]):
        radius = middle * sizes[k]
        # Each dot is drawn large on a patch of its own and scaled down: smooth edges without a second large image.
        low = np.floor(xy[k] - radius - rim - 1).astype(int)
        patch = int(np.ceil(2 * (radius + rim) + 4))
        if (low + patch < 0).any() or (low > (image.width, image.height)).any():
            continue
        big = Image.new("RGBA", (patch * s, patch * s), (255, 255, 255, 0))
        pen = ImageDraw.Draw(big)
        centre = (xy[k] - low + 0.5) * s - 0.5
        for r, colour in ((radius + rim, (255, 255, 255, 235)), (radius, (*map(int, colours[k]), 255))):
            pen.ellipse([*(centre - r * s), *(centre + r * s)], fill=colour)
        dot = big.resize((patch, patch), Image.Resampling.BOX)
        image.paste(dot.convert("RGB"), tuple(low.tolist()), dot.getchannel("A"))
    radius = middle
    if numbers:
        pen, font = ImageDraw.Draw(image), _font(max(2.6 * radius, 0.035 * side))
        for k in np.flatnonzero(there):
            place = xy[k] + (radius + rim + 1, -0.06 * font.size)
            pen.text(
                tuple(place),
                str(k),
                fill=PAPER,
                font=font,
                anchor="lm",
                stroke_width=max(1, round(radius / 3)),
                stroke_fill=INK,
            )
    return image


def _fit(image: Image.Image, cell: int) -> tuple[Image.Image, np.ndarray]:
    """The whole image centred in a square cell on faint ground, and the map of its points (see `coordinates`)."""
    scale = cell / max(image.size)
    small = image.resize(tuple(max(1, round(scale * v)) for v in image.size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (cell, cell), FAINT)
    square.paste(small, ((cell - small.width) // 2, (cell - small.height) // 2))
    return square, frame_map((image.height, image.width), (cell, cell), "pad")


def contact_sheet(
    images: Sequence,
    xys: Sequence,
    scores: Sequence | None = None,
    *,
    columns: int = 8,
    cell: int = 128,
    title: str | None = None,
    legend: bool = True,
) -> Image.Image:
    """Many images with their landmarks, and a legend: the same colour is the same landmark on every image.

    Args:
      images: N uint8 arrays [H,W,3] or Pillow images, of any sizes.
      xys: N arrays [K,2] in pixels of the respective image.
      scores: N arrays [K], 0 = missing; or None.
      columns: images a row.
      cell: side of an image on the sheet in pixels.
      title: a line above.
      legend: whether it tells which colour is which landmark; beyond 100 landmarks it does not.

    Raises:
      ValueError: no images.
    """
    if not len(images):
        raise ValueError("a contact sheet needs at least one image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap, margin = max(3, cell // 32), max(8, cell // 8)
    width = 2 * margin + columns * (cell + gap) - gap
    count = len(xys[0])
    text = _font(max(11, cell * 0.1))
    entry = int(cell * 0.28)
    per_line = max(1, (width - 2 * margin) // entry)
    legend_lines = -(-count // per_line) if legend and count <= 100 else 0
    line = int(1.7 * text.size)
    top = margin + (int(2.2 * text.size) if title else 0)
    height = top + rows * (cell + gap) - gap + (gap + legend_lines * line if legend_lines else 0) + margin
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((margin, margin), title, fill=INK, font=_font(1.25 * text.size))
    for i, image in enumerate(images):
        square, fmap = _fit(_rgb(image), cell)
        placed = np.asarray(xys[i], np.float64) * fmap[:2] + fmap[2:]
        radius = max(1.8, cell * (0.024 if count <= 20 else 0.015))
        square = draw_overlay(square, placed, None if scores is None else scores[i], radius=radius)
        sheet.paste(square, (margin + (i % columns) * (cell + gap), top + (i // columns) * (cell + gap)))
    if legend_lines:
        start, colours = top + rows * (cell + gap) + line // 2, palette(count)
        places = np.array(
            [[margin + (k % per_line) * entry + text.size / 2, start + (k // per_line) * line] for k in range(count)]
        )
        sheet = draw_overlay(sheet, places, radius=0.36 * text.size, colours=colours)
        pen = ImageDraw.Draw(sheet)
        for k, (x, y) in enumerate(places):
            pen.text((x + 0.8 * text.size, y), str(k), fill=INK, font=text, anchor="lm")
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures under one another on paper.

    Raises ValueError for no pictures.
    """
    if not pictures:
        raise ValueError("there is no picture to stack")
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def picture_grid(pictures, *, cell: int = 128, gap: int = 4) -> Image.Image:
    """Pictures [rows,columns,h,w,3] uint8 side by side, each scaled to `cell` pixels."""
    pictures = np.asarray(pictures)
    rows, columns = pictures.shape[:2]
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), PAPER)
    for i in range(rows):
        for j in range(columns):
            shown = _rgb(pictures[i, j]).resize((cell, cell), Image.Resampling.BICUBIC)
            sheet.paste(shown, (gap + j * (cell + gap), gap + i * (cell + gap)))
    return sheet


def film(shots: Mapping[str, Image.Image], *, cell: int = 128, gap: int = 4) -> Image.Image:
    """The first row of each of several `picture_grid`s of one width, by label, under one another."""
    row, margin = cell + gap, 7 * gap + cell // 4
    sheet = Image.new("RGB", (next(iter(shots.values())).width + margin, len(shots) * row + gap), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (label, picture) in enumerate(shots.items()):
        sheet.paste(picture.crop((0, gap, picture.width, gap + cell)), (margin, gap + i * row))
        pen.text((margin - gap, gap + i * row + cell / 2), label, fill=INK, font=_font(cell / 9), anchor="rm")
    return sheet


def heatmap_panel(image, heatmaps, *, columns: int = 8, cell: int = 128) -> Image.Image:
    """All heatmaps in their colours on one image, then each alone on the greyed image with its number and its peak.

    Args:
      image: uint8 [H,W,3] or a Pillow image.
      heatmaps: [h,w,K], not negative; each is scaled by its own largest value, which is written into its cell.
      columns: cells a row.
      cell: side of a cell in pixels.
    """
    heatmaps = np.asarray(heatmaps, np.float64)
    count = heatmaps.shape[-1]
    peaks = heatmaps.max((0, 1))
    square = _rgb(image).resize((cell, cell), Image.Resampling.LANCZOS)
    maps = [
        np.asarray(
            Image.fromarray(np.float32(heatmaps[..., k] / max(peaks[k], 1e-12))).resize(
                (cell, cell), Image.Resampling.BILINEAR
            )
        )
        for k in range(count)
    ]
    maps = np.clip(np.stack(maps), 0, 1)[..., None]
    colours = palette(count).astype(np.float64)
    grey = np.repeat(np.asarray(square.convert("L"), np.float64)[..., None], 3, -1) * 0.45

    def glow(ground, m, colour):
        light = colour + (255 - colour) * 0.55 * m**6  # a bright core, so that dark colours shine on a dark ground too
        return ground * (1 - 0.9 * m) + 0.9 * m * light

    together = np.asarray(square, np.float64) * 0.6
    strongest = maps.argmax(0)[..., 0]
    together = glow(together, maps.max(0), colours[strongest])
    cells = [together, *(glow(grey, maps[k], colours[k]) for k in range(count))]
    columns = min(columns, len(cells))
    rows, gap = -(-len(cells) // columns), max(2, cell // 48)
    panel = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), PAPER)
    font = _font(0.11 * cell)
    for i, values in enumerate(cells):
        picture = Image.fromarray(np.uint8(np.clip(np.round(values), 0, 255)))
        label = "all" if i == 0 else f"{i - 1}   {peaks[i - 1]:.2g}"
        ImageDraw.Draw(picture).text(
            (0.05 * cell, 0.04 * cell), label, fill=PAPER, font=font, stroke_width=1, stroke_fill=INK
        )
        panel.paste(picture, (gap + (i % columns) * (cell + gap), gap + (i // columns) * (cell + gap)))
    return panel


# Plots


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


def _style(name: str) -> dict[str, Any]:
    return {
        "forward": {"color": BLUE, "linewidth": 2.0},
        "backward": {"color": ORANGE, "linewidth": 2.0},
        "mean shape": {"color": GREY, "linewidth": 1.6, "linestyle": (0, (4, 2))},
    }.get(name, {"linewidth": 1.8})


def ced_plot(
    images: Mapping[str, tuple], landmarks: Mapping[str, tuple] | None = None, *, title: str | None = None
) -> Figure:
    """Cumulative error over images, and beside it the mean error of the best 1, 2, ... landmarks.

    Args:
      images: name -> (thresholds in percent, share of images), as `curves.ced` gives them.
      landmarks: name -> (count, mean error in percent), as `ced_over_landmarks` gives them; or None.
      title: above the first panel.
    """
    figure, axes = _figure(2 if landmarks else 1)
    for name, (thresholds, share) in images.items():
        axes[0].plot(thresholds, 100 * np.asarray(share), label=name, **_style(name))
        axes[0].set_xlim(0, max(thresholds))
    axes[0].set_ylim(0, 101)
    _titles(axes[0], title, "NME, % of the normaliser", "images at or below, %")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    for name, (count, error) in (landmarks or {}).items():
        marker = "o" if len(count) <= 30 else None
        axes[1].plot(count, error, label=name, marker=marker, markersize=3.5, **_style(name))
    if landmarks:
        _from_zero(axes[1])
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        _titles(axes[1], None, "landmarks, best first", "mean NME of these, %")
        axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def bar_plot(groups: Sequence[Mapping[str, Any]], *, title: str | None = None, most: int = 40) -> Figure:
    """Forward error a group as bars, with the mean shape as a line across and the number of images in the label.

    Args:
      groups: what `curves.group_by` returns.
      title: above the plot.
      most: with more groups than this only the worst are drawn, and the title says so.
    """
    shown = list(groups)
    if len(shown) > most:
        shown = sorted(shown, key=lambda g: -(g.get("forward_nme") or 0.0))[:most]
        title = f"{title or 'error'}: the {most} worst of {len(groups)}"
    many = len(shown) * max((len(str(g["group"])) for g in shown), default=0) > 72  # more does not fit side by side

    def values(key):
        return np.array([np.nan if g.get(key) is None else g[key] for g in shown], np.float64)

    forward, baseline, at = values("forward_nme"), values("mean_shape_nme"), np.arange(len(shown))
    figure, (ax,) = _figure(
        width=max(4.6, 0.62 * len(shown) if not many else 5.2), height=3.3 if not many else 1 + 0.22 * len(shown)
    )
    place, span, label = (ax.barh, ax.vlines, "y") if many else (ax.bar, ax.hlines, "x")
    place(at, forward, 0.62, color=BLUE, label="forward")
    if np.isfinite(baseline).any():
        span(baseline, at - 0.36, at + 0.36, color=SOFT, linewidth=2.0, label="mean shape")
    top = np.nanmax(np.concatenate([forward, baseline, [1e-9]]))
    ticks = [f"{g['group']} ({g['n']})" if many else f"{g['group']}\n{g['n']} images" for g in shown]
    (ax.set_yticks if many else ax.set_xticks)(at, ticks)
    for i, value in enumerate(forward):
        if np.isfinite(value):
            inside = value > 0.12 * top  # at the bar's foot where there is room: away from the tick of the mean shape
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


def label_count_plot(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure:
    """Forward error against the number of labelled images (logarithmic), with the spread over draws.

    Args:
      rows: what `landmark_regression.label_counts` returns.
      title: above the plot.
    """
    figure, (ax,) = _figure()
    n = np.array([r["n"] for r in rows])
    forward = np.array([r["forward_nme"] for r in rows], np.float64)
    spread = np.array([r["forward_nme_std"] for r in rows], np.float64)
    ax.plot(n, [r["mean_shape_nme"] for r in rows], label="mean shape", **_style("mean shape"))
    ax.fill_between(n, forward - spread, forward + spread, color=BLUE, alpha=0.18, linewidth=0)
    ax.plot(n, forward, label="forward", marker="o", markersize=4, **_style("forward"))
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
    """Metrics over steps, a panel for each list of names; stage borders are marked.

    Args:
      lines: the objects of `metrics.jsonl`: `step`, `stage` and numbers.
      panels: names of metrics a panel; None: the loss, and the errors that an evaluation wrote, where there are any.
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
            style = {"color": BLUE, "linewidth": 1.5} if name == "loss" else _style(short.get(name, name))
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


def _series(i: int) -> dict[str, Any]:
    """Colour and dashes of line i among several."""
    inks = [BLUE, ORANGE, "#3a9a6a", "#8a5ab5", "#b8434f", INK]
    return dict(color=inks[i % 6], linestyle=["-", (0, (4, 2)), (0, (1, 1))][i // 6 % 3])


def _steps(lines: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """step -> value of a metric."""
    values = {line["step"]: line[name] for line in lines if isinstance(line.get(name), int | float)}
    return {step: value for step, value in values.items() if np.isfinite(value)}


def _against(lines: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[int, tuple[float, float]]:
    """step -> (the last x up to then in the same stage, y) of the lines that have y."""
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
    """Metrics of many runs over steps: a line for each row's mean over its runs, and a thin one for every run.

    Args:
      rows: label -> runs, each the objects of its `metrics.jsonl`.
      names: metrics, a panel each if some run has them.
      against: two metrics of one more panel, the second over the first, a dot for each evaluation: CGB's figure 5, how
        the landmarks' consistency goes together with the error of the test images.
    """
    titles = {"forward_nme": "forward NME, % of the normaliser"}
    series = {n: {label: [_steps(run, n) for run in runs] for label, runs in rows.items()} for n in names}
    series = {n: found for n, found in series.items() if any(any(runs) for runs in found.values())}
    pairs = {label: [_against(run, *against) for run in runs] for label, runs in rows.items()}
    has_pairs = any(any(runs) for runs in pairs.values())
    figure, axes = _figure(max(1, len(series) + has_pairs))
    styles = [_series(i) for i in range(len(rows))]

    def draw(ax, runs, style, label, points, **marks):
        """`points`: (steps, values) -> x, y."""
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
    """Points in several panels, each coloured by a grouping: CGB's figure 6 (left), Mallis et al.'s figure 2a.

    Args:
      places: [R,2], such as t-SNE gives; or title of a panel -> [R,2], where panels show different points.
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


def _from_zero(ax):
    """Lets the y axis begin at 0 and end a little above what is drawn."""
    ax.set_ylim(0, 1.06 * max(ax.get_ylim()[1], 1e-9))


def lines_plot(panels: Mapping[str, Mapping[str, Sequence[tuple]]], *, x: str) -> Figure:
    """Several lines in each of several panels, with bands where a value has a spread.

    Args:
      panels: what a panel's y axis shows -> label of a line -> (x, mean, spread or None) of its points.
      x: what the x axis shows. Equal labels have equal colours in all panels.
    """
    figure, axes = _figure(max(1, len(panels)))
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    for ax, (name, lines) in zip(axes, panels.items()):
        for label, points in lines.items():
            at, mean, spread = (np.array(v, np.float64) for v in zip(*sorted(points, key=lambda p: p[0])))
            style = _series(labels.index(label))
            ax.plot(at, mean, label=label, linewidth=2.0, marker="o", markersize=3.5, **style)
            if np.isfinite(spread).any():
                spread = np.nan_to_num(spread)
                ax.fill_between(at, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0)
        _from_zero(ax)
        _titles(ax, None, x, name)
    if len(labels) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    return figure


def bars_plot(panels: Mapping[str, Mapping[str, tuple]]) -> Figure:
    """A bar for each of several runs in each of several panels.

    Args:
      panels: what a panel's y axis shows -> label of a bar -> (mean, spread or None).
    """
    figure, axes = _figure(max(1, len(panels)), width=3.2)
    labels = list(dict.fromkeys(label for bars in panels.values() for label in bars))
    for ax, (name, bars) in zip(axes, panels.items()):
        for label, (mean, spread) in bars.items():
            at = labels.index(label)
            ax.bar(at, mean, 0.62, color=_series(at)["color"], yerr=spread or None, ecolor=INK, capsize=3)
            place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            ax.annotate(f"{mean:.3g}", (at, mean + (spread or 0)), fontsize=8, color=INK, **place)
        ax.set_xticks(range(len(labels)), labels)
        ax.grid(False, axis="x")
        ax.set_ylim(0, 1.15 * max([mean + (spread or 0) for mean, spread in bars.values()] + [1e-9]))
        _titles(ax, None, "", name)
    return figure


def accuracy_plot(found: Mapping[str, Any], *, title: str | None = None) -> Figure:
    """How often discovered landmarks are where annotated ones are, two bars an area: figure 4 of Tourani et al.

    Args:
      found: what `landmark_accuracy` returned.
      title: above the plot.
    """
    areas, at = found["areas"], np.arange(len(found["areas"]))
    lying = len(areas) > 8
    figure, (ax,) = _figure(width=5.2, height=1 + 0.3 * len(areas) if lying else 3.3)
    bar, colours = (ax.barh if lying else ax.bar), {"exclusive": BLUE, "best": ORANGE}
    for i, (name, colour) in enumerate(colours.items()):
        value = np.array([np.nan if area[name] is None else 100 * area[name] for area in areas.values()], np.float64)
        of = f"the {found['matched']} matched" if name == "exclusive" else "all"
        mean = "" if found[name] is None else f", mean of {of} {100 * found[name]:.0f} %"
        bar(at + 0.38 * i - 0.19, value, 0.36, color=colour, label=f"{name}{mean}")
        for x, y in zip(at + 0.38 * i - 0.19, value):
            if np.isfinite(y):
                place = {"xytext": (2, 0) if lying else (0, 2), "textcoords": "offset points", "fontsize": 7}
                place |= {"ha": "left", "va": "center"} if lying else {"ha": "center", "va": "bottom"}
                ax.annotate(f"{y:.0f}", (y, x) if lying else (x, y), color=INK, **place)
    one = all(area["points"] == 1 for area in areas.values())
    ticks = [name if one else f"{name}\n{area['matched']} of {area['points']}" for name, area in areas.items()]
    (ax.set_yticks if lying else ax.set_xticks)(at, ticks)
    ax.grid(False, axis="y" if lying else "x")
    words = f"images within {found['radius']:g} of the normaliser, %"
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
    """Numbers over two grids as heat maps side by side, lower ones lighter: the Q x K figure of Tourani et al.

    Args:
      panels: title -> [rows,columns], NaN for a cell without a number, which stays blank.
      x, y: what columns and rows are.
      at: values of the columns and of the rows, as they are to be written.
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


def png(picture: Image.Image | Figure) -> bytes:
    """A picture or a plot as the bytes of a PNG file."""
    data = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(data, format="png")
    else:
        picture.save(data, format="PNG")
    return data.getvalue()


def save(picture: Image.Image | Figure, path) -> None:
    """Writes a picture or a plot as PNG, whole or not at all; folders on the way are made."""
    files.write(path, png(picture))


def load(path) -> Image.Image:
    """A picture that `save` wrote, to a local or gs:// path."""
    with epath.Path(path).open("rb") as file:
        return Image.open(file).convert("RGB")

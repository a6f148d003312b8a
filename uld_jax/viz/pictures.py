"""Landmarks on images, contact sheets, grids, films and heatmaps, as Pillow images; and files of them.

Missing landmarks (score 0, or NaN coordinates) are not drawn.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from matplotlib import colormaps
from PIL import Image, ImageDraw

from uld_jax import files
from uld_jax.ops.coordinates import frame_map
from uld_jax.viz.style import FAINT, INK, PAPER, font, palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUPERSAMPLE = 4
_NAME = 24  # most letters of a landmark's name in a legend


def _rgb(image) -> Image.Image:
    """Convert a uint8 [H,W,3] or [H,W] array, or a Pillow image, to an RGB Pillow image."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image, np.uint8))
    return image.convert("RGB")


def _present(xy, score) -> np.ndarray:
    xy = np.asarray(xy, np.float64)
    there = np.isfinite(xy).all(-1)
    return there if score is None else there & (np.asarray(score) > 0)


def _ranked(score, there) -> np.ndarray:
    """Sizes of dots: from 0.8 for the least sure landmark present to 1.2 for the surest; 1 if all are alike."""
    sizes = np.ones(len(there))
    if score is None or not there.any():
        return sizes
    known = np.asarray(score, np.float64)
    low, high = known[there].min(), known[there].max()
    return sizes if high - low < 1e-6 else np.where(there, 0.8 + 0.4 * (known - low) / (high - low), 1)


def draw_overlay(
    image, xy, score=None, *, radius: float | None = None, numbers: bool = False, colours=None
) -> Image.Image:
    """Draw landmarks on an image as coloured, rimmed dots; a surer landmark has a larger dot above the others.

    Args:
      image: uint8 [H,W,3] or a Pillow image; the result has its size.
      xy: [K,2] landmarks in pixels of the image.
      score: [K] confidences, 0 = missing; or None.
      radius: radius of a middling dot in pixels; None: 1.6 % of the image's mean side, less for more than 20 landmarks.
      numbers: True to write each landmark's number beside its dot.
      colours: [K,3] uint8; None for `palette`.
    """
    image = _rgb(image)
    xy = np.asarray(xy, np.float64)
    side = float(np.sqrt(image.width * image.height))
    if radius is None:
        radius = max(1.4, 0.016 * side * (1.0 if len(xy) <= 20 else 0.75))
    colours = palette(len(xy)) if colours is None else colours
    s = _SUPERSAMPLE if side <= 1500 else 2  # large photos have enough pixels
    rim = max(0.6, 0.35 * radius)
    there = _present(xy, score)
    middle, sizes = radius, _ranked(score, there)
    for k in sorted(np.flatnonzero(there), key=lambda k: sizes[k]):
        radius = middle * sizes[k]
        # Each dot is drawn large on its own patch and scaled down, for smooth edges without a second large image.
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
        pen, text = ImageDraw.Draw(image), font(max(2.6 * radius, 0.035 * side))
        for k in np.flatnonzero(there):
            place = xy[k] + (radius + rim + 1, -0.06 * text.size)
            pen.text(
                tuple(place),
                str(k),
                fill=PAPER,
                font=text,
                anchor="lm",
                stroke_width=max(1, round(radius / 3)),
                stroke_fill=INK,
            )
    return image


def _fit(image: Image.Image, cell: int) -> tuple[Image.Image, np.ndarray]:
    """Centre the whole image in a square cell on faint ground; return it with the map of its points (`coordinates`)."""
    scale = cell / max(image.size)
    small = image.resize(tuple(max(1, round(scale * v)) for v in image.size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (cell, cell), FAINT)
    square.paste(small, ((cell - small.width) // 2, (cell - small.height) // 2))
    return square, frame_map((image.height, image.width), (cell, cell), "pad")


def _landmarks_in_cell(image, xy, score, cell: int) -> Image.Image:
    """Draw landmarks [K,2] in pixels of an image on the image in a square cell."""
    square, fmap = _fit(_rgb(image), cell)
    radius = max(1.8, cell * (0.024 if len(xy) <= 20 else 0.015))
    return draw_overlay(square, np.asarray(xy, np.float64) * fmap[:2] + fmap[2:], score, radius=radius)


def contact_sheet(
    images: Sequence,
    xys: Sequence,
    scores: Sequence | None = None,
    *,
    columns: int = 8,
    cell: int = 128,
    title: str | None = None,
    legend: bool = True,
    names: Sequence[str] = (),
) -> Image.Image:
    """Draw many images with their landmarks and a legend; a colour is the same landmark on every image.

    Args:
      images: N uint8 arrays [H,W,3] or Pillow images, of any sizes.
      xys: N arrays [K,2] in pixels of the respective image.
      scores: N arrays [K], 0 = missing; or None.
      columns: images a row.
      cell: side of an image on the sheet in pixels.
      title: a line above the images.
      legend: True for a legend of the landmarks' colours; with more than 100 landmarks there is none.
      names: names of the K landmarks in the legend, shortened if they are long; () for numbers.

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
    text = font(max(11, cell * 0.1))
    entry, entries = int(cell * 0.28), [str(k) for k in range(count)]
    if names and legend and count <= 100:
        entries = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in names]
        entry = int(max(text.getlength(one) for one in entries) + 2.2 * text.size)
        width = max(width, 2 * margin + entry)
    per_line = max(1, (width - 2 * margin) // entry)
    legend_lines = -(-count // per_line) if legend and count <= 100 else 0
    line = int(1.7 * text.size)
    top = margin + (int(2.2 * text.size) if title else 0)
    height = top + rows * (cell + gap) - gap + (gap + legend_lines * line if legend_lines else 0) + margin
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((margin, margin), title, fill=INK, font=font(1.25 * text.size))
    for i, image in enumerate(images):
        square = _landmarks_in_cell(image, xys[i], None if scores is None else scores[i], cell)
        sheet.paste(square, (margin + (i % columns) * (cell + gap), top + (i // columns) * (cell + gap)))
    if legend_lines:
        start, colours = top + rows * (cell + gap) + line // 2, palette(count)
        places = np.array(
            [[margin + (k % per_line) * entry + text.size / 2, start + (k // per_line) * line] for k in range(count)]
        )
        sheet = draw_overlay(sheet, places, radius=0.36 * text.size, colours=colours)
        pen = ImageDraw.Draw(sheet)
        for k, (x, y) in enumerate(places):
            pen.text((x + 0.8 * text.size, y), entries[k], fill=INK, font=text, anchor="lm")
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Stack pictures under one another on paper.

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
    """Arrange pictures [rows,columns,h,w,3] uint8 in a grid, each scaled to `cell` pixels."""
    pictures = np.asarray(pictures)
    rows, columns = pictures.shape[:2]
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), PAPER)
    for i in range(rows):
        for j in range(columns):
            shown = _rgb(pictures[i, j]).resize((cell, cell), Image.Resampling.BICUBIC)
            sheet.paste(shown, (gap + j * (cell + gap), gap + i * (cell + gap)))
    return sheet


def labelled_grid(
    pictures: Sequence[Sequence],
    *,
    columns: Sequence[str],
    rows: Sequence[str] = (),
    corner: str = "",
    cell: int = 128,
    gap: int = 4,
) -> Image.Image:
    """Arrange rows of pictures in a grid with a name above each column and, if given, before each row.

    Args:
      pictures: rows of uint8 arrays [h,w,3] or Pillow images, each scaled to `cell` pixels.
      columns: names of the columns.
      rows: names of the rows, of one or several lines; none by default.
      corner: text before the names of the columns, for names of rows.
      cell: side of a picture in pixels.
      gap: pixels between pictures.
    """
    text = font(cell / 9)
    lines = [line for name in (*rows, corner) for line in name.split("\n")] if rows else []
    left = gap + max((round(text.getlength(line)) + 2 * gap for line in lines), default=0)
    top = gap + round(1.6 * text.size)
    width, height = left + len(columns) * (cell + gap), top + len(pictures) * (cell + gap)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    if rows:
        pen.text((left - 2 * gap, top / 2), corner, fill=INK, font=text, anchor="rm")
    for j, name in enumerate(columns):
        pen.text((left + j * (cell + gap) + cell / 2, top / 2), name, fill=INK, font=text, anchor="mm")
    for i, row in enumerate(pictures):
        if rows:
            place = (left - 2 * gap, top + i * (cell + gap) + cell / 2)
            pen.text(place, rows[i], fill=INK, font=text, anchor="rm", align="right")
        for j, picture in enumerate(row):
            shown = _rgb(picture).resize((cell, cell), Image.Resampling.BICUBIC)
            sheet.paste(shown, (left + j * (cell + gap), top + i * (cell + gap)))
    return sheet


def compared_landmarks(
    images: Sequence, rows: Mapping[str, tuple], *, columns: Sequence[str], corner: str = "", cell: int = 128
) -> Image.Image:
    """Draw the landmarks of several models on the same images: a row a model, a column an image.

    Args:
      images: N uint8 arrays [H,W,3] or Pillow images.
      rows: name of a row -> (xy [N,K,2] in pixels of the images, score [N,K] or None); K may differ.
      columns: N names of the columns.
      corner: name of these names.
      cell: side of an image on the sheet in pixels.
    """
    cells = [
        [_landmarks_in_cell(image, xy[i], None if score is None else score[i], cell) for i, image in enumerate(images)]
        for xy, score in rows.values()
    ]
    return labelled_grid(cells, columns=columns, rows=list(rows), corner=corner, cell=cell)


def compared_pictures(sheets: Mapping[str, Sequence], names: Sequence[str], *, cell: int = 128) -> Image.Image:
    """Put the pictures that several models make of an image under one another, for one image after the other.

    Args:
      sheets: name of a model -> [N,columns,h,w,3] uint8; columns, h and w may differ.
      names: N names of the images.
      cell: side of a picture in pixels.
    """
    shared = {"columns": [""] * max(len(sheet[0]) for sheet in sheets.values()), "rows": list(sheets), "cell": cell}
    of_image = lambda i: [sheet[i] for sheet in sheets.values()]
    return stacked([labelled_grid(of_image(i), corner=name, **shared) for i, name in enumerate(names)])


def heat_overlay(image, values, *, low: float, high: float, cell: int = 128) -> Image.Image:
    """Lay the colours of numbers over a grey image, from dark for `low` to bright for `high`.

    Args:
      image: uint8 [H,W,3] or a Pillow image, scaled to `cell` pixels.
      values: [h,w] numbers.
      low, high: the ends of the colours.
      cell: side of the result in pixels.
    """
    share = (np.asarray(values, np.float32) - low) / max(high - low, 1e-12)
    share = Image.fromarray(np.float32(share)).resize((cell, cell), Image.Resampling.BILINEAR)
    colours = 255 * colormaps["inferno"](np.clip(np.asarray(share), 0, 1))[..., :3]
    grey = np.asarray(_rgb(image).resize((cell, cell), Image.Resampling.BICUBIC).convert("L"), np.float64)[..., None]
    return Image.fromarray(np.uint8(np.round(0.4 * grey + 0.6 * colours)))


def label_overlay(image, labels, *, cell: int = 128, strength: float = 0.6) -> Image.Image:
    """Lay the colours of `palette` over an image: colour k where a map of labels is k; none where it is negative.

    Args:
      image: uint8 [H,W,3] or a Pillow image, scaled to `cell` pixels.
      labels: [h,w] int.
      cell: side of the result in pixels.
      strength: share of the colour in the mixture.
    """
    labels = np.asarray(Image.fromarray(np.int32(labels)).resize((cell, cell), Image.Resampling.NEAREST))
    pixels = np.asarray(_rgb(image).resize((cell, cell), Image.Resampling.BICUBIC), np.float64)
    mixed = (1 - strength) * pixels + strength * palette(512)[np.maximum(labels, 0) % 512]
    return Image.fromarray(np.uint8(np.round(np.where((labels >= 0)[..., None], mixed, pixels))))


def film(shots: Mapping[str, Image.Image], *, cell: int = 128, gap: int = 4) -> Image.Image:
    """Stack the first rows of several `picture_grid`s of one width, by label, under one another."""
    row, margin = cell + gap, 7 * gap + cell // 4
    sheet = Image.new("RGB", (next(iter(shots.values())).width + margin, len(shots) * row + gap), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (label, picture) in enumerate(shots.items()):
        sheet.paste(picture.crop((0, gap, picture.width, gap + cell)), (margin, gap + i * row))
        pen.text((margin - gap, gap + i * row + cell / 2), label, fill=INK, font=font(cell / 9), anchor="rm")
    return sheet


def heatmap_panel(image, heatmaps, *, columns: int = 8, cell: int = 128) -> Image.Image:
    """Draw all heatmaps in their colours on one image, then each alone on the grey image with its number and peak.

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
        light = colour + (255 - colour) * 0.55 * m**6  # a bright core keeps dark colours visible on a dark ground
        return ground * (1 - 0.9 * m) + 0.9 * m * light

    together = np.asarray(square, np.float64) * 0.6
    strongest = maps.argmax(0)[..., 0]
    together = glow(together, maps.max(0), colours[strongest])
    cells = [together, *(glow(grey, maps[k], colours[k]) for k in range(count))]
    columns = min(columns, len(cells))
    rows, gap = -(-len(cells) // columns), max(2, cell // 48)
    panel = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), PAPER)
    text = font(0.11 * cell)
    for i, values in enumerate(cells):
        picture = Image.fromarray(np.uint8(np.clip(np.round(values), 0, 255)))
        label = "all" if i == 0 else f"{i - 1}   {peaks[i - 1]:.2g}"
        ImageDraw.Draw(picture).text(
            (0.05 * cell, 0.04 * cell), label, fill=PAPER, font=text, stroke_width=1, stroke_fill=INK
        )
        panel.paste(picture, (gap + (i % columns) * (cell + gap), gap + (i // columns) * (cell + gap)))
    return panel


def png(picture: "Image.Image | Figure") -> bytes:
    """Encode a picture or a plot as the bytes of a PNG file."""
    data = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(data, format="PNG")
    else:
        picture.savefig(data, format="png")
    return data.getvalue()


def save(picture: "Image.Image | Figure", path) -> None:
    """Write a picture or a plot as PNG, whole or not at all; missing folders are made."""
    files.write(path, png(picture))


def load(path) -> Image.Image:
    """Load a picture that `save` wrote to a local or gs:// path."""
    with epath.Path(path).open("rb") as file:
        return Image.open(file).convert("RGB")

"""Colours, fonts and line styles that all pictures and plots share.

One colour is one landmark everywhere: colour k of `palette` does not depend on how many there are.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import ImageFont

INK, SOFT, FAINT, PAPER = "#22262b", "#8a9099", "#e6e8eb", "#ffffff"
BLUE, ORANGE, GREY = "#2f6fbb", "#d9772b", "#a9afb8"
# Chosen by hand because they have names: red, blue, yellow, green, magenta, cyan, orange, violet, lime, pink, teal,
# brown.
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


def _oklab(rgb) -> np.ndarray:
    """Convert sRGB in 0..1 [...,3] to Oklab, in which distances are close to those perceived by the eye."""
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
    """A dozen colours by hand, then vivid ones far from all others, from paper, ink and skin; [count,3] in 0..1."""
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


def font(size: float):
    """Pillow's own font at a size in pixels, at least 8."""
    return ImageFont.load_default(max(8.0, size))


def line_style(name: str) -> dict[str, Any]:
    """Matplotlib's options for the line of an error: `forward`, `backward`, `mean shape`, or another name."""
    return {
        "forward": {"color": BLUE, "linewidth": 2.0},
        "backward": {"color": ORANGE, "linewidth": 2.0},
        "mean shape": {"color": GREY, "linewidth": 1.6, "linestyle": (0, (4, 2))},
    }.get(name, {"linewidth": 1.8})


def series_style(i: int) -> dict[str, Any]:
    """Colour and dashes of line i among several."""
    inks = [BLUE, ORANGE, "#3a9a6a", "#8a5ab5", "#b8434f", INK]
    return dict(color=inks[i % 6], linestyle=["-", (0, (4, 2)), (0, (1, 1))][i // 6 % 3])

"""Small copies of official data sets: pictures whose colours tell where a pixel came from, and their preparation."""

import numpy as np
from PIL import Image

from uld_jax import data
from uld_jax.data import builders
from uld_jax.data.builders import official, prepared


def picture(path, size, *, grey=False, **options):
    """Write a smooth picture of a size (height, width), red by x and green by y, and return its pixels."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, np.full(size, 90)], -1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path, **({"quality": 95} | options))
    return pixels


def place_of(pixels, size):
    """Find the points `(x, y)` of a picture of a size (height, width) that colours [...,3] show."""
    return pixels[..., :2].astype(float) / 255 * (size[1], size[0])


def opened(name, src, *, partial=True, **more):
    """Open all splits of a miniature, and the notes about it."""
    return official.open_all(builders.find_dataset(name), src, partial=partial, **more)


def prepare(name, src, out, *, frame_size=64, fit="pad"):
    """Prepare a miniature and read it back, {split: source}."""
    sources, _ = opened(name, src)
    prepared.prepare(name, sources, out)
    return {s: data.open_source(name, s, data_dir=out, frame_size=frame_size, fit=fit) for s in sources}


def points(source):
    """The points of a source in pixels of its files, {name: [L,2]}."""
    scale, shift = source.frame_maps[:, None, :2], source.frame_maps[:, None, 2:]
    return dict(zip(source.names, (source.landmarks - shift) / scale, strict=True))

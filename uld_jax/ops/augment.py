"""Random crops and colours of self-supervised learning, as BYOL (Grill et al. 2020) and ContrastLandmarks draw them.

Each function changes ONE image [H,W,3] by one key; `jax.vmap` over the keys of a batch's rows makes a batch, whose
draws then depend on neither devices nor the batch's order. Images are float in 0..1. `ops/color.py` has the changes of
other methods, which are drawn by other laws.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from uld_jax.ops import color

# Probabilities in which the two views of BYOL differ (its published code); the first view is the default of `recolor`.
BYOL_VIEWS = (dict(blur=1.0, solarize=0.0), dict(blur=0.1, solarize=0.2))

_TRIES = 10  # boxes drawn until one fits into the image, as in torchvision

# Principal components of ImageNet's RGB values in 0..1 (Krizhevsky et al. 2012, section 4.1), as of fb.resnet.torch.
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # in columns
_DEVIATIONS = (0.2175, 0.0188, 0.0045)


def random_crop(
    key,
    source_size,
    view_size,
    *,
    area: tuple[float, float] = (0.2, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.0,
):
    """Draw a random resized crop: which part of a source a view shows.

    A box has the share U(area) of the source's area and a width over height that is log-uniform in `aspect`; ten are
    drawn, the first that fits is taken, and its place is uniform. If none fits, the view shows the source's centre, as
    much as `aspect` allows. It is torchvision's law, but boxes are not rounded to whole pixels.

    Args:
      key: a PRNG key.
      source_size, view_size: (height, width) in pixels.
      area: smallest and largest share of the source; BYOL has 0.08, ContrastLandmarks 0.2.
      aspect: smallest and largest width over height.
      flip: probability of a mirrored view.

    Returns:
      [4] float32 `(scale_x, scale_y, shift_x, shift_y)`, a map from pixels of the view to pixels of the source,
      `source = view * scale + shift`; scale_x is negative in a mirrored view. `coordinates.file_to_frame` moves points
      by it, `coordinates.frame_to_file` moves them back, and views of one map show the same cells at the same places.
    """
    (height, width), (view_height, view_width) = source_size, view_size
    box_key, place_key, flip_key = jax.random.split(key, 3)
    share, along = jax.random.uniform(box_key, (2, _TRIES))
    square = height * width * (area[0] + (area[1] - area[0]) * share)
    ratio = jnp.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * along)
    wide, high = jnp.sqrt(square * ratio), jnp.sqrt(square / ratio)
    fits = (wide <= width) & (high <= height)
    found, first = jnp.any(fits), jnp.argmax(fits)
    wide = jnp.where(found, wide[first], min(width, height * aspect[1]))
    high = jnp.where(found, high[first], min(height, width / aspect[0]))
    place = jnp.where(found, jax.random.uniform(place_key, (2,)), 0.5)
    left, top = place[0] * (width - wide), place[1] * (height - high)  # of pixels' borders, not of their centres
    scale_x, scale_y = wide / view_width, high / view_height
    mirrored = jax.random.uniform(flip_key) < flip
    shift_x = jnp.where(mirrored, left + wide - scale_x / 2, left + scale_x / 2) - 0.5
    scale_x = jnp.where(mirrored, -scale_x, scale_x)
    return jnp.stack([scale_x, scale_y, shift_x, top + scale_y / 2 - 0.5])


def beside(key, geometry, other, source_size, view_size, within: float):
    """Move a crop to a random place near another crop of the same source; its size stays.

    The new centre is that of the other crop plus U(-within, within) times the other's width and height, each axis by
    itself, and then as far inside of the source as the crop's own sides need.

    Args:
      key: a PRNG key.
      geometry: [4] of `random_crop`, the crop to be moved.
      other: [4], the crop that stays.
      source_size, view_size: those of `random_crop`.
      within: largest distance of the centres as a share of the other crop's sides.

    Returns:
      [4], as of `random_crop`.
    """
    (height, width), (view_height, view_width) = source_size, view_size
    source, view = jnp.array([width, height]), jnp.array([view_width, view_height])
    scale, middle = geometry[:2], (view - 1) / 2
    moved = within * jax.random.uniform(key, (2,), minval=-1, maxval=1) * jnp.abs(other[:2]) * view
    half = jnp.abs(scale) * view / 2
    centre = jnp.clip(other[2:] + other[:2] * middle + moved, half - 0.5, source - 0.5 - half)
    return jnp.concatenate([scale, centre - scale * middle])


def crop(image, geometry, size, method: Literal["cubic", "linear"] = "cubic"):
    """Render the view of one image under a map of `random_crop`, by one interpolation matrix for each axis.

    The kernel widens where the view is smaller than what it shows, and reads beyond the box up to the source's border,
    as `resize(box=...)` of Pillow does; a resize of the cut-out alone differs in the outermost pixels.

    Args:
      image: [H,W,C] float in 0..1, or uint8.
      geometry: [4].
      size: (height, width) of the view, that of `random_crop`.
      method: `cubic` (Keys, a = -0.5; BYOL, Pillow's BICUBIC) or `linear` (torchvision's default, Pillow's BILINEAR).

    Returns:
      [h,w,C] float32 or wider in 0..1; what a cubic kernel adds beyond is clipped.
    """
    if not jnp.issubdtype(image.dtype, jnp.floating):
        image = image.astype(jnp.float32) / 255
    wide = jnp.promote_types(image.dtype, jnp.float32)
    scale, shift = jnp.abs(geometry[:2]).astype(wide), geometry[2:].astype(wide)
    mirrored = geometry[0] < 0
    # The box's left border, and its top: half a cell before its first pixel, which is the last one if mirrored.
    before = jnp.stack([jnp.where(mirrored, size[1] - 0.5, 0.5), jnp.full((), 0.5)]) * scale
    start = shift + 0.5 - before
    view = jax.image.scale_and_translate(
        image.astype(wide),
        (*size, image.shape[-1]),
        (0, 1),
        scale=1 / scale[::-1],
        translation=-(start / scale)[::-1],
        method=method,
        antialias=True,
    )
    return jnp.clip(jnp.where(mirrored, view[:, ::-1], view), 0, 1)


def random_order(key):
    """Draw the order [4] int32 in which `color_jitter` changes all images of a call."""
    return jax.random.permutation(key, 4).astype(jnp.int32)


def color_jitter(
    key,
    image,
    order,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    law: Literal["byol", "torchvision"] = "byol",
):
    """Change brightness, contrast, saturation and hue of one image by random amounts; each result is clipped to 0..1.

                   byol                                  torchvision
      brightness   plus U(-b, b)                         times U(1 - b, 1 + b)
      contrast     distance from each channel's mean     distance from the mean grey     times U(1 - c, 1 + c)
      saturation   saturation of HSV                     distance from the pixel's grey  times U(1 - s, 1 + s)
      hue          plus U(-h, h) of a full turn in HSV   the same

    Args:
      key: a PRNG key.
      image: [H,W,3] in 0..1.
      order: [4] int32 of `random_order`: numbers of the changes, by the rows above, as they follow each other. It is
        meant for many images, `jax.vmap(..., (0, 0, None))`. If each image had its own order, `vmap` would turn the
        choice of a change into a selection among the results of all four, four times; a shared order computes four
        changes instead of sixteen. All orders occur over the steps of a training.
      brightness, contrast, saturation, hue: the largest amounts; LEAD's and BYOL's by default.
      law: see above. ContrastLandmarks has torchvision's with 0.4, 0.4, 0.4 and 0.

    Returns:
      [H,W,3] in 0..1.
    """
    keys = jax.random.split(key, 4)
    added, turn = (jax.random.uniform(k, (), image.dtype, -m, m) for k, m in ((keys[0], brightness), (keys[3], hue)))
    times = [
        jax.random.uniform(k, (), image.dtype, max(0, 1 - m), 1 + m)
        for k, m in zip(keys, (brightness, contrast, saturation))
    ]

    def blend(image, level, factor):
        return level + (image - level) * factor

    if law == "byol":
        changes = [
            lambda x: x + added,
            lambda x: blend(x, jnp.mean(x, (0, 1)), times[1]),
            lambda x: _in_hsv(x, saturation=times[2]),
        ]
    else:
        changes = [
            lambda x: x * times[0],
            lambda x: blend(x, jnp.mean(color.to_grey(x)), times[1]),
            lambda x: blend(x, color.to_grey(x), times[2]),
        ]
    changes.append(lambda x: _in_hsv(x, turn=turn))
    amounts = brightness, contrast, saturation, hue
    changes = [change if amount else (lambda x: x) for change, amount in zip(changes, amounts)]
    for place in range(4):
        image = jnp.clip(jax.lax.switch(order[place], changes, image), 0, 1)
    return image


def recolor(
    key,
    image,
    order,
    *,
    jitter: float = 0.8,
    grey: float = 0.2,
    blur: float = 1.0,
    sigma: tuple[float, float] = (0.1, 2.0),
    solarize: float = 0.0,
    **amounts,
):
    """Change the colours and the focus of one view as BYOL does: jitter, grey, blur, then solarisation.

    Args:
      key: a PRNG key.
      image: [H,W,3] in 0..1.
      order: [4] int32 of `random_order`, shared by many images; see `color_jitter`.
      jitter, grey, blur, solarize: probabilities of the changes. `BYOL_VIEWS` has those of its two views.
      sigma: smallest and largest standard deviation of the blur in pixels. Its kernel has 2 int(H / 20) + 1 taps, 9 at
        96 pixels, and repeats the border, where the published code reads zeros.
      **amounts: of `color_jitter`.

    Returns:
      [H,W,3] in 0..1.
    """
    jitter_key, blur_key, *rest = jax.random.split(key, 6)
    does = [jax.random.uniform(k) < p for k, p in zip(rest, (jitter, grey, blur, solarize), strict=True)]
    if jitter:
        image = jnp.where(does[0], color_jitter(jitter_key, image, order, **amounts), image)
    if grey:
        image = jnp.where(does[1], color.to_grey(image), image)
    if blur:
        deviation = jax.random.uniform(blur_key, (), image.dtype, *sigma)
        image = jnp.where(does[2], color.gaussian_blur(image, deviation, image.shape[0] // 20), image)
    if solarize:
        image = jnp.where(does[3], solarized(image), image)
    return jnp.clip(image, 0, 1)


def solarized(image, threshold: float = 0.5):
    """Invert the values of `threshold` and above.

    >>> solarized(jnp.array([0.25, 0.5, 0.75])).tolist()
    [0.25, 0.5, 0.25]
    """
    return jnp.where(image < threshold, image, 1 - image)


def pca_lighting(key, image, deviation: float = 0.1):
    """Add one random colour to an image along the principal components of natural images' colours; not clipped.

      image + sum_k N(0, deviation) lambda_k e_k     (Krizhevsky et al. 2012; ContrastLandmarks with 0.1)

    Values beyond 0..1 stay, because the published code normalises them as they are.
    """
    amounts = deviation * jax.random.normal(key, (3,), image.dtype) * jnp.asarray(_DEVIATIONS, image.dtype)
    # A product and not a sum of products: XLA's CPU backend (jaxlib 0.10.2) fuses the latter with the image wrongly.
    return image + jnp.matmul(jnp.asarray(_COMPONENTS, image.dtype), amounts, precision="highest")


def _in_hsv(image, turn=None, saturation=None):
    """Turn the hue by a share of a full turn, or multiply the saturation, of HSV (Smith 1978) of [H,W,3] in 0..1."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.max(image, -1)
    chroma = value - jnp.min(image, -1)
    over = jnp.where(chroma > 0, chroma, 1)
    # Sixths of a turn from red; of equal channels the first counts, where both formulas give the same hue.
    sector = jnp.where(
        red == value,
        (green - blue) / over,
        jnp.where(green == value, 2 + (blue - red) / over, 4 + (red - green) / over),
    )
    if turn is not None:
        sector = sector + 6 * turn
    if saturation is not None:  # chroma is saturation times value
        chroma = jnp.minimum(chroma * saturation, value)
    away = (jnp.asarray([5, 3, 1], image.dtype) + sector[..., None]) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(away, 4 - away), 0, 1)

"""Random changes of colour, noise and focus, which leave the landmarks of a photograph in place."""

import math

import jax
import jax.numpy as jnp

from uld_jax.ops import batches, coordinates

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def random_color(
    key,
    image,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    gain: float = 0.0,
    grey: float = 0.0,
    blur: float = 0.0,
    noise: float = 0.0,
):
    """Change ONE image; `jax.vmap` over keys and images makes a batch. A change of strength 0 costs nothing.

    The changes, in this order, each drawn anew for the image:

      hue         turn about the grey axis by U(-hue, hue) of a full turn
      saturation  distance from grey times U(1 - saturation, 1 + saturation)
      contrast    distance from the mean grey times U(1 - contrast, 1 + contrast)
      brightness  plus U(-brightness, brightness)
      gain        each channel times exp(N(0, gain))
      grey        all colour gone with probability `grey`
      blur        Gaussian of standard deviation U(0, blur) pixels
      noise       plus N(0, s) in every value, s from U(0, noise)

    Args:
      key: a PRNG key.
      image: [H,W,3] float in 0..1.

    Returns:
      [H,W,3] in 0..1, clipped, of the image's dtype.
    """
    dtype = image.dtype
    keys = dict(
        zip(
            ("hue", "saturation", "contrast", "brightness", "gain", "grey", "blur", "noise"),
            jax.random.split(key, 8),
            strict=True,
        )
    )

    def uniform(name, low, high):
        return jax.random.uniform(keys[name], (), dtype, low, high)

    if hue:
        turn = _hue_matrix(2 * math.pi * uniform("hue", -hue, hue))
        image = jnp.sum(image[..., None, :] * turn, -1)
    if saturation:
        level = to_grey(image)
        image = level + (image - level) * uniform("saturation", 1 - saturation, 1 + saturation)
    if contrast:
        level = jnp.mean(to_grey(image))
        image = level + (image - level) * uniform("contrast", 1 - contrast, 1 + contrast)
    if brightness:
        image = image + uniform("brightness", -brightness, brightness)
    if gain:
        image = image * jnp.exp(gain * jax.random.normal(keys["gain"], (3,), dtype))
    if grey:
        image = jnp.where(uniform("grey", 0, 1) < grey, to_grey(image), image)
    if blur:
        image = gaussian_blur(image, uniform("blur", 0, blur), max(1, math.ceil(2 * blur)))
    if noise:
        image = image + uniform("noise", 0, noise) * jax.random.normal(keys["noise"], image.shape, dtype)
    return jnp.clip(image, 0, 1).astype(dtype)


def mildly_changed(keys, images, strength: float):
    """Change colour, contrast, focus and noise of views [B,H,W,3] in 0..1 by keys [B].

    The changes go about as far as those of the published code of Mallis et al. `strength` scales all of it; at 1 the
    largest changes are a tenth of the brightness and a quarter of the contrast.
    """
    s = strength

    def change(key, image):
        return random_color(
            key,
            image,
            brightness=0.1 * s,
            contrast=0.25 * s,
            saturation=0.3 * s,
            gain=0.05 * s,
            grey=0.05 * s,
            blur=0.5 * s,
            noise=0.05 * s,
        )

    return batches.each(change, keys, images)


def to_grey(image):
    """Luma [...,1] of an image [...,3]."""
    return jnp.sum(image * jnp.asarray(_GREY, image.dtype), -1, keepdims=True)


def to_uint8(image):
    """Round values in 0..1 of any shape to the nearest of 0..255; values outside 0..1 are clipped.

    >>> to_uint8(jnp.array([-0.1, 0.5, 1.0, 1.2])).tolist()
    [0, 128, 255, 255]
    """
    return jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)


def gaussian_blur(image, sigma, radius: int):
    """Blur [H,W,C] by a normalised Gaussian of `sigma` pixels (may be traced), cut off at `radius`; borders repeat.

    The result is a sum of shifted copies, because a convolution cannot have another kernel for each image of a batch.
    """
    offsets = jnp.arange(-radius, radius + 1, dtype=image.dtype)
    kernel = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
    kernel = kernel / jnp.sum(kernel)
    for axis in (0, 1):
        width = [(radius, radius) if a == axis else (0, 0) for a in range(image.ndim)]
        padded = jnp.pad(image, width, mode="edge")
        size = image.shape[axis]
        image = sum(kernel[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * radius + 1))
    return image


def _hue_matrix(angle):
    """Turn about the grey axis (1, 1, 1) / sqrt 3, [3,3]; grey stays grey and the mean of the channels stays.

    Rodrigues: cos I + (1 - cos) u u' + sin [u]x.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    third, root = (1 - cos) / 3, sin / math.sqrt(3)
    a, b, c = cos + third, third - root, third + root
    return jnp.stack([jnp.stack([a, b, c]), jnp.stack([c, a, b]), jnp.stack([b, c, a])])


def dotted(images, xy, radius: float = 2.0):
    """Draw landmarks on images as soft dots, one hue each.

    Args:
      images: [B,H,W,3] uint8.
      xy: [B,K,2] `(x, y)` in pixels.
      radius: of a dot in pixels.

    Returns:
      [B,H,W,3] uint8.

    >>> dotted(jnp.zeros((1, 9, 9, 3), jnp.uint8), jnp.array([[[4.0, 4.0]]]))[0, 4, 4].tolist()
    [255, 0, 0]
    """
    turn = jnp.arange(xy.shape[1])[:, None] / xy.shape[1] * 6 + jnp.asarray([0, 4, 2])
    hues = jnp.clip(jnp.abs((turn % 6) - 3) - 1, 0, 1)  # [K,3], those of HSV at full saturation and value
    away = jnp.asarray(coordinates.pixel_grid(*images.shape[1:3]))[None, :, :, None] - xy[:, None, None]
    cover = jnp.clip(radius + 0.5 - jnp.linalg.norm(away, axis=-1), 0, 1)  # [B,H,W,K]
    shown = images / 255
    for k in range(xy.shape[1]):
        shown = shown + cover[..., k, None] * (hues[k] - shown)
    return to_uint8(shown)

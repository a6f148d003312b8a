"""Colours of the skin and its painted features, of hair, clothes and the background."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.data.synthetic.head import Features, hairline
from uld_jax.data.synthetic.maths import dot, mix, sin, step
from uld_jax.data.synthetic.scene import EXPRESSION, HAIR, OCTAVES, Scene


def _paint(base, color, amount):
    """Mix three channels [...] with a colour [3] (or channels) by `amount` [...]."""
    return tuple(mix(b, c, amount) for b, c in zip(base, color))


def _wave(p, frequency, seed):
    """Compute smooth pseudo-random values of about [-1, 1] at x, y, z [...]: sines in directions drawn from `seed`."""
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(3):
        k = rng.normal(size=3)
        k, start = frequency * k / np.linalg.norm(k), float(rng.uniform(0.0, 2.0 * np.pi))
        total = total + sin(float(k[0]) * p[0] + float(k[1]) * p[1] + float(k[2]) * p[2] + start)
    return total / 2.0


class _Point(NamedTuple):
    """A point on the head, [...] each."""

    x: jax.Array  # coordinate in the scene before mirroring
    y: jax.Array
    z: jax.Array
    side: jax.Array  # |x|
    front: jax.Array  # 1 at the front of the head, 0 elsewhere


def face_color(scene: Scene, f: Features, p):
    """Compute the skin with its painted features. `p`: x, y, z [...] in head coordinates.

    Returns the colour (three channels), the gloss, and the light that the eyes reflect, each [...].
    """
    x, y, z = p
    x, at = x * scene.flip, p
    side = jnp.abs(x)
    point = _Point(x, y, z, side, front=step(0.25, 0.40, z))
    color = _skin(scene, f, point)
    color, scalp = _beard(scene, f, point, color, at)
    color = _nostrils(scene, f, point, color)
    color = _brows(scene, f, point, color)
    color, in_eye, look = _eyes(scene, f, point, color)
    color, in_lips, in_gap = _mouth(scene, f, point, color)
    gloss = 0.16 + 0.5 * in_eye + 0.12 * in_lips - 0.14 * scalp - 0.14 * in_gap
    glint = jnp.exp(
        -(((side - f.eye[0] - look + 0.018 * jnp.sign(x)) / 0.012) ** 2 + ((y - f.eye[1] + 0.030) / 0.012) ** 2)
    )
    return color, gloss, 0.9 * glint * in_eye


def _skin(scene: Scene, f: Features, point: _Point):
    """Paint the skin: red cheeks and nose, shades and the ear's bowl."""
    x, y, z, side, front = point
    skin = tuple(scene.colors[0])
    mottle = 1.0 + 0.05 * _wave((x, y, z), 9.0, 1) + 0.03 * _wave((x, y, z), 31.0, 2)
    color = tuple(c * mottle for c in skin)
    # red cheeks, nose and ears; shade under the chin
    blush = jnp.exp(-(((side - 0.36) / 0.16) ** 2 + ((y - 0.30) / 0.15) ** 2)) * front
    blush = blush + 0.8 * jnp.exp(-((x / 0.10) ** 2 + ((y - f.nose_y) / 0.08) ** 2)) * front
    color = _paint(color, tuple(c * t for c, t in zip(skin, (1.0, 0.68, 0.66))), 0.55 * jnp.minimum(blush, 1.0))
    # shade in the eye's socket next to the nose, and along the fold from nose to mouth
    socket = jnp.exp(-(((side - 0.15) / 0.06) ** 2 + ((y + 0.03) / 0.07) ** 2)) * front
    lid = jnp.exp(-(((side - f.eye[0]) / 0.16) ** 2 + ((y - f.eye[1] + 0.075) / 0.04) ** 2)) * front
    fold_y = jnp.clip((y - f.nose_y) / 0.30, 0.0, 1.0)
    fold = jnp.exp(-(((side - f.nose_half - 0.03 - 0.11 * fold_y) / 0.022) ** 2)) * front * step(0.0, 0.25, fold_y)
    fold = fold * step(1.0, 0.6, fold_y)
    below = jnp.exp(-((x / 0.13) ** 2 + ((y - f.mouth_y - f.gap[1] - f.lips[1] - 0.045) / 0.035) ** 2)) * front
    shade = 1.0 - 0.30 * socket - 0.20 * lid - 0.22 * fold - 0.20 * below
    under = step(0.80, 1.0, y) * step(0.62, 0.40, z) * step(1.75, 1.1, y)
    shade = shade * (1.0 - 0.45 * under)
    # the ear's bowl
    flare = 0.45
    ex, ey, ez = side - f.ear[0], y - f.ear[1], z - f.ear[2]
    ez = ez * float(np.cos(flare)) - ex * float(np.sin(flare))
    at_ear = step(-0.05, -0.01, ex + 0.3 * ez)
    bowl = jnp.exp(-((((ez - 0.02) / 0.055) ** 2 + ((ey - 0.03) / 0.085) ** 2) ** 2))
    bowl = bowl + 0.7 * jnp.exp(-((((ez + 0.01) / 0.085) ** 2 + ((ey + 0.075) / 0.045) ** 2) ** 2))
    shade = shade * (1.0 - 0.55 * at_ear * jnp.minimum(bowl, 1.0))
    return tuple(c * shade for c in color)


def _beard(scene: Scene, f: Features, point: _Point, color, at):
    """Paint the beard and the roots of the hair; return the colour and the amount of scalp [...]."""
    x, y, z, side, _ = point
    locks = tuple(scene.colors[2])
    beard, volume = scene.hair[HAIR.index("beard")], scene.hair[HAIR.index("volume")]
    beard_at = step(0.0, 0.10, y - f.mouth_y + 0.13 - 0.25 * jnp.maximum(side - 0.30, 0.0))
    beard_at = beard_at * step(0.16, 0.02, y - f.mouth_y - 0.40 - 0.35 * jnp.minimum(z - 0.4, 0.0))
    beard_at = beard_at * step(-0.10, 0.06, z)
    color = _paint(color, locks, 0.85 * beard * beard_at * (1.0 + 0.1 * _wave((x, y, z), 45.0, 3)))
    scalp = step(0.02, -0.05, hairline(scene, f, at)) * step(0.0, 0.1, volume)
    return _paint(color, locks, 0.9 * scalp), scalp


def _nostrils(scene: Scene, f: Features, point: _Point, color):
    """Paint the nostrils."""
    _, y, z, side, _ = point
    skin = tuple(scene.colors[0])
    nostril = ((side - 0.42 * f.nose_half) / 0.036) ** 2 + ((y - f.nose_y - 0.075) / 0.024) ** 2
    nostril = nostril + ((z - f.nostril_z) / 0.085) ** 2
    return _paint(color, tuple(0.12 * c for c in skin), 0.9 * step(1.5, 0.6, nostril))


def _brows(scene: Scene, f: Features, point: _Point, color):
    """Paint the brows: a bow from the inner to the outer end."""
    x, y, z, side, front = point
    locks = tuple(scene.colors[2])
    t = (side - f.brow_inner[0]) / (f.brow_outer[0] - f.brow_inner[0])
    middle = mix(f.brow_inner[1], f.brow_outer[1], t) - f.brow[0] * 3.2 * t * (1.0 - t) * (0.6 + 0.8 * t)
    half = f.brow[1] * (1.0 - 0.55 * jnp.clip(t, 0.0, 1.0))
    brow = step(1.5, 0.5, jnp.abs(y - middle) / half) * step(-0.05, 0.04, t) * step(1.05, 0.96, t) * front
    return _paint(color, tuple(0.7 * c for c in locks), 0.88 * brow * (1.0 + 0.12 * _wave((x, y, z), 60.0, 4)))


def _eyes(scene: Scene, f: Features, point: _Point, color):
    """Paint the eyes: an almond between two parabolas, with white, iris, pupil and lashes.

    Returns the colour, the amount of eye [...], and the sideways shift of the iris.
    """
    x, y, _, side, front = point
    skin, iris = tuple(scene.colors[0]), tuple(scene.colors[3])
    gaze_x, gaze_y = (scene.expression[EXPRESSION.index(n)] for n in ("gaze_x", "gaze_y"))
    u = (side - f.eye[0]) / f.eye_half
    bow = 1.0 - u * u
    axis = f.eye[1] + f.eye_tilt * u
    top = axis - f.lids[0] * bow * (1.0 + 0.15 * u)
    bottom = axis + f.lids[1] * bow
    in_eye = step(-0.008, 0.010, jnp.minimum(y - top, bottom - y)) * step(1.04, 0.96, jnp.abs(u)) * front
    look = 0.045 * gaze_x * jnp.sign(x)
    radius = jnp.sqrt((side - f.eye[0] - look) ** 2 + (y - f.eye[1] + 0.008 - 0.02 * gaze_y) ** 2 + 1e-9)
    white = tuple(c * (0.62 + 0.30 * bow) for c in (0.86, 0.82, 0.79))
    ball = _paint(white, iris, step(0.066, 0.054, radius))
    ball = _paint(
        ball,
        tuple(0.25 * c for c in iris),
        step(0.034, 0.024, radius) + 0.6 * jnp.exp(-(((radius - 0.060) / 0.008) ** 2)),
    )
    ball = tuple(b * (1.0 - 0.45 * step(0.03, 0.0, y - top)) for b in ball)
    color = _paint(color, ball, in_eye)
    lash = jnp.exp(-(((y - top) / 0.013) ** 2)) * step(1.12, 0.98, jnp.abs(u)) * front
    lash = lash + 0.35 * jnp.exp(-(((y - bottom) / 0.010) ** 2)) * step(1.05, 0.9, jnp.abs(u)) * front
    color = _paint(color, tuple(0.12 * c for c in skin), 0.8 * jnp.minimum(lash, 1.0))
    crease = jnp.exp(-(((y - top + 0.032) / 0.012) ** 2)) * step(1.1, 0.8, jnp.abs(u)) * front
    return tuple(c * (1.0 - 0.28 * crease) for c in color), in_eye, look


def _mouth(scene: Scene, f: Features, point: _Point, color):
    """Paint the mouth: lips above and below the gap, and teeth on a dark ground in the gap.

    Returns the colour, the amount of lips [...], and the amount of gap [...].
    """
    x, y, _, _, front = point
    lips = tuple(scene.colors[1])
    v = x / f.mouth_half
    bow = jnp.maximum(1.0 - v * v, 0.0)
    line = f.mouth_y + f.corner_y * v * v
    high, low = line - f.gap[0] * bow, line + f.gap[1] * bow
    cupid = 1.0 - 0.22 * jnp.exp(-((v / 0.16) ** 2))
    top = high - f.lips[0] * jnp.sqrt(bow) * (0.35 + 0.65 * bow) * cupid
    bottom = low + f.lips[1] * jnp.sqrt(bow)
    at_mouth = step(1.06, 0.97, jnp.abs(v)) * front
    in_lips = step(-0.006, 0.012, jnp.minimum(y - top, bottom - y)) * at_mouth
    upper = step(0.012, -0.006, y - line)
    color = _paint(color, tuple(c * (1.0 - 0.22 * upper) for c in lips), 0.9 * in_lips)
    gap = jnp.minimum(y - high, low - y)
    in_gap = step(-0.010, 0.008, gap) * at_mouth
    teeth = step(0.010, 0.020, gap) * step(0.075, 0.055, y - high) * step(0.9, 0.7, jnp.abs(v))
    inside = _paint((0.035, 0.010, 0.010), (0.62, 0.58, 0.52), teeth)
    return _paint(color, inside, in_gap), in_lips, in_gap


def hair_color(scene: Scene, p):
    """Compute three channels [...] of hair at `p`: x, y, z [...] in head coordinates."""
    x, y, z = p
    x = x * scene.flip
    locks = tuple(scene.colors[2])
    wave = scene.hair[HAIR.index("wave")]
    # strands fall from the crown along meridians; `around` is their angle, measured along the rim of a square
    back = z + 0.15
    around = x / (jnp.abs(x) + jnp.abs(back) + 0.05)
    around = jnp.where(back > 0.0, around, 2.0 - around) + 0.05 * sin(7.0 * y + wave)
    strand = 0.6 * sin(26.0 * around + wave) + 0.4 * sin(61.0 * around + 3.0 * sin(4.0 * y))
    strand = 0.20 * strand + 0.12 * _wave((x, 0.4 * y, z), 30.0, 5)
    return tuple(c * (1.0 + strand) + 0.004 for c in locks)


def cloth_color(scene: Scene, p):
    """Compute three channels [...] of clothes at `p`: x, y, z [...] in the coordinates of the torso."""
    x, y, z = p
    x = x * scene.flip
    stripes = scene.hair[HAIR.index("stripes")]
    pattern = jnp.where(stripes > 0.0, step(-0.2, 0.2, sin(stripes * (y + 0.25 * sin(2.0 * x)))), 0.0)
    color = _paint(tuple(scene.colors[4]), tuple(scene.colors[5]), pattern)
    fold = 1.0 + 0.10 * _wave((x, 0.4 * y, z), 11.0, 6)
    return tuple(c * fold for c in color)


def _interpolation(size: int, cells: int) -> np.ndarray:
    """Compute weights [size, cells + 1] that interpolate a grid smoothly at the pixels of an image."""
    at = (np.arange(size) + 0.5) / size * cells
    low = np.minimum(at.astype(int), cells - 1)
    t = at - low
    t = t * t * (3.0 - 2.0 * t)
    weights = np.zeros((size, cells + 1), np.float32)
    weights[np.arange(size), low] = 1.0 - t
    weights[np.arange(size), low + 1] += t
    return weights


def background(scene: Scene, size: int):
    """Paint the background, [size, size, 3] linear RGB: gradient, noise in four octaves, shapes, some head-coloured."""
    line = ((jnp.arange(size, dtype=jnp.float32) + 0.5) * (2.0 / size)) - 1.0
    x, y = jnp.meshgrid(line, line)
    (dx, dy, contrast), ends = scene.gradient[2], scene.gradient[:2]
    t = step(-1.2, 1.2, dx * x + dy * y)[..., None]
    color = mix(ends[0], ends[1], t)

    def cover(color, shape):
        cx, cy, wide, high, angle, power, edge, stripes, shade = shape[:9]
        u = ((x - cx) * jnp.cos(angle) + (y - cy) * jnp.sin(angle)) * (1.0 / wide)
        v = ((y - cy) * jnp.cos(angle) - (x - cx) * jnp.sin(angle)) * (1.0 / high)
        r = jnp.where(power > 5.0, jnp.maximum(jnp.abs(u), jnp.abs(v)), jnp.sqrt(u * u + v * v + 1e-9))
        amount = 0.92 * step(1.0 + edge, 1.0 - edge, r)
        tone = 1.0 + 0.35 * sin(stripes * u) - 0.6 * shade * step(-1.0, 1.0, u + 0.5 * v)
        return mix(color, shape[9:] * tone[..., None], amount[..., None]), None

    color, _ = jax.lax.scan(cover, color, scene.clutter)
    noise = 0.0
    for cells, grid in zip(OCTAVES, scene.noise):
        weights = jnp.asarray(_interpolation(size, cells))
        rows = dot(weights, grid.reshape(cells + 1, -1)).reshape(size, cells + 1, 3)
        noise = noise + (cells / OCTAVES[0]) ** -0.45 * dot(weights, rows)
    color = color * jnp.exp(0.34 * contrast * noise)
    return jnp.where(scene.flip < 0.0, color[:, ::-1], color)

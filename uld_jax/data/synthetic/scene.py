"""The content of a picture: identity, expression, hair, light, background and pose, drawn from a seed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.data.synthetic.maths import mix, step

POSE = {"yaw": 90.0, "pitch": 9.0, "roll": 7.0, "shift": 0.04, "size": 0.07}  # options of `sample_scene`
SHAPE = (  # identity; each name is a standardised coefficient in [-2.4, 2.4]
    "head_width",
    "head_depth",
    "face_length",
    "jaw_width",
    "chin_size",
    "cheeks",
    "brow_ridge",
    "eye_size",
    "eye_distance",
    "eye_height",
    "eye_tilt",
    "nose_length",
    "nose_width",
    "nose_height",
    "nose_hook",
    "mouth_width",
    "mouth_height",
    "lip_thickness",
    "ear_size",
    "ear_flare",
    "brow_height",
    "brow_arch",
    "brow_thickness",
    "neck_width",
)
EXPRESSION = ("mouth_open", "smile", "brow_raise", "brow_frown", "eye_open", "gaze_x", "gaze_y")
HAIR = ("volume", "hairline", "length", "fringe", "part", "bun", "wave", "beard", "stripes")
OCTAVES = (4, 8, 16, 40)  # cells across the background's noise
CLUTTER = 9  # shapes in the background


class Scene(NamedTuple):
    """All parameters of a picture; leaves are float32 and have no batch axis (use `jax.vmap`)."""

    yaw: jax.Array  # [] degrees
    pitch: jax.Array  # [] degrees
    roll: jax.Array  # [] degrees
    shift: jax.Array  # [2] x, y: fraction of the image's side
    size: jax.Array  # [] factor
    shape: jax.Array  # [24] coefficients in the order of SHAPE
    expression: jax.Array  # [7] coefficients in the order of EXPRESSION
    hair: jax.Array  # [9] coefficients in the order of HAIR; the last is the stripes of the clothes
    colors: jax.Array  # [6, 3] skin, lips, hair, iris, cloth, cloth's pattern; linear RGB in [0, 1]
    light: jax.Array  # [3] unit vector towards the light, in view coordinates
    light_color: jax.Array  # [3]
    ambient: jax.Array  # [3]
    flip: jax.Array  # [] 1 as drawn; -1 mirrors everything that is not symmetric: background, gaze, textures
    gradient: jax.Array  # [3, 3] background: colours at both ends; direction x, y and the noise's contrast
    noise: tuple[jax.Array, ...]  # background: a grid [c + 1, c + 1, 3] for each c of OCTAVES
    # background's shapes: x, y, half width, half height, angle, squareness, edge, stripes, shade, RGB
    clutter: jax.Array  # [CLUTTER, 12]


def _rgb(*channels):
    return jnp.asarray(channels, jnp.float32)


def sample_scene(
    key,
    *,
    yaw=POSE["yaw"],
    pitch=POSE["pitch"],
    roll=POSE["roll"],
    shift=POSE["shift"],
    size=POSE["size"],
) -> Scene:
    """Draw one scene; vmap over keys for many.

    Args:
        key: a JAX random key.
        yaw: greatest yaw in degrees; the yaw is drawn uniformly in [-yaw, yaw].
        pitch, roll: standard deviations in degrees of normals cut at 2.4 deviations.
        shift: standard deviation of the head's centre as a fraction of the image's side.
        size: standard deviation of the logarithm of the head's size.
    """
    # One draw is cut up, because forty draws would take ten seconds to compile. Normals are cut at 2.4 deviations.
    cells = [(c + 1) ** 2 for c in OCTAVES]
    sizes = {"uniform": 50, "clutter": CLUTTER * 16, "normal": 40, "shape": len(SHAPE), "noise": 3 * sum(cells)}
    first = sizes["uniform"] + sizes["clutter"]
    numbers = jax.random.uniform(key, (sum(sizes.values()),), jnp.float32)
    bell = jax.lax.erf_inv(0.97219 * (2.0 * numbers[first:] - 1.0)) * (2.0**0.5 / 0.91625)
    uniform, normal = iter(numbers[: sizes["uniform"]]), iter(bell[: sizes["normal"]])
    shape = bell[sizes["normal"] : sizes["normal"] + sizes["shape"]]
    drawn = bell[sizes["normal"] + sizes["shape"] :].reshape(-1, 3) * _rgb(1.0, 0.7, 0.7)
    spread = numbers[sizes["uniform"] : first].reshape(CLUTTER, 16)

    pose = dict(
        yaw=yaw * (2.0 * next(uniform) - 1.0),
        pitch=pitch * next(normal),
        roll=roll * next(normal),
        shift=shift * _several(normal, 2),
        size=jnp.exp(size * next(normal)),
    )
    expression = _expression(normal)
    chance = _several(uniform, 8)
    amount = _several(uniform, 8)
    hair = _hair(uniform, normal, chance, amount)
    colors = _colors(uniform, normal, chance, amount)
    light = _light(uniform, normal)
    gradient, vivid = _gradient(uniform)
    drawn = jnp.split(drawn, np.cumsum(cells)[:-1])
    noise = tuple(n.reshape(c + 1, c + 1, 3) for n, c in zip(drawn, OCTAVES))
    # noise is mostly in brightness, as in photographs
    noise = tuple(mix(n[..., :1], n, 0.35) for n in noise)
    return Scene(
        **pose,
        shape=shape,
        expression=expression,
        hair=hair,
        colors=jnp.clip(colors, 0.0, 1.0),
        **light,
        flip=jnp.ones((), jnp.float32),
        gradient=gradient,
        noise=noise,
        clutter=_clutter(spread, colors[np.array([0, 2, 4])], vivid),
    )


def _several(numbers, n):
    """Take the next n numbers of an iterator, [n]."""
    return jnp.stack([next(numbers) for _ in range(n)])


def _expression(normal):
    """Draw the expression, [7] in the order of EXPRESSION."""
    opened = jnp.maximum(next(normal), 0.0) * 0.5
    return jnp.stack(
        [
            jnp.clip(opened, 0.0, 1.0),
            0.5 * next(normal) + 0.2,
            0.5 * next(normal),
            0.5 * next(normal),
            jnp.clip(1.0 + 0.22 * next(normal), 0.45, 1.4),
            0.5 * next(normal),
            0.35 * next(normal),
        ]
    )


def _hair(uniform, normal, chance, amount):
    """Draw the hair, [9] in the order of HAIR."""
    return jnp.stack(
        [
            jnp.where(chance[0] < 0.08, 0.0, 0.15 + 0.85 * amount[0]),
            next(normal),
            jnp.where(chance[1] < 0.55, 0.0, 0.25 + 0.75 * amount[1]),
            jnp.where(chance[2] < 0.55, 0.0, 0.2 + 0.8 * amount[2]),
            2.0 * next(uniform) - 1.0,
            jnp.where(chance[3] < 0.85, 0.0, 0.4 + 0.6 * amount[3]),
            2.0 * np.pi * next(uniform),
            jnp.where(chance[4] < 0.75, 0.0, 0.3 + 0.7 * amount[4]),
            jnp.where(chance[5] < 0.5, 0.0, 5.0 + 11.0 * next(uniform)),
        ]
    )


def _colors(uniform, normal, chance, amount):
    """Draw the colours [6, 3] of skin, lips, hair, iris, cloth and its pattern, not yet clipped to [0, 1]."""
    # skin and hair lie between dark and fair ends, with a little variation around that line
    tone = next(uniform)
    skin = mix(_rgb(0.11, 0.055, 0.032), _rgb(0.80, 0.55, 0.43), tone)
    skin = skin * jnp.exp(0.07 * _several(normal, 3))
    lips = skin * _rgb(0.80, 0.48, 0.48) * jnp.exp(0.15 * _several(normal, 3))
    fair = next(uniform) ** 2.2 * step(0.0, 0.5, tone)
    locks = mix(_rgb(0.016, 0.011, 0.009), _rgb(0.52, 0.34, 0.16), fair)
    grey = jnp.where(chance[6] < 0.85, 0.0, amount[6])
    locks = mix(locks, _rgb(0.45, 0.45, 0.46), grey) * jnp.exp(0.06 * _several(normal, 3))
    iris = mix(_rgb(0.05, 0.025, 0.012), _rgb(0.10, 0.20, 0.30), amount[7] * fair)
    cloth = (0.02 + 0.73 * _several(uniform, 6).reshape(2, 3)) ** 1.5
    return jnp.concatenate([jnp.stack([skin, lips, locks, iris]), cloth])


def _light(uniform, normal):
    """Draw `light`, `light_color` and `ambient` of a scene."""
    azimuth = float(np.deg2rad(75.0)) * (2.0 * next(uniform) - 1.0)
    height = float(np.deg2rad(1.0)) * (5.0 + 55.0 * next(uniform))
    light = jnp.stack([jnp.sin(azimuth) * jnp.cos(height), -jnp.sin(height), jnp.cos(azimuth) * jnp.cos(height)])
    warm = 0.10 * next(normal)
    tint = jnp.stack([1.0 + warm, jnp.ones_like(warm), 1.0 - warm])
    exposure = 0.8 + 0.4 * next(uniform)
    shade = 0.25 + 0.35 * next(uniform)
    return dict(
        light=light,
        light_color=(1.05 - 0.6 * shade) * exposure * tint,
        ambient=shade * exposure * (2.0 - tint),
    )


def _gradient(uniform):
    """Draw the background's gradient [3, 3], and the saturation of its colours []."""
    ends = (0.02 + 0.78 * _several(uniform, 6).reshape(2, 3)) ** 1.3
    vivid = 0.15 + 0.7 * next(uniform)
    ends = mix(jnp.mean(ends, -1, keepdims=True), ends, vivid)
    angle = 2.0 * np.pi * next(uniform)
    contrast = 0.4 + 1.2 * next(uniform)
    return jnp.concatenate([ends, jnp.stack([jnp.cos(angle), jnp.sin(angle), contrast])[None]]), vivid


def _clutter(spread, palette, vivid):
    """Make the background's shapes [CLUTTER, 12] from uniform numbers [CLUTTER, 16]; some have colours of `palette`."""
    like_head = palette[(2.999 * spread[:, 7]).astype(int)]
    paint = (0.01 + 0.84 * spread[:, 9:12]) ** 1.4
    paint = mix(jnp.mean(paint, -1, keepdims=True), paint, vivid)
    paint = jnp.where(spread[:, 8:9] < 0.4, like_head, paint)

    return jnp.concatenate(
        [
            2.2 * spread[:, 12:14] - 1.1,
            0.08 * jnp.exp(2.1 * spread[:, 14:16]),
            np.pi * spread[:, :1],
            2.0 + 8.0 * jnp.round(spread[:, 1:2]),
            0.02 + 0.35 * spread[:, 2:3] ** 3,
            jnp.where(spread[:, 3:4] < 0.5, 0.0, 4.0 + 20.0 * spread[:, 4:5]),
            spread[:, 5:6],
            paint,
        ],
        axis=-1,
    )


def mirror(scene: Scene) -> Scene:
    """Mirror a scene, so that its picture is mirrored left-right; its landmark i is landmark MIRROR[i] of `scene`."""
    x = jnp.array([-1.0, 1.0, 1.0], jnp.float32)
    return scene._replace(
        yaw=-scene.yaw,
        roll=-scene.roll,
        shift=scene.shift * x[:2],
        light=scene.light * x,
        flip=-scene.flip,
    )

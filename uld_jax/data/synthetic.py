"""The built-in data set: a rendered head that turns by up to 90 degrees, with exact landmarks.

Nothing is downloaded. A seed gives a `Scene` (identity, expression, hair, light, background, pose); `render` ray-traces
it. The head is a union of about thirty ellipsoids under parallel projection, where a ray meets an ellipsoid in closed
form, and the surface is the nearest hit:

    z(x, y) = max over ellipsoids of  linear(x, y) + sqrt(quadratic(x, y)).

Joints between ellipsoids are smoothed in the normals alone: near a joint the normals of all ellipsoids close by are
averaged. Eyes, brows, lips, nostrils and hairline are painted on the surface in the head's own coordinates.

Head coordinates: x to the image's right when the head looks at the camera, y down, z towards the camera; the crown is
at y = -1 and the chin at y = 1. Angles are in degrees: positive yaw turns the nose to the image's right, positive pitch
lifts it, positive roll turns the image clockwise. `left` and `right` are the person's own: the right eye is on the
image's left.

Use `Synthetic` for the data set, and `sample_scene` with `render` for pictures of one's own:

    image, landmarks, visible = jax.jit(render, static_argnames="size")(sample_scene(jax.random.key(0)), size=128)
"""

import csv
import functools
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from uld_jax.data.specs import DatasetSpec, Source, fingerprint_of
from uld_jax.errors import UserError

LANDMARKS = (
    "right_brow_outer",
    "right_brow_inner",
    "left_brow_inner",
    "left_brow_outer",
    "right_eye_outer",
    "right_eye_inner",
    "left_eye_inner",
    "left_eye_outer",
    "nose_tip",
    "right_nostril",
    "left_nostril",
    "right_mouth_corner",
    "left_mouth_corner",
    "upper_lip",
    "lower_lip",
    "chin",
    "right_jaw",
    "left_jaw",
    "right_ear",
    "left_ear",
)
# landmark i of a mirrored image is landmark MIRROR[i] of the image
MIRROR = (3, 2, 1, 0, 7, 6, 5, 4, 8, 10, 9, 12, 11, 13, 14, 15, 17, 16, 19, 18)
SPLITS = {"train": 2000, "test": 500}  # rows by default
POSE = {"yaw": 90.0, "pitch": 9.0, "roll": 7.0, "shift": 0.04, "size": 0.07}  # options of `sample_scene`
VERSION = 1  # part of the fingerprint: raise it whenever the same seed would give other pictures

HEAD_SCALE = 0.58  # half of the head's height, as a fraction of half the image
SHAPE = (  # identity, each a standardised coefficient in [-2.4, 2.4]
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
    """All that a picture is made of; leaves are float32 and have no batch axis (use `jax.vmap`)."""

    yaw: jax.Array  # [] degrees
    pitch: jax.Array  # [] degrees
    roll: jax.Array  # [] degrees
    shift: jax.Array  # [2] x, y: fraction of the image's side
    size: jax.Array  # [] factor
    shape: jax.Array  # [24] as SHAPE says
    expression: jax.Array  # [7] as EXPRESSION says
    hair: jax.Array  # [9] as HAIR says; its last entry is the stripes of the clothes
    colors: jax.Array  # [6, 3] skin, lips, hair, iris, cloth, cloth's pattern; linear RGB in [0, 1]
    light: jax.Array  # [3] unit vector towards the light, in view coordinates
    light_color: jax.Array  # [3]
    ambient: jax.Array  # [3]
    flip: jax.Array  # [] 1 as drawn, -1 with all that is not symmetric mirrored: background, gaze, textures
    gradient: jax.Array  # [3, 3] background: colours at both ends; direction x, y and the noise's contrast
    noise: tuple[jax.Array, ...]  # background: a grid [c + 1, c + 1, 3] for each c of OCTAVES
    # background's shapes: x, y, half width, half height, angle, squareness, edge, stripes, shade, RGB
    clutter: jax.Array  # [CLUTTER, 12]


def _rgb(*channels):
    return jnp.asarray(channels, jnp.float32)


def _mix(a, b, t):
    return a + (b - a) * t


def _step(low, high, x):
    """0 below `low`, 1 above `high`, smooth between (`low` > `high` falls instead)."""
    t = jnp.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _sin(x):
    """A sine of parabolas (error below 0.06): on CPUs it is vectorised, and the true one is not.

    >>> [round(float(_sin(a)), 3) for a in (0.0, np.pi / 2, 1.5 * np.pi)]
    [0.0, 1.0, -1.0]
    """
    t = x * (0.5 / np.pi)
    t = t - jnp.floor(t + 0.5)
    return t * (8.0 - 16.0 * jnp.abs(t))


def sample_scene(
    key,
    *,
    yaw=POSE["yaw"],
    pitch=POSE["pitch"],
    roll=POSE["roll"],
    shift=POSE["shift"],
    size=POSE["size"],
) -> Scene:
    """Draws one scene; vmap over keys for many.

    Args:
        key: a JAX random key.
        yaw: degrees; drawn uniformly in [-yaw, yaw].
        pitch, roll: degrees, standard deviation of a normal cut at 2.4 deviations.
        shift: of the head's centre, standard deviation as a fraction of the image's side.
        size: standard deviation of the logarithm of the head's size.
    """
    # One draw, cut up: forty would take a compiler ten seconds. A normal is cut at 2.4 of its deviations.
    cells = [(c + 1) ** 2 for c in OCTAVES]
    sizes = {"uniform": 50, "clutter": CLUTTER * 16, "normal": 40, "shape": len(SHAPE), "noise": 3 * sum(cells)}
    first = sizes["uniform"] + sizes["clutter"]
    numbers = jax.random.uniform(key, (sum(sizes.values()),), jnp.float32)
    bell = jax.lax.erf_inv(0.97219 * (2.0 * numbers[first:] - 1.0)) * (2.0**0.5 / 0.91625)
    uniform, normal = iter(numbers[: sizes["uniform"]]), iter(bell[: sizes["normal"]])
    shape = bell[sizes["normal"] : sizes["normal"] + sizes["shape"]]
    drawn = bell[sizes["normal"] + sizes["shape"] :].reshape(-1, 3) * _rgb(1.0, 0.7, 0.7)
    spread = numbers[sizes["uniform"] : first].reshape(CLUTTER, 16)

    def several(numbers, n):
        return jnp.stack([next(numbers) for _ in range(n)])

    pose = dict(
        yaw=yaw * (2.0 * next(uniform) - 1.0),
        pitch=pitch * next(normal),
        roll=roll * next(normal),
        shift=shift * several(normal, 2),
        size=jnp.exp(size * next(normal)),
    )

    opened = jnp.maximum(next(normal), 0.0) * 0.5
    expression = jnp.stack(
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

    chance = several(uniform, 8)
    amount = several(uniform, 8)
    hair = jnp.stack(
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

    # skin and hair lie between dark and fair ends, with a little freedom around that line
    tone = next(uniform)
    skin = _mix(_rgb(0.11, 0.055, 0.032), _rgb(0.80, 0.55, 0.43), tone)
    skin = skin * jnp.exp(0.07 * several(normal, 3))
    lips = skin * _rgb(0.80, 0.48, 0.48) * jnp.exp(0.15 * several(normal, 3))
    fair = next(uniform) ** 2.2 * _step(0.0, 0.5, tone)
    locks = _mix(_rgb(0.016, 0.011, 0.009), _rgb(0.52, 0.34, 0.16), fair)
    grey = jnp.where(chance[6] < 0.85, 0.0, amount[6])
    locks = _mix(locks, _rgb(0.45, 0.45, 0.46), grey) * jnp.exp(0.06 * several(normal, 3))
    iris = _mix(_rgb(0.05, 0.025, 0.012), _rgb(0.10, 0.20, 0.30), amount[7] * fair)
    cloth = (0.02 + 0.73 * several(uniform, 6).reshape(2, 3)) ** 1.5
    colors = jnp.clip(jnp.concatenate([jnp.stack([skin, lips, locks, iris]), cloth]), 0.0, 1.0)

    azimuth = float(np.deg2rad(75.0)) * (2.0 * next(uniform) - 1.0)
    height = float(np.deg2rad(1.0)) * (5.0 + 55.0 * next(uniform))
    light = jnp.stack([jnp.sin(azimuth) * jnp.cos(height), -jnp.sin(height), jnp.cos(azimuth) * jnp.cos(height)])
    warm = 0.10 * next(normal)
    tint = jnp.stack([1.0 + warm, jnp.ones_like(warm), 1.0 - warm])
    exposure = 0.8 + 0.4 * next(uniform)
    shade = 0.25 + 0.35 * next(uniform)

    ends = (0.02 + 0.78 * several(uniform, 6).reshape(2, 3)) ** 1.3
    vivid = 0.15 + 0.7 * next(uniform)
    ends = _mix(jnp.mean(ends, -1, keepdims=True), ends, vivid)
    angle = 2.0 * np.pi * next(uniform)
    contrast = 0.4 + 1.2 * next(uniform)
    gradient = jnp.concatenate([ends, jnp.stack([jnp.cos(angle), jnp.sin(angle), contrast])[None]])
    drawn = jnp.split(drawn, np.cumsum(cells)[:-1])
    noise = tuple(n.reshape(c + 1, c + 1, 3) for n, c in zip(drawn, OCTAVES))
    # noise is mostly one of brightness, as in photographs
    noise = tuple(_mix(n[..., :1], n, 0.35) for n in noise)
    palette = jnp.stack([skin, locks, cloth[0]])
    like_head = palette[(2.999 * spread[:, 7]).astype(int)]
    paint = (0.01 + 0.84 * spread[:, 9:12]) ** 1.4
    paint = _mix(jnp.mean(paint, -1, keepdims=True), paint, vivid)
    paint = jnp.where(spread[:, 8:9] < 0.4, like_head, paint)

    clutter = jnp.concatenate(
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
    return Scene(
        **pose,
        shape=shape,
        expression=expression,
        hair=hair,
        colors=colors,
        light=light,
        light_color=(1.05 - 0.6 * shade) * exposure * tint,
        ambient=shade * exposure * (2.0 - tint),
        flip=jnp.ones((), jnp.float32),
        gradient=gradient,
        noise=noise,
        clutter=clutter,
    )


def mirror(scene: Scene) -> Scene:
    """The scene whose picture is the left-right mirrored one; its landmark i is landmark MIRROR[i] of `scene`."""
    x = jnp.array([-1.0, 1.0, 1.0], jnp.float32)
    return scene._replace(
        yaw=-scene.yaw,
        roll=-scene.roll,
        shift=scene.shift * x[:2],
        light=scene.light * x,
        flip=-scene.flip,
    )


def rotation(yaw, pitch, roll):
    """[3, 3] from head to view coordinates; degrees. Turns by yaw first, then pitch, then roll."""
    (sy, sp, sr), (cy, cp, cr) = (f(jnp.deg2rad(jnp.stack([yaw, pitch, roll]))) for f in (jnp.sin, jnp.cos))
    one, zero = jnp.ones_like(sy), jnp.zeros_like(sy)

    def matrix(*rows):
        return jnp.stack(rows).reshape(3, 3)

    about_y = matrix(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    about_x = matrix(one, zero, zero, zero, cp, -sp, zero, sp, cp)
    about_z = matrix(cr, -sr, zero, sr, cr, zero, zero, zero, one)
    # written out: a matrix product would be rounded to bfloat16 or TF32 on some devices
    return _dot(about_z, _dot(about_x, about_y))


def _dot(a, b):
    return jnp.matmul(a, b, precision="highest")


SKIN, LOCKS, CLOTH = range(3)


class Ellipsoids(NamedTuple):
    """P ellipsoids: (p - center)' form (p - center) = 1; one coordinate system for all."""

    center: jax.Array  # [P, 3]
    form: jax.Array  # [P, 3, 3] symmetric, positive definite


class Part(NamedTuple):
    """One ellipsoid of the head. `tilt` turns it about x (positive: its top leans back), `flare` about y."""

    center: tuple
    radii: tuple
    tilt: float = 0.0
    flare: float = 0.0
    material: int = SKIN
    blend: float = 0.07  # how far its normals reach over a joint
    clipped: bool = False  # hair that ends at the hairline
    shadow: float = 0.0  # how dark a shadow it casts


def _named(scene: Scene):
    pairs = [*zip(SHAPE, scene.shape), *zip(EXPRESSION, scene.expression)]
    pairs += [*zip((f"hair_{name}" for name in HAIR), scene.hair)]
    return dict(pairs)


class Features(NamedTuple):
    """Where the painted features lie: head coordinates, on the person's left (x > 0) where there are two."""

    eye: jax.Array  # [2] centre
    eye_half: jax.Array  # [] half width
    lids: jax.Array  # [2] upper and lower opening
    eye_tilt: jax.Array
    brow_inner: jax.Array  # [2]
    brow_outer: jax.Array  # [2]
    brow: jax.Array  # [2] arch, half thickness
    mouth_y: jax.Array
    mouth_half: jax.Array
    corner_y: jax.Array  # of the mouth's corners, relative to mouth_y
    gap: jax.Array  # [2] how far the upper lip's lower edge is raised and the lower lip's upper edge lowered
    lips: jax.Array  # [2] thickness of the upper and the lower lip
    nose_y: jax.Array  # of the tip
    nose_half: jax.Array  # half width at the nostrils
    nostril_z: jax.Array
    jaw: jax.Array  # [3] a point inside, beside which the jaw landmark lies
    ear: jax.Array  # [3] centre
    hairline: jax.Array  # [] offset


def _anatomy(scene: Scene):
    """The head's parts {name: Part} and its painted `Features`, in head coordinates."""
    s = _named(scene)
    width = 1.0 + 0.035 * s["head_width"]
    depth = 1.0 + 0.03 * s["head_depth"]
    long = 0.025 * s["face_length"]  # added to all below the nose
    opening = 0.15 * s["mouth_open"]
    drop = 0.8 * opening  # the lower jaw goes down with the mouth
    jaw_x = width * (1.0 + 0.06 * s["jaw_width"])
    smile = s["smile"]

    eye = jnp.stack([0.275 * width * (1.0 + 0.04 * s["eye_distance"]), 0.01 + 0.015 * s["eye_height"]])
    eye_half = 0.132 * (1.0 + 0.06 * s["eye_size"])
    lid = 0.062 * (1.0 + 0.09 * s["eye_size"]) * s["eye_open"]
    nose_y = 0.33 + 0.03 * s["nose_length"] + 0.3 * long
    nose_z = 0.93 + 0.04 * s["nose_height"]
    nose_half = 0.145 * (1.0 + 0.10 * s["nose_width"])
    mouth_y = 0.60 + 0.018 * s["mouth_height"] + 0.7 * long
    mouth_half = 0.225 * (1.0 + 0.07 * s["mouth_width"]) * (1.0 + 0.10 * smile - 0.12 * s["mouth_open"])
    thick = 1.0 + 0.16 * s["lip_thickness"]
    brow_y = -0.185 + 0.012 * s["brow_height"] - 0.045 * s["brow_raise"]
    chin_y = 0.85 + long + drop
    chin = 1.0 + 0.07 * s["chin_size"]
    ear = 1.0 + 0.07 * s["ear_size"]
    volume, length, fringe, bun = (s[f"hair_{n}"] for n in ("volume", "length", "fringe", "bun"))
    grow = 0.13 * volume
    shown = jnp.where(volume > 0.0, 1.0, 0.05)  # a bald head hides the rest of its hair inside

    bridge_y = (-0.10 + nose_y) / 2
    bridge_z = (0.60 + nose_z - 0.10) / 2 + 0.012 * s["nose_hook"]
    slope = jnp.arctan2(nose_z - 0.10 - 0.60, nose_y + 0.10)

    parts = {
        "cranium": Part((0.0, -0.26, -0.08), (0.67 * width, 0.73, 0.83 * depth), shadow=1.0),
        "face": Part((0.0, 0.16 + long / 2, 0.22), (0.555 * width, 0.76 + long / 2, 0.475), shadow=1.0),
        "jaw": Part((0.0, 0.54 + long + 0.5 * drop, 0.21), (0.475 * jaw_x, 0.40 + 0.5 * drop, 0.46), shadow=1.0),
        "chin": Part(
            (0.0, chin_y - 0.02, 0.47), (0.26 * chin * jaw_x, 0.175 * chin, 0.215 * chin), blend=0.16, shadow=1.0
        ),
        "muzzle": Part((0.0, 0.57 + long, 0.46), (0.30 * width, 0.30 + 0.4 * drop, 0.265), blend=0.16),
        "brow_ridge": Part((0.0, -0.15, 0.47 + 0.012 * s["brow_ridge"]), (0.47 * width, 0.15, 0.245), blend=0.12),
        "bridge": Part(
            (0.0, bridge_y, bridge_z),
            (0.068 + 0.2 * (nose_half - 0.145), 0.285, 0.10),
            tilt=slope,
            blend=0.07,
            shadow=0.4,
        ),
        "nose_tip": Part((0.0, nose_y, nose_z - 0.11), (0.62 * nose_half, 0.080, 0.11), blend=0.06, shadow=0.7),
        "columella": Part((0.0, nose_y + 0.02, nose_z - 0.24), (0.80 * nose_half, 0.085, 0.17), blend=0.08),
    }
    for side, sign in (("right", -1.0), ("left", 1.0)):
        parts |= {
            f"{side}_cheek": Part(
                (sign * 0.33 * width, 0.26 + 0.4 * long - 0.02 * smile, 0.40),
                (0.21, 0.20, 0.245 + 0.012 * s["cheeks"] + 0.02 * smile),
                blend=0.15,
            ),
            f"{side}_eye": Part((sign * eye[0], eye[1], 0.525), (0.165, 0.15, 0.155), blend=0.035),
            f"{side}_nostril": Part(
                (sign * 0.62 * nose_half, nose_y + 0.03, nose_z - 0.18), (0.40 * nose_half, 0.058, 0.095), blend=0.035
            ),
            f"{side}_ear": Part(
                (sign * 0.685 * width, 0.13, -0.07),
                (0.05, 0.205 * ear, 0.13 * ear),
                tilt=0.12,
                flare=-sign * (0.42 + 0.10 * s["ear_flare"]),
                blend=0.03,
            ),
        }
    parts |= {
        "upper_lip": Part(
            (0.0, mouth_y - 0.2 * opening - 0.028, 0.690), (0.68 * mouth_half, 0.036 * thick, 0.066), blend=0.03
        ),
        "lower_lip": Part(
            (0.0, mouth_y + 0.8 * opening + 0.036, 0.682), (0.60 * mouth_half, 0.042 * thick, 0.066), blend=0.03
        ),
        "neck": Part((0.0, 1.15, -0.16), (0.37 * (1 + 0.06 * s["neck_width"]), 1.0, 0.38), tilt=-0.12, blend=0.05),
        "hair": Part(
            (0.0, -0.28 - 0.45 * grow, -0.11 - 0.35 * grow),
            (0.68 * width + 0.5 * grow, 0.73 + 0.75 * grow, 0.84 * depth + 0.6 * grow),
            material=LOCKS,
            clipped=True,
            blend=0.1,
            shadow=0.4,
        ),
        "back_hair": Part(
            (0.0, -0.15 + 0.50 * length, -0.36 - 0.06 * length),
            (shown * (0.60 + 0.16 * length), shown * (0.55 + 0.60 * length), shown * (0.50 + 0.5 * grow)),
            material=LOCKS,
            blend=0.12,
        ),
        "fringe": Part(
            (0.10 * scene.flip * s["hair_part"], -0.66, 0.36),
            (0.48, 0.12 + 0.16 * fringe, 0.34 + 0.08 * fringe),
            tilt=-0.6,
            material=LOCKS,
            blend=0.12,
        ),
        "bun": Part((0.0, -0.55 - 0.4 * bun, -0.75), (0.34 * bun, 0.32 * bun, 0.32 * bun), material=LOCKS, blend=0.05),
    }
    tiny = jnp.where((fringe > 0.0) & (volume > 0.0), 1.0, 0.02)
    parts["fringe"] = parts["fringe"]._replace(radii=tuple(r * tiny for r in parts["fringe"].radii))
    tiny = jnp.where((bun > 0.0) & (volume > 0.0), 1.0, 0.02)
    parts["bun"] = parts["bun"]._replace(radii=tuple(r * tiny + 1e-3 for r in parts["bun"].radii))
    lock = jnp.where((length > 0.0) & (volume > 0.0), 1.0, 0.05)
    for side, sign in (("right", -1.0), ("left", 1.0)):
        parts[f"{side}_lock"] = Part(
            (sign * 0.56 * width, -0.05 + 0.45 * length, -0.14),
            (lock * (0.16 + 0.9 * grow), lock * (0.45 + 0.50 * length), lock * (0.30 + 0.08 * length)),
            material=LOCKS,
            blend=0.12,
        )
    parts["torso"] = Part((0.0, 2.50, -0.30), (1.50, 0.95, 0.62), material=CLOTH, blend=0.2)
    parts["collar"] = Part((0.0, 1.72, -0.22), (0.75, 0.27, 0.50), tilt=-0.15, material=CLOTH, blend=0.2)

    features = Features(
        eye=eye,
        eye_half=eye_half,
        lids=jnp.stack([lid, 0.6 * lid]),
        eye_tilt=0.010 * s["eye_tilt"] - 0.006,
        brow_inner=jnp.stack([0.105 * width, brow_y + 0.022 + 0.02 * s["brow_frown"]]),
        brow_outer=jnp.stack([0.46 * width, brow_y + 0.022 - 0.01 * s["brow_frown"]]),
        brow=jnp.stack([0.05 + 0.012 * s["brow_arch"], 0.028 * jnp.exp(0.2 * s["brow_thickness"])]),
        mouth_y=mouth_y,
        mouth_half=mouth_half,
        corner_y=-0.03 * smile + 0.25 * opening,
        gap=jnp.stack([0.2 * opening, 0.8 * opening]),
        lips=jnp.stack([0.052 * thick, 0.064 * thick]),
        nose_y=nose_y,
        nose_half=nose_half,
        nostril_z=nose_z - 0.12,
        jaw=jnp.stack([0.0 * long, 0.66 + long + 0.6 * drop, 0.22 + 0.0 * long]),
        ear=jnp.stack([0.685 * width, 0.13 + 0.0 * long, -0.07 + 0.0 * long]),
        hairline=0.045 * s["hair_hairline"],
    )
    return parts, features


def _ellipsoids(parts: dict) -> Ellipsoids:
    """Centres and forms of {name: Part}: form = R diag(1 / radii^2) R'."""

    def column(name):
        return jnp.stack([jnp.asarray(getattr(p, name), jnp.float32) for p in parts.values()])

    def triples(name):
        numbers = [jnp.asarray(x, jnp.float32) for p in parts.values() for x in getattr(p, name)]
        return jnp.stack(numbers).reshape(-1, 3)

    flare, tilt = jnp.rad2deg(column("flare")), jnp.rad2deg(column("tilt"))
    turn = jax.vmap(rotation)(flare, tilt, jnp.zeros_like(tilt))
    form = _dot(turn / jnp.square(triples("radii"))[:, None], jnp.swapaxes(turn, -1, -2))
    return Ellipsoids(triples("center"), form)


def _turn(solids: Ellipsoids, turn, about=0.0, move=0.0) -> Ellipsoids:
    center = _dot(solids.center - about, turn.T) + move
    return Ellipsoids(center, _dot(_dot(turn, solids.form), turn.T))


def _leave(center, form, x, y):
    """Where parallel rays along z at x, y [...] leave one ellipsoid towards the camera; -inf where they miss it.

    With d = (x, y) - center_xy, form = [[A, b], [b', c]]:  z = center_z - b.d / c + sqrt((b.d)^2 - c (d'Ad - 1)) / c.
    """
    x, y = x - center[0], y - center[1]
    c = form[2, 2]
    b = form[0, 2] * x + form[1, 2] * y
    rest = (form[0, 0] * x + 2.0 * form[0, 1] * y) * x + form[1, 1] * y * y - 1.0
    inside = b * b - c * rest
    z = center[2] + (jnp.sqrt(jnp.maximum(inside, 0.0)) - b) * (1.0 / c)
    return jnp.where(inside > 0.0, z, -jnp.inf)


def depth(solids: Ellipsoids, xy):
    """Depth of each of P ellipsoids at points `xy` [..., 2] of the view plane: [P, ...], -inf where the ray misses."""
    return jax.vmap(lambda center, form: _leave(center, form, xy[..., 0], xy[..., 1]))(*solids)


# The hairline: hair grows where HAIRLINE . p + wiggle < offset, that is above the forehead and behind the ears.
HAIRLINE = (0.0, 0.74, 0.67)


def _hairline(scene: Scene, features: Features, p):
    """Negative where hair grows; `p`: x, y, z [...] in head coordinates."""
    x, y, z = p
    x = x * scene.flip
    wave, part = (scene.hair[HAIR.index(name)] for name in ("wave", "part"))
    wiggle = 0.02 * _sin(9.0 * x + wave) + 0.05 * part * x + 0.28 * x * x
    return HAIRLINE[1] * y + HAIRLINE[2] * z + wiggle - 0.02 - features.hairline


class _World(NamedTuple):
    """A scene ready to be seen: everything in view coordinates (unit: half the head's height)."""

    solids: Ellipsoids
    traits: jax.Array  # [P, 4] material, blend, clipped, shadow of each part
    turn: jax.Array  # [3, 3] head to view
    body: jax.Array  # [3, 3] torso to view
    neck: jax.Array  # [3] the joint of head and torso, view coordinates
    features: Features


NECK = np.array([0.0, 1.25, -0.2], np.float32)


def _world(scene: Scene) -> _World:
    parts, features = _anatomy(scene)
    solids = _ellipsoids(parts)
    turn = rotation(scene.yaw, scene.pitch, scene.roll)
    # the torso follows the head halfway
    body = rotation(0.45 * scene.yaw, 0.0 * scene.pitch, 0.15 * scene.roll)
    neck = _dot(turn, jnp.asarray(NECK))
    first = list(parts).index("torso")
    head = _turn(jax.tree.map(lambda a: a[:first], solids), turn)
    rest = _turn(jax.tree.map(lambda a: a[first:], solids), body, jnp.asarray(NECK), neck)
    solids = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, rest)
    traits = np.array([[p.material, p.blend, p.clipped, p.shadow] for p in parts.values()], np.float32)
    return _World(solids, jnp.asarray(traits), turn, body, neck, features)


def _axes(matrix, x, y, z):
    """matrix @ (x, y, z), each [...], without a matrix product."""
    return tuple(matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] * z for i in range(3))


def _surfaces(scene: Scene, world: _World, x, y):
    """The front-most surface of all parts at x, y [...]: depth z [...] (-inf: none) and material [...] as a float.

    A loop over the parts, so that their depths never lie side by side in memory.
    """

    def add(carry, part):
        best, material = carry
        (center, form), (kind, _, clipped, _) = part
        z = _leave(center, form, x, y)
        p = _axes(world.turn.T, x, y, jnp.maximum(z, -9.0))
        bare = (clipped > 0.0) & (_hairline(scene, world.features, p) > 0.0)
        front = (z > best) & ~bare
        return (jnp.where(front, z, best), jnp.where(front, kind, material)), None

    start = jnp.full_like(x, -jnp.inf), jnp.zeros_like(x)
    return jax.lax.scan(add, start, (world.solids, world.traits))[0]


def landmarks_3d(scene: Scene):
    """The 20 landmarks on the skin, [20, 3] in head coordinates (x right, y down, z to the front of the head)."""
    parts, f = _anatomy(scene)
    skin = {name: part for name, part in parts.items() if part.material == SKIN and not name.endswith("ear")}
    solids = _ellipsoids(skin)

    def paired(right):  # points on the person's left, [n, 2], and the same on the right
        return right * jnp.array([-1.0, 1.0], jnp.float32), right

    brow_right, brow_left = paired(jnp.stack([f.brow_outer, f.brow_inner]))
    tilt = jnp.stack([f.eye_half, f.eye_tilt])
    eye_right, eye_left = paired(jnp.stack([f.eye + tilt, f.eye - tilt]))
    nostril_right, nostril_left = paired(jnp.stack([0.96 * f.nose_half, f.nose_y + 0.03])[None])
    mouth_right, mouth_left = paired(jnp.stack([f.mouth_half, f.mouth_y + f.corner_y])[None])
    zero = jnp.zeros_like(f.mouth_y)
    middle = jnp.stack(
        [
            jnp.stack([zero, f.mouth_y - f.gap[0] - f.lips[0]]),
            jnp.stack([zero, f.mouth_y + f.gap[1] + f.lips[1]]),
            jnp.stack([zero, parts["chin"].center[1] + 0.55 * parts["chin"].radii[1]]),
        ]
    )
    tip = jnp.stack([zero, f.nose_y])[None]
    front = [brow_right, brow_left[::-1], eye_right, eye_left[::-1], tip, nostril_right, nostril_left]
    xy = jnp.concatenate([*front, mouth_right, mouth_left, middle])
    z = jnp.max(depth(solids, xy), 0)
    front = jnp.concatenate([xy, z[:, None]], -1)

    # jaw: the surface seen from a point inside, along a ray to the side and a little to the front
    side = rotation(jnp.float32(-68.0), jnp.float32(0.0), jnp.float32(0.0))
    view = _turn(solids, side, f.jaw)
    reach = jnp.max(depth(view, jnp.zeros(2, jnp.float32)))
    jaw = f.jaw + reach * side[2]  # the ray (0, 0, 1) of the turned view, in head coordinates
    # ear: the middle of its outer face
    ear = _ellipsoids({"ear": parts["left_ear"]})
    turned = jnp.stack([jnp.cos(parts["left_ear"].flare), 0.0, -jnp.sin(parts["left_ear"].flare)])
    lobe = ear.center[0] + turned / jnp.sqrt(_dot(turned, _dot(ear.form[0], turned)))
    flip = jnp.array([-1.0, 1.0, 1.0], jnp.float32)
    return jnp.concatenate([front, jnp.stack([jaw * flip, jaw, lobe * flip, lobe])])


class _Shaded(NamedTuple):
    normal: tuple  # nx, ny, nz [...]: unit normals averaged over joints
    shadow: jax.Array  # [...] 0 lit, 1 in the shadow of another part


def _shade(world: _World, p, material, light) -> _Shaded:
    """Normals and cast shadows at surface points `p` (x, y, z in view coordinates), `material` [...] of each point.

    For one ellipsoid: half the gradient g = form (p - center), value F = (p - center).g, distance about (F - 1) / 2|g|,
    and a ray from p towards the light L passes it at the squared distance F - (g.L)^2 / (L'form L) (ellipsoid: 1).
    """

    def add(carry, part):
        *total, left = carry
        (center, form), (kind, blend, _, dark) = part
        d = tuple(a - c for a, c in zip(p, center))
        g = _axes(form, *d)
        value = g[0] * d[0] + g[1] * d[1] + g[2] * d[2]
        inverse = jax.lax.rsqrt(g[0] * g[0] + g[1] * g[1] + g[2] * g[2] + 1e-12)
        distance = 0.5 * (value - 1.0) * inverse
        near = jnp.maximum(1.0 - jnp.abs(distance) * (1.0 / blend), 0.0)
        weight = jnp.where(material == kind, near * near * inverse, 0.0)
        towards = g[0] * light[0] + g[1] * light[1] + g[2] * light[2]
        passing = value - towards * towards * (1.0 / _dot(light, _dot(form, light)))
        # soft at its edge, and none at points on the part itself
        cast = _step(1.05, 0.65, passing) * _step(0.0, -0.15, towards * inverse) * _step(0.02, 0.10, distance)
        return (*(t + weight * a for t, a in zip(total, g)), left * (1.0 - dark * cast)), None

    start = (*(jnp.zeros_like(p[0]),) * 3, jnp.ones_like(p[0]))
    (*total, left), _ = jax.lax.scan(add, start, (world.solids, world.traits))
    inverse = jax.lax.rsqrt(total[0] ** 2 + total[1] ** 2 + total[2] ** 2 + 1e-12)
    return _Shaded(tuple(t * inverse for t in total), 1.0 - left)


def _paint(base, color, amount):
    """Three channels [...] mixed with a colour [3] (or channels) by `amount` [...]."""
    return tuple(_mix(b, c, amount) for b, c in zip(base, color))


def _wave(p, frequency, seed):
    """Smooth pseudo-random values about in [-1, 1] at x, y, z [...]: sines in directions drawn once from `seed`."""
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(3):
        k = rng.normal(size=3)
        k, start = frequency * k / np.linalg.norm(k), float(rng.uniform(0.0, 2.0 * np.pi))
        total = total + _sin(float(k[0]) * p[0] + float(k[1]) * p[1] + float(k[2]) * p[2] + start)
    return total / 2.0


def _face(scene: Scene, f: Features, p):
    """Skin with all that is painted on it. `p`: x, y, z [...] in head coordinates.

    Returns its colour (three channels), gloss, and the light that the eyes reflect, each [...].
    """
    x, y, z = p
    x, at = x * scene.flip, p
    skin, lips, locks, iris = (tuple(scene.colors[i]) for i in range(4))
    gaze_x, gaze_y = (scene.expression[EXPRESSION.index(n)] for n in ("gaze_x", "gaze_y"))
    beard, volume = scene.hair[HAIR.index("beard")], scene.hair[HAIR.index("volume")]
    front = _step(0.25, 0.40, z)
    side = jnp.abs(x)

    mottle = 1.0 + 0.05 * _wave((x, y, z), 9.0, 1) + 0.03 * _wave((x, y, z), 31.0, 2)
    color = tuple(c * mottle for c in skin)
    # red cheeks, nose and ears; shade under the chin
    blush = jnp.exp(-(((side - 0.36) / 0.16) ** 2 + ((y - 0.30) / 0.15) ** 2)) * front
    blush = blush + 0.8 * jnp.exp(-((x / 0.10) ** 2 + ((y - f.nose_y) / 0.08) ** 2)) * front
    color = _paint(color, tuple(c * t for c, t in zip(skin, (1.0, 0.68, 0.66))), 0.55 * jnp.minimum(blush, 1.0))
    # dark in the eye's socket next to the nose, and along the fold from nose to mouth
    socket = jnp.exp(-(((side - 0.15) / 0.06) ** 2 + ((y + 0.03) / 0.07) ** 2)) * front
    lid = jnp.exp(-(((side - f.eye[0]) / 0.16) ** 2 + ((y - f.eye[1] + 0.075) / 0.04) ** 2)) * front
    fold_y = jnp.clip((y - f.nose_y) / 0.30, 0.0, 1.0)
    fold = jnp.exp(-(((side - f.nose_half - 0.03 - 0.11 * fold_y) / 0.022) ** 2)) * front * _step(0.0, 0.25, fold_y)
    fold = fold * _step(1.0, 0.6, fold_y)
    below = jnp.exp(-((x / 0.13) ** 2 + ((y - f.mouth_y - f.gap[1] - f.lips[1] - 0.045) / 0.035) ** 2)) * front
    shade = 1.0 - 0.30 * socket - 0.20 * lid - 0.22 * fold - 0.20 * below
    under = _step(0.80, 1.0, y) * _step(0.62, 0.40, z) * _step(1.75, 1.1, y)
    shade = shade * (1.0 - 0.45 * under)
    # the ear's bowl
    flare = 0.45
    ex, ey, ez = side - f.ear[0], y - f.ear[1], z - f.ear[2]
    ez = ez * float(np.cos(flare)) - ex * float(np.sin(flare))
    at_ear = _step(-0.05, -0.01, ex + 0.3 * ez)
    bowl = jnp.exp(-((((ez - 0.02) / 0.055) ** 2 + ((ey - 0.03) / 0.085) ** 2) ** 2))
    bowl = bowl + 0.7 * jnp.exp(-((((ez + 0.01) / 0.085) ** 2 + ((ey + 0.075) / 0.045) ** 2) ** 2))
    shade = shade * (1.0 - 0.55 * at_ear * jnp.minimum(bowl, 1.0))
    color = tuple(c * shade for c in color)

    # beard and the roots of the hair
    beard_at = _step(0.0, 0.10, y - f.mouth_y + 0.13 - 0.25 * jnp.maximum(side - 0.30, 0.0))
    beard_at = beard_at * _step(0.16, 0.02, y - f.mouth_y - 0.40 - 0.35 * jnp.minimum(z - 0.4, 0.0))
    beard_at = beard_at * _step(-0.10, 0.06, z)
    color = _paint(color, locks, 0.85 * beard * beard_at * (1.0 + 0.1 * _wave((x, y, z), 45.0, 3)))
    scalp = _step(0.02, -0.05, _hairline(scene, f, at)) * _step(0.0, 0.1, volume)
    color = _paint(color, locks, 0.9 * scalp)

    # nostrils
    nostril = ((side - 0.42 * f.nose_half) / 0.036) ** 2 + ((y - f.nose_y - 0.075) / 0.024) ** 2
    nostril = nostril + ((z - f.nostril_z) / 0.085) ** 2
    color = _paint(color, tuple(0.12 * c for c in skin), 0.9 * _step(1.5, 0.6, nostril))

    # brows: a bow from the inner to the outer end
    t = (side - f.brow_inner[0]) / (f.brow_outer[0] - f.brow_inner[0])
    middle = _mix(f.brow_inner[1], f.brow_outer[1], t) - f.brow[0] * 3.2 * t * (1.0 - t) * (0.6 + 0.8 * t)
    half = f.brow[1] * (1.0 - 0.55 * jnp.clip(t, 0.0, 1.0))
    brow = _step(1.5, 0.5, jnp.abs(y - middle) / half) * _step(-0.05, 0.04, t) * _step(1.05, 0.96, t) * front
    color = _paint(color, tuple(0.7 * c for c in locks), 0.88 * brow * (1.0 + 0.12 * _wave((x, y, z), 60.0, 4)))

    # eyes: an almond between two parabolas, with white, iris, pupil, lashes and the light's reflection
    u = (side - f.eye[0]) / f.eye_half
    bow = 1.0 - u * u
    axis = f.eye[1] + f.eye_tilt * u
    top = axis - f.lids[0] * bow * (1.0 + 0.15 * u)
    bottom = axis + f.lids[1] * bow
    in_eye = _step(-0.008, 0.010, jnp.minimum(y - top, bottom - y)) * _step(1.04, 0.96, jnp.abs(u)) * front
    look = 0.045 * gaze_x * jnp.sign(x)
    radius = jnp.sqrt((side - f.eye[0] - look) ** 2 + (y - f.eye[1] + 0.008 - 0.02 * gaze_y) ** 2 + 1e-9)
    white = tuple(c * (0.62 + 0.30 * bow) for c in (0.86, 0.82, 0.79))
    ball = _paint(white, iris, _step(0.066, 0.054, radius))
    ball = _paint(
        ball,
        tuple(0.25 * c for c in iris),
        _step(0.034, 0.024, radius) + 0.6 * jnp.exp(-(((radius - 0.060) / 0.008) ** 2)),
    )
    ball = tuple(b * (1.0 - 0.45 * _step(0.03, 0.0, y - top)) for b in ball)
    color = _paint(color, ball, in_eye)
    lash = jnp.exp(-(((y - top) / 0.013) ** 2)) * _step(1.12, 0.98, jnp.abs(u)) * front
    lash = lash + 0.35 * jnp.exp(-(((y - bottom) / 0.010) ** 2)) * _step(1.05, 0.9, jnp.abs(u)) * front
    color = _paint(color, tuple(0.12 * c for c in skin), 0.8 * jnp.minimum(lash, 1.0))
    crease = jnp.exp(-(((y - top + 0.032) / 0.012) ** 2)) * _step(1.1, 0.8, jnp.abs(u)) * front
    color = tuple(c * (1.0 - 0.28 * crease) for c in color)

    # mouth: lips above and below the gap; in it teeth over darkness
    v = x / f.mouth_half
    bow = jnp.maximum(1.0 - v * v, 0.0)
    line = f.mouth_y + f.corner_y * v * v
    high, low = line - f.gap[0] * bow, line + f.gap[1] * bow
    cupid = 1.0 - 0.22 * jnp.exp(-((v / 0.16) ** 2))
    top = high - f.lips[0] * jnp.sqrt(bow) * (0.35 + 0.65 * bow) * cupid
    bottom = low + f.lips[1] * jnp.sqrt(bow)
    at_mouth = _step(1.06, 0.97, jnp.abs(v)) * front
    in_lips = _step(-0.006, 0.012, jnp.minimum(y - top, bottom - y)) * at_mouth
    upper = _step(0.012, -0.006, y - line)
    color = _paint(color, tuple(c * (1.0 - 0.22 * upper) for c in lips), 0.9 * in_lips)
    gap = jnp.minimum(y - high, low - y)
    in_gap = _step(-0.010, 0.008, gap) * at_mouth
    teeth = _step(0.010, 0.020, gap) * _step(0.075, 0.055, y - high) * _step(0.9, 0.7, jnp.abs(v))
    inside = _paint((0.035, 0.010, 0.010), (0.62, 0.58, 0.52), teeth)
    color = _paint(color, inside, in_gap)
    gloss = 0.16 + 0.5 * in_eye + 0.12 * in_lips - 0.14 * scalp - 0.14 * in_gap
    glint = jnp.exp(
        -(((side - f.eye[0] - look + 0.018 * jnp.sign(x)) / 0.012) ** 2 + ((y - f.eye[1] + 0.030) / 0.012) ** 2)
    )
    return color, gloss, 0.9 * glint * in_eye


def _locks(scene: Scene, p):
    x, y, z = p
    x = x * scene.flip
    locks = tuple(scene.colors[2])
    wave = scene.hair[HAIR.index("wave")]
    # strands fall from the crown along meridians; `around` is their angle, as on a square's rim
    back = z + 0.15
    around = x / (jnp.abs(x) + jnp.abs(back) + 0.05)
    around = jnp.where(back > 0.0, around, 2.0 - around) + 0.05 * _sin(7.0 * y + wave)
    strand = 0.6 * _sin(26.0 * around + wave) + 0.4 * _sin(61.0 * around + 3.0 * _sin(4.0 * y))
    strand = 0.20 * strand + 0.12 * _wave((x, 0.4 * y, z), 30.0, 5)
    return tuple(c * (1.0 + strand) + 0.004 for c in locks)


def _cloth(scene: Scene, p):
    x, y, z = p
    x = x * scene.flip
    stripes = scene.hair[HAIR.index("stripes")]
    pattern = jnp.where(stripes > 0.0, _step(-0.2, 0.2, _sin(stripes * (y + 0.25 * _sin(2.0 * x)))), 0.0)
    color = _paint(tuple(scene.colors[4]), tuple(scene.colors[5]), pattern)
    fold = 1.0 + 0.10 * _wave((x, 0.4 * y, z), 11.0, 6)
    return tuple(c * fold for c in color)


def _interpolation(size: int, cells: int) -> np.ndarray:
    """[size, cells + 1] weights that read a grid at the pixels of an image, smooth between the grid's points."""
    at = (np.arange(size) + 0.5) / size * cells
    low = np.minimum(at.astype(int), cells - 1)
    t = at - low
    t = t * t * (3.0 - 2.0 * t)
    weights = np.zeros((size, cells + 1), np.float32)
    weights[np.arange(size), low] = 1.0 - t
    weights[np.arange(size), low + 1] += t
    return weights


def _background(scene: Scene, size: int):
    """[size, size, 3] linear RGB: a gradient, noise in four octaves and shapes; some have the colours of a head."""
    line = ((jnp.arange(size, dtype=jnp.float32) + 0.5) * (2.0 / size)) - 1.0
    x, y = jnp.meshgrid(line, line)
    (dx, dy, contrast), ends = scene.gradient[2], scene.gradient[:2]
    t = _step(-1.2, 1.2, dx * x + dy * y)[..., None]
    color = _mix(ends[0], ends[1], t)

    def cover(color, shape):
        cx, cy, wide, high, angle, power, edge, stripes, shade = shape[:9]
        u = ((x - cx) * jnp.cos(angle) + (y - cy) * jnp.sin(angle)) * (1.0 / wide)
        v = ((y - cy) * jnp.cos(angle) - (x - cx) * jnp.sin(angle)) * (1.0 / high)
        r = jnp.where(power > 5.0, jnp.maximum(jnp.abs(u), jnp.abs(v)), jnp.sqrt(u * u + v * v + 1e-9))
        amount = 0.92 * _step(1.0 + edge, 1.0 - edge, r)
        tone = 1.0 + 0.35 * _sin(stripes * u) - 0.6 * shade * _step(-1.0, 1.0, u + 0.5 * v)
        return _mix(color, shape[9:] * tone[..., None], amount[..., None]), None

    color, _ = jax.lax.scan(cover, color, scene.clutter)
    noise = 0.0
    for cells, grid in zip(OCTAVES, scene.noise):
        weights = jnp.asarray(_interpolation(size, cells))
        rows = _dot(weights, grid.reshape(cells + 1, -1)).reshape(size, cells + 1, 3)
        noise = noise + (cells / OCTAVES[0]) ** -0.45 * _dot(weights, rows)
    color = color * jnp.exp(0.34 * contrast * noise)
    return jnp.where(scene.flip < 0.0, color[:, ::-1], color)


def _to_head(scene: Scene, x, y, size: int):
    """Pixels x, y [...] to view coordinates (unit: half the head's height)."""
    unit = 1.0 / (HEAD_SCALE * scene.size)
    return tuple(((a + 0.5) * (2.0 / size) - 1.0 - 2.0 * s) * unit for a, s in zip((x, y), scene.shift))


def _to_pixels(scene: Scene, x, y, size: int):
    """Inverse of `_to_head`."""
    unit = HEAD_SCALE * scene.size
    return tuple((a * unit + 2.0 * s + 1.0) * (size / 2.0) - 0.5 for a, s in zip((x, y), scene.shift))


def render(scene: Scene, size: int):
    """Pictures one scene; jit with `size` static, vmap over scenes.

    Args:
        scene: one `Scene` (no batch axis).
        size: side of the image in pixels.
    Returns:
        image [size, size, 3] uint8, the mean of 2 x 2 rays a pixel;
        landmarks [20, 2] float32, pixels (x, y), centres at integers, in the order of `LANDMARKS`;
        visible [20] bool: nothing lies in front of the landmark and its surface is not turned away.
    """
    world = _world(scene)
    return _picture(scene, world, size), *_annotation(scene, world, size)


def _picture(scene: Scene, world: _World, size: int):
    """The image [size, size, 3] uint8."""
    line = jnp.arange(size, dtype=jnp.float32)
    x, y = jnp.meshgrid(line, line)

    def ray(carry, offset):
        color, cover = carry
        more, hit = _trace(scene, world, *_to_head(scene, x + offset[0], y + offset[1], size))
        return (tuple(a + b for a, b in zip(color, more)), cover + hit), None

    # four rays a pixel, one after the other: so all that a ray needs stays in a CPU's cache
    start = ((jnp.zeros_like(x),) * 3, jnp.zeros_like(x))
    (color, cover), _ = jax.lax.scan(ray, start, 0.25 * jnp.array([[-1.0, -1], [1, -1], [-1, 1], [1, 1]], jnp.float32))
    image = 0.25 * jnp.stack(color, -1) + (1.0 - 0.25 * cover)[..., None] * _background(scene, size)
    # gamma 2.2, by exp and log because a power is not vectorised on CPUs
    image = jnp.exp(jnp.log(jnp.clip(image, 1e-6, 1.0)) * (1.0 / 2.2))
    return jnp.round(255.0 * image).astype(jnp.uint8)


def _annotation(scene: Scene, world: _World, size):
    """Landmarks [20, 2] in pixels and whether they are visible [20]; `size` may be traced."""
    points = landmarks_3d(scene)
    px, py, pz = _axes(world.turn, points[:, 0], points[:, 1], points[:, 2])
    front, _ = _surfaces(scene, world, px, py)
    normal = _shade(world, (px, py, pz), jnp.full(px.shape, SKIN), scene.light).normal
    # on the outline, where the normal is at right angles to the view, a point is still seen
    visible = (pz > front - 0.03) & (normal[2] > -0.15)
    return jnp.stack(_to_pixels(scene, px, py, size), -1), visible


def _trace(scene: Scene, world: _World, x, y):
    """Light that comes from the head along rays at x, y [...]: linear RGB channels (0 for a miss) and hit [...]."""
    z, material = _surfaces(scene, world, x, y)
    hit = jnp.isfinite(z)
    z = jnp.where(hit, z, 0.0)
    view = (x, y, z)
    shaded = _shade(world, view, material, scene.light)
    head = _axes(world.turn.T, *view)
    torso = _axes(world.body.T, *(a - n for a, n in zip(view, world.neck)))

    skin, gloss, glint = _face(scene, world.features, head)
    is_skin, is_hair = material == SKIN, material == LOCKS
    color = tuple(
        jnp.where(is_skin, a, jnp.where(is_hair, b, c))
        for a, b, c in zip(skin, _locks(scene, head), _cloth(scene, torso))
    )
    gloss = jnp.where(is_skin, gloss, 0.10 * is_hair.astype(x.dtype))
    glint = jnp.where(is_skin, glint, 0.0)

    nx, ny, nz = shaded.normal
    light = scene.light
    facing = nx * light[0] + ny * light[1] + nz * light[2]
    # light goes a little round skin's edges; light from above fills shadows
    diffuse = jnp.maximum(facing + 0.15, 0.0) / 1.15 * (1.0 - 0.75 * shaded.shadow)
    fill = (0.80 - 0.30 * ny) * (0.75 + 0.25 * jnp.maximum(nz, 0.0))
    half = light + jnp.array([0.0, 0.0, 1.0], jnp.float32)
    half = half * jax.lax.rsqrt(jnp.sum(half * half))
    shine = jnp.maximum(nx * half[0] + ny * half[1] + nz * half[2], 0.0)
    shine = gloss * (shine**2) ** 10 * (1.0 - shaded.shadow)
    rgb = []
    for c in range(3):
        bright = diffuse * scene.light_color[c] + fill * scene.ambient[c]
        rgb.append(jnp.where(hit, color[c] * bright + 0.5 * shine * scene.light_color[c] + glint, 0.0))
    return tuple(rgb), hit.astype(x.dtype)


SPEC = DatasetSpec("synthetic", len(LANDMARKS), "box", mirror=MIRROR, landmark_names=LANDMARKS, splits=tuple(SPLITS))


def row_keys(seed: int, split: str, rows):
    """Random keys of the examples `rows` [B]: each a function of seed, split and its own row number alone."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), list(SPLITS).index(split))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


@jax.jit
def _prepare(keys, pose, size):
    """All that is computed once a scene: scene, world, landmarks, visible, angles; each with a leading axis [B]."""

    def one(key):
        scene = sample_scene(key, **pose)
        world = _world(scene)
        return scene, world, *_annotation(scene, world, size), jnp.stack([scene.yaw, scene.pitch, scene.roll])

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnames="size")
def _pictures(scenes, worlds, *, size):
    """Images [B, size, size, 3]."""
    return jax.vmap(lambda scene, world: _picture(scene, world, size))(scenes, worlds)


@functools.lru_cache(maxsize=8)
def _programs(chunk: int, size: int):
    """`_prepare` and `_pictures` compiled for `chunk` scenes: two programs, because two cores compile them at once."""
    keys = row_keys(0, "train", np.zeros(chunk, np.uint32))
    first = _prepare.lower(keys, {name: np.float32(0) for name in POSE}, np.float32(size))
    scenes, worlds, *_ = first.out_info
    # the first is a thousand small operations and a thousandth of the run time: optimising it costs more than it saves
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    with ThreadPoolExecutor(1) as pool:
        draw = pool.submit(_pictures.lower(scenes, worlds, size=size).compile)
        return first.compile(compiler_options=quick), draw.result()


class Synthetic(Source):
    """One split of the built-in data set; see `specs.Source`.

    Pictures are rendered once, at the first use of an image, landmark or column, and kept in memory. Row i depends on
    seed, split and i alone: more rows leave the first ones as they are. `columns` has yaw, pitch and roll in degrees.

    Args:
      split: `train` or `test`.
      rows: number of images; by default 2,000 for train and 500 for test.
      seed: another seed gives other heads.
      frame_size: F, side of the images in pixels.
      **pose: `yaw`, `pitch`, `roll`, `shift`, `size` of `sample_scene`.

    Raises:
      UserError: an unknown split or option, or sizes that are not positive.

    >>> source = Synthetic("test", rows=2, frame_size=16)
    >>> len(source), source.names[1], source.image(0).shape, source.spec.protocol
    (2, 'test/000001.png', (16, 16, 3), 'synthetic_20_box')
    """

    def __init__(self, split: str = "train", rows: int | None = None, seed: int = 0, frame_size: int = 80, **pose):
        if split not in SPLITS:
            raise UserError(f"the data set synthetic has no split {split!r}; use one of {', '.join(SPLITS)}")
        rows = SPLITS[split] if rows is None else int(rows)
        for name, value in (("data.rows", rows), ("data.frame_size", frame_size)):
            if value < 1:
                raise UserError(f"{name} is {value}; use a number above 0")
        unknown = sorted(set(pose) - set(POSE))
        if unknown:
            raise UserError(
                f"the data set synthetic has no option {unknown[0]!r}; its options are rows, seed, {', '.join(POSE)}"
            )
        self.spec, self.split, self.seed, self.frame_size = SPEC, split, seed, frame_size
        self.names = [f"{split}/{row:06d}.png" for row in range(rows)]
        self.frame_maps = np.tile(np.array([1.0, 1.0, 0.0, 0.0]), (rows, 1))
        self.file_sizes = np.full((rows, 2), frame_size, np.int32)
        self._pose = {name: float(pose.get(name, default)) for name, default in POSE.items()}
        self.fingerprint = fingerprint_of("synthetic", VERSION, split, rows, seed, frame_size, self._pose)
        self._rendered, self._lock = None, threading.Lock()

    def _all(self):
        """images [N,F,F,3] uint8, landmarks [N,20,2] float32, visible [N,20] bool, angles [N,3] float32."""
        with self._lock:
            if self._rendered is None:
                self._rendered = self._render()
            return self._rendered

    def _render(self):
        # Chunks of one size, so that there is one program: small to stay in a CPU's cache, large for accelerators.
        chunk = 16 if jax.default_backend() == "cpu" else 64
        total = len(self)
        keys = row_keys(self.seed, self.split, np.arange(-(-total // chunk) * chunk, dtype=np.uint32))
        keys = keys.reshape(-1, chunk)
        pose, size = {name: np.float32(value) for name, value in self._pose.items()}, np.float32(self.frame_size)

        prepare, draw = _programs(chunk, self.frame_size)
        prepared = [prepare(k, pose, size) for k in keys]
        # Two chunks at a time: a chunk alone does not keep several cores busy.
        with ThreadPoolExecutor(2) as pool:
            images = list(pool.map(lambda p: np.asarray(draw(*p[:2])), prepared))
        landmarks, visible, angles = (np.concatenate(a)[:total] for a in zip(*(p[2:] for p in prepared), strict=True))
        return np.concatenate(images)[:total], landmarks, visible, angles

    def image(self, row: int) -> np.ndarray:
        return self._all()[0][row]

    def images(self, rows: Iterable[int] | None = None) -> np.ndarray:
        images = self._all()[0]
        return images.copy() if rows is None else images[np.asarray(list(rows), np.int64)]

    @property
    def landmarks(self) -> np.ndarray:
        return self._all()[1]

    @property
    def visible(self) -> np.ndarray:
        return self._all()[2]

    @property
    def columns(self) -> dict[str, list[str]]:
        angles = self._all()[3]
        return {name: [f"{a:.3f}" for a in angles[:, i]] for i, name in enumerate(("yaw", "pitch", "roll"))}

    def __getstate__(self):
        # a worker process gets the pictures, so that it need not start JAX
        self._all()
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())


def export(data_dir, *, rows: dict[str, int] | None = None, seed: int = 0, frame_size: int = 80, **pose) -> None:
    """Writes the data set as a folder that `dataset=folder` reads: PNG files, train.csv and test.csv.

    The csv columns are file, yaw, pitch, roll (degrees), x0, y0, ..., x19, y19 (pixels) and visible0, ..., visible19
    (0 or 1; hidden points have coordinates too).

    Args:
      data_dir: folder to write, local or gs://; made if missing.
      rows: images of each split, `{"train": 2000, "test": 500}` by default; a split left out is not written.
      seed, frame_size, **pose: as in `Synthetic`.
    """
    root = epath.Path(data_dir)
    count = len(LANDMARKS)
    header = ["file", "yaw", "pitch", "roll", *(f"{axis}{i}" for i in range(count) for axis in "xy")]
    header += [f"visible{i}" for i in range(count)]
    for split, number in (SPLITS if rows is None else rows).items():
        source = Synthetic(split, number, seed, frame_size, **pose)
        (root / split).mkdir(parents=True, exist_ok=True)
        for row, name in enumerate(source.names):
            (root / name).write_bytes(source.encoded(row))
        angles = zip(*source.columns.values(), strict=True)
        with (root / f"{split}.csv").open("w") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(header)
            for name, turn, xy, seen in zip(source.names, angles, source.landmarks, source.visible, strict=True):
                out.writerow([name, *turn, *(f"{v:.3f}" for v in xy.ravel()), *seen.astype(int)])

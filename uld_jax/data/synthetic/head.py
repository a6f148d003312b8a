"""The head's geometry: a union of ellipsoids, its intersection with rays, and its landmarks."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.data.synthetic.maths import axes, dot, rotation, sin
from uld_jax.data.synthetic.scene import EXPRESSION, HAIR, SHAPE, Scene

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
SKIN, LOCKS, CLOTH = range(3)


class Ellipsoids(NamedTuple):
    """P ellipsoids (p - center)' form (p - center) = 1 in one coordinate system."""

    center: jax.Array  # [P, 3]
    form: jax.Array  # [P, 3, 3] symmetric, positive definite


class Part(NamedTuple):
    """One ellipsoid of the head. `tilt` turns it about x (positive: its top leans back), `flare` about y."""

    center: tuple
    radii: tuple
    tilt: float = 0.0
    flare: float = 0.0
    material: int = SKIN
    blend: float = 0.07  # distance to which its normals reach over a joint
    clipped: bool = False  # hair that ends at the hairline
    shadow: float = 0.0  # darkness of its cast shadow, 0 to 1


def _named(scene: Scene):
    pairs = [*zip(SHAPE, scene.shape), *zip(EXPRESSION, scene.expression)]
    pairs += [*zip((f"hair_{name}" for name in HAIR), scene.hair)]
    return dict(pairs)


class Features(NamedTuple):
    """Positions of the painted features in head coordinates; of paired features, those on the person's left (x > 0)."""

    eye: jax.Array  # [2] centre
    eye_half: jax.Array  # [] half width
    lids: jax.Array  # [2] upper and lower opening
    eye_tilt: jax.Array
    brow_inner: jax.Array  # [2]
    brow_outer: jax.Array  # [2]
    brow: jax.Array  # [2] arch, half thickness
    mouth_y: jax.Array
    mouth_half: jax.Array
    corner_y: jax.Array  # y of the mouth's corners, relative to mouth_y
    gap: jax.Array  # [2] rise of the upper lip's lower edge and fall of the lower lip's upper edge
    lips: jax.Array  # [2] thickness of the upper and the lower lip
    nose_y: jax.Array  # y of the nose's tip
    nose_half: jax.Array  # half width at the nostrils
    nostril_z: jax.Array
    jaw: jax.Array  # [3] a point inside the head, beside the jaw landmark
    ear: jax.Array  # [3] centre
    hairline: jax.Array  # [] offset


def _sizes(scene: Scene) -> types.SimpleNamespace:
    """Compute sizes and positions that parts share, in head coordinates; `s` holds the scene's named coefficients."""
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
    return types.SimpleNamespace(
        s=s,
        width=width,
        depth=depth,
        long=long,
        opening=opening,
        drop=drop,
        jaw_x=jaw_x,
        smile=smile,
        eye=eye,
        eye_half=eye_half,
        lid=lid,
        nose_y=nose_y,
        nose_z=nose_z,
        nose_half=nose_half,
        mouth_y=mouth_y,
        mouth_half=mouth_half,
        thick=thick,
        brow_y=brow_y,
        chin_y=chin_y,
        chin=chin,
        ear=ear,
    )


def _face(m) -> dict[str, Part]:
    """Make the parts of the face and its sides from `_sizes`."""
    s = m.s
    bridge_y = (-0.10 + m.nose_y) / 2
    bridge_z = (0.60 + m.nose_z - 0.10) / 2 + 0.012 * s["nose_hook"]
    slope = jnp.arctan2(m.nose_z - 0.10 - 0.60, m.nose_y + 0.10)

    parts = {
        "cranium": Part((0.0, -0.26, -0.08), (0.67 * m.width, 0.73, 0.83 * m.depth), shadow=1.0),
        "face": Part((0.0, 0.16 + m.long / 2, 0.22), (0.555 * m.width, 0.76 + m.long / 2, 0.475), shadow=1.0),
        "jaw": Part(
            (0.0, 0.54 + m.long + 0.5 * m.drop, 0.21), (0.475 * m.jaw_x, 0.40 + 0.5 * m.drop, 0.46), shadow=1.0
        ),
        "chin": Part(
            (0.0, m.chin_y - 0.02, 0.47),
            (0.26 * m.chin * m.jaw_x, 0.175 * m.chin, 0.215 * m.chin),
            blend=0.16,
            shadow=1.0,
        ),
        "muzzle": Part((0.0, 0.57 + m.long, 0.46), (0.30 * m.width, 0.30 + 0.4 * m.drop, 0.265), blend=0.16),
        "brow_ridge": Part((0.0, -0.15, 0.47 + 0.012 * s["brow_ridge"]), (0.47 * m.width, 0.15, 0.245), blend=0.12),
        "bridge": Part(
            (0.0, bridge_y, bridge_z),
            (0.068 + 0.2 * (m.nose_half - 0.145), 0.285, 0.10),
            tilt=slope,
            blend=0.07,
            shadow=0.4,
        ),
        "nose_tip": Part((0.0, m.nose_y, m.nose_z - 0.11), (0.62 * m.nose_half, 0.080, 0.11), blend=0.06, shadow=0.7),
        "columella": Part((0.0, m.nose_y + 0.02, m.nose_z - 0.24), (0.80 * m.nose_half, 0.085, 0.17), blend=0.08),
    }
    for side, sign in (("right", -1.0), ("left", 1.0)):
        parts |= {
            f"{side}_cheek": Part(
                (sign * 0.33 * m.width, 0.26 + 0.4 * m.long - 0.02 * m.smile, 0.40),
                (0.21, 0.20, 0.245 + 0.012 * s["cheeks"] + 0.02 * m.smile),
                blend=0.15,
            ),
            f"{side}_eye": Part((sign * m.eye[0], m.eye[1], 0.525), (0.165, 0.15, 0.155), blend=0.035),
            f"{side}_nostril": Part(
                (sign * 0.62 * m.nose_half, m.nose_y + 0.03, m.nose_z - 0.18),
                (0.40 * m.nose_half, 0.058, 0.095),
                blend=0.035,
            ),
            f"{side}_ear": Part(
                (sign * 0.685 * m.width, 0.13, -0.07),
                (0.05, 0.205 * m.ear, 0.13 * m.ear),
                tilt=0.12,
                flare=-sign * (0.42 + 0.10 * s["ear_flare"]),
                blend=0.03,
            ),
        }
    return parts


def _lips_and_neck(m) -> dict[str, Part]:
    """Make the lips and the neck."""
    return {
        "upper_lip": Part(
            (0.0, m.mouth_y - 0.2 * m.opening - 0.028, 0.690), (0.68 * m.mouth_half, 0.036 * m.thick, 0.066), blend=0.03
        ),
        "lower_lip": Part(
            (0.0, m.mouth_y + 0.8 * m.opening + 0.036, 0.682), (0.60 * m.mouth_half, 0.042 * m.thick, 0.066), blend=0.03
        ),
        "neck": Part((0.0, 1.15, -0.16), (0.37 * (1 + 0.06 * m.s["neck_width"]), 1.0, 0.38), tilt=-0.12, blend=0.05),
    }


def _hair(scene: Scene, m) -> dict[str, Part]:
    """Make the parts of the hair; parts that a scene lacks are tiny and lie inside the head."""
    volume, length, fringe, bun = (m.s[f"hair_{n}"] for n in ("volume", "length", "fringe", "bun"))
    grow = 0.13 * volume
    shown = jnp.where(volume > 0.0, 1.0, 0.05)  # a bald head hides the rest of its hair inside

    parts = {
        "hair": Part(
            (0.0, -0.28 - 0.45 * grow, -0.11 - 0.35 * grow),
            (0.68 * m.width + 0.5 * grow, 0.73 + 0.75 * grow, 0.84 * m.depth + 0.6 * grow),
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
            (0.10 * scene.flip * m.s["hair_part"], -0.66, 0.36),
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
            (sign * 0.56 * m.width, -0.05 + 0.45 * length, -0.14),
            (lock * (0.16 + 0.9 * grow), lock * (0.45 + 0.50 * length), lock * (0.30 + 0.08 * length)),
            material=LOCKS,
            blend=0.12,
        )
    return parts


def _painted(m) -> Features:
    """Place the painted features from `_sizes`."""
    s = m.s
    return Features(
        eye=m.eye,
        eye_half=m.eye_half,
        lids=jnp.stack([m.lid, 0.6 * m.lid]),
        eye_tilt=0.010 * s["eye_tilt"] - 0.006,
        brow_inner=jnp.stack([0.105 * m.width, m.brow_y + 0.022 + 0.02 * s["brow_frown"]]),
        brow_outer=jnp.stack([0.46 * m.width, m.brow_y + 0.022 - 0.01 * s["brow_frown"]]),
        brow=jnp.stack([0.05 + 0.012 * s["brow_arch"], 0.028 * jnp.exp(0.2 * s["brow_thickness"])]),
        mouth_y=m.mouth_y,
        mouth_half=m.mouth_half,
        corner_y=-0.03 * m.smile + 0.25 * m.opening,
        gap=jnp.stack([0.2 * m.opening, 0.8 * m.opening]),
        lips=jnp.stack([0.052 * m.thick, 0.064 * m.thick]),
        nose_y=m.nose_y,
        nose_half=m.nose_half,
        nostril_z=m.nose_z - 0.12,
        jaw=jnp.stack([0.0 * m.long, 0.66 + m.long + 0.6 * m.drop, 0.22 + 0.0 * m.long]),
        ear=jnp.stack([0.685 * m.width, 0.13 + 0.0 * m.long, -0.07 + 0.0 * m.long]),
        hairline=0.045 * s["hair_hairline"],
    )


def _anatomy(scene: Scene):
    """Make the head's parts {name: Part} and its painted `Features`, in head coordinates."""
    m = _sizes(scene)
    parts = _face(m) | _lips_and_neck(m) | _hair(scene, m)
    parts["torso"] = Part((0.0, 2.50, -0.30), (1.50, 0.95, 0.62), material=CLOTH, blend=0.2)
    parts["collar"] = Part((0.0, 1.72, -0.22), (0.75, 0.27, 0.50), tilt=-0.15, material=CLOTH, blend=0.2)
    return parts, _painted(m)


def _ellipsoids(parts: dict) -> Ellipsoids:
    """Compute centres and forms of {name: Part}: form = R diag(1 / radii^2) R'."""

    def column(name):
        return jnp.stack([jnp.asarray(getattr(p, name), jnp.float32) for p in parts.values()])

    def triples(name):
        numbers = [jnp.asarray(x, jnp.float32) for p in parts.values() for x in getattr(p, name)]
        return jnp.stack(numbers).reshape(-1, 3)

    flare, tilt = jnp.rad2deg(column("flare")), jnp.rad2deg(column("tilt"))
    turn = jax.vmap(rotation)(flare, tilt, jnp.zeros_like(tilt))
    form = dot(turn / jnp.square(triples("radii"))[:, None], jnp.swapaxes(turn, -1, -2))
    return Ellipsoids(triples("center"), form)


def turn_solids(solids: Ellipsoids, turn, about=0.0, move=0.0) -> Ellipsoids:
    """Turn the ellipsoids by `turn` [3, 3] about the point `about`, which moves to `move`."""
    center = dot(solids.center - about, turn.T) + move
    return Ellipsoids(center, dot(dot(turn, solids.form), turn.T))


def _leave(center, form, x, y):
    """Compute the depth at which rays along z at x, y [...] leave one ellipsoid towards the camera; -inf for a miss.

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
    """Compute the depth of P ellipsoids at points `xy` [..., 2] of the view plane: [P, ...], -inf for a miss."""
    return jax.vmap(lambda center, form: _leave(center, form, xy[..., 0], xy[..., 1]))(*solids)


# Normal of the hairline: hair grows where HAIRLINE . p + wiggle < offset, above the forehead and behind the ears.
HAIRLINE = (0.0, 0.74, 0.67)


def hairline(scene: Scene, features: Features, p):
    """Compute a value [...] that is negative where hair grows; `p`: x, y, z [...] in head coordinates."""
    x, y, z = p
    x = x * scene.flip
    wave, part = (scene.hair[HAIR.index(name)] for name in ("wave", "part"))
    wiggle = 0.02 * sin(9.0 * x + wave) + 0.05 * part * x + 0.28 * x * x
    return HAIRLINE[1] * y + HAIRLINE[2] * z + wiggle - 0.02 - features.hairline


class World(NamedTuple):
    """A scene ready for rendering, in view coordinates (unit: half the head's height)."""

    solids: Ellipsoids
    traits: jax.Array  # [P, 4] material, blend, clipped, shadow of each part
    turn: jax.Array  # [3, 3] head to view
    body: jax.Array  # [3, 3] torso to view
    neck: jax.Array  # [3] the joint of head and torso, view coordinates
    features: Features


NECK = np.array([0.0, 1.25, -0.2], np.float32)
BODY = ("neck", "torso", "collar")  # parts that do not belong to the head; all hair does


def make_world(scene: Scene) -> World:
    """Compute everything in a scene that does not depend on the pixel."""
    parts, features = _anatomy(scene)
    solids = _ellipsoids(parts)
    turn = rotation(scene.yaw, scene.pitch, scene.roll)
    # the torso follows the head halfway
    body = rotation(0.45 * scene.yaw, 0.0 * scene.pitch, 0.15 * scene.roll)
    neck = dot(turn, jnp.asarray(NECK))
    first = list(parts).index("torso")
    head = turn_solids(jax.tree.map(lambda a: a[:first], solids), turn)
    rest = turn_solids(jax.tree.map(lambda a: a[first:], solids), body, jnp.asarray(NECK), neck)
    solids = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, rest)
    traits = np.array([[p.material, p.blend, p.clipped, p.shadow] for p in parts.values()], np.float32)
    return World(solids, jnp.asarray(traits), turn, body, neck, features)


def surfaces(scene: Scene, world: World, x, y):
    """Find the front-most surface of all parts at x, y [...]: depth z [...] (-inf: none) and material [...] as a float.

    A loop over the parts avoids holding the depths of all parts in memory.
    """

    def add(carry, part):
        best, material = carry
        (center, form), (kind, _, clipped, _) = part
        z = _leave(center, form, x, y)
        p = axes(world.turn.T, x, y, jnp.maximum(z, -9.0))
        bare = (clipped > 0.0) & (hairline(scene, world.features, p) > 0.0)
        front = (z > best) & ~bare
        return (jnp.where(front, z, best), jnp.where(front, kind, material)), None

    start = jnp.full_like(x, -jnp.inf), jnp.zeros_like(x)
    return jax.lax.scan(add, start, (world.solids, world.traits))[0]


def in_head(scene: Scene, world: World, x, y):
    """Tell whether the front-most surface at x, y [...] belongs to the head with its hair, not to neck or clothes."""
    names = list(_anatomy(scene)[0])
    body = np.array([name in BODY for name in names])

    def front(some):
        part = lambda a: a[np.flatnonzero(some)]
        return surfaces(scene, world._replace(solids=jax.tree.map(part, world.solids), traits=part(world.traits)), x, y)

    return front(~body)[0] > front(body)[0]


def landmarks_3d(scene: Scene):
    """Compute the 20 landmarks on the skin, [20, 3] in head coordinates (x right, y down, z to the front)."""
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

    # jaw: the surface along a ray from a point inside, to the side and a little to the front
    side = rotation(jnp.float32(-68.0), jnp.float32(0.0), jnp.float32(0.0))
    view = turn_solids(solids, side, f.jaw)
    reach = jnp.max(depth(view, jnp.zeros(2, jnp.float32)))
    jaw = f.jaw + reach * side[2]  # the ray (0, 0, 1) of the turned view, in head coordinates
    # ear: the middle of its outer face
    ear = _ellipsoids({"ear": parts["left_ear"]})
    turned = jnp.stack([jnp.cos(parts["left_ear"].flare), 0.0, -jnp.sin(parts["left_ear"].flare)])
    lobe = ear.center[0] + turned / jnp.sqrt(dot(turned, dot(ear.form[0], turned)))
    flip = jnp.array([-1.0, 1.0, 1.0], jnp.float32)
    return jnp.concatenate([front, jnp.stack([jaw * flip, jaw, lobe * flip, lobe])])

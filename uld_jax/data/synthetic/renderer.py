"""Rendering of a scene: its image, its landmarks and their visibility."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.data.synthetic.head import LOCKS, SKIN, World, in_head, landmarks_3d, make_world, surfaces
from uld_jax.data.synthetic.maths import axes, dot, step
from uld_jax.data.synthetic.paint import background, cloth_color, face_color, hair_color
from uld_jax.data.synthetic.scene import Scene

HEAD_SCALE = 0.58  # half of the head's height, as a fraction of half the image
RAYS = 0.25 * np.array([[-1.0, -1], [1, -1], [-1, 1], [1, 1]], np.float32)  # offsets from a pixel's centre


def render(scene: Scene, size: int):
    """Render one scene; jit with `size` static, vmap over scenes.

    Args:
        scene: one `Scene` (no batch axis).
        size: side of the image in pixels.
    Returns:
        image [size, size, 3] uint8, the mean of 2 x 2 rays per pixel;
        landmarks [20, 2] float32, pixels (x, y), centres at integers, in the order of `LANDMARKS`;
        visible [20] bool, True if nothing lies in front of the landmark and its surface is not turned away.
    """
    world = make_world(scene)
    return picture(scene, world, size), *annotation(scene, world, size)


def picture(scene: Scene, world: World, size: int):
    """Render the image [size, size, 3] uint8."""
    line = jnp.arange(size, dtype=jnp.float32)
    x, y = jnp.meshgrid(line, line)

    def ray(carry, offset):
        color, cover = carry
        more, hit = _trace(scene, world, *_to_head(scene, x + offset[0], y + offset[1], size))
        return (tuple(a + b for a, b in zip(color, more)), cover + hit), None

    # the four rays of a pixel are traced one after the other, so that the data of a ray stay in a CPU's cache
    start = ((jnp.zeros_like(x),) * 3, jnp.zeros_like(x))
    (color, cover), _ = jax.lax.scan(ray, start, RAYS)
    image = 0.25 * jnp.stack(color, -1) + (1.0 - 0.25 * cover)[..., None] * background(scene, size)
    # gamma 2.2, by exp and log because a power is not vectorised on CPUs
    image = jnp.exp(jnp.log(jnp.clip(image, 1e-6, 1.0)) * (1.0 / 2.2))
    return jnp.round(255.0 * image).astype(jnp.uint8)


def head_mask(scene: Scene, world: World, size: int):
    """Find the pixels in which at least two of four rays hit the head first, [size, size] bool.

    The head includes its hair, but neither neck nor clothes (`head.BODY`).
    """
    line = jnp.arange(size, dtype=jnp.float32)
    x, y = jnp.meshgrid(line, line)

    def ray(count, offset):
        return count + in_head(scene, world, *_to_head(scene, x + offset[0], y + offset[1], size)), None

    count, _ = jax.lax.scan(ray, jnp.zeros_like(x), RAYS)
    return count >= 2


def annotation(scene: Scene, world: World, size):
    """Compute landmarks [20, 2] in pixels and their visibility [20] bool; `size` may be traced."""
    points = landmarks_3d(scene)
    px, py, pz = axes(world.turn, points[:, 0], points[:, 1], points[:, 2])
    front, _ = surfaces(scene, world, px, py)
    normal = _shade(world, (px, py, pz), jnp.full(px.shape, SKIN), scene.light).normal
    # a point on the outline, where the normal is at right angles to the view, is still visible
    visible = (pz > front - 0.03) & (normal[2] > -0.15)
    return jnp.stack(_to_pixels(scene, px, py, size), -1), visible


def _to_head(scene: Scene, x, y, size: int):
    """Convert pixels x, y [...] to view coordinates (unit: half the head's height)."""
    unit = 1.0 / (HEAD_SCALE * scene.size)
    return tuple(((a + 0.5) * (2.0 / size) - 1.0 - 2.0 * s) * unit for a, s in zip((x, y), scene.shift))


def _to_pixels(scene: Scene, x, y, size: int):
    """Convert view coordinates x, y [...] to pixels, the inverse of `_to_head`."""
    unit = HEAD_SCALE * scene.size
    return tuple((a * unit + 2.0 * s + 1.0) * (size / 2.0) - 0.5 for a, s in zip((x, y), scene.shift))


def _trace(scene: Scene, world: World, x, y):
    """Compute the light from the scene along rays at x, y [...]: linear RGB channels (0 for a miss) and hit [...]."""
    z, material = surfaces(scene, world, x, y)
    hit = jnp.isfinite(z)
    z = jnp.where(hit, z, 0.0)
    view = (x, y, z)
    shaded = _shade(world, view, material, scene.light)
    head = axes(world.turn.T, *view)
    torso = axes(world.body.T, *(a - n for a, n in zip(view, world.neck)))

    skin, gloss, glint = face_color(scene, world.features, head)
    is_skin, is_hair = material == SKIN, material == LOCKS
    color = tuple(
        jnp.where(is_skin, a, jnp.where(is_hair, b, c))
        for a, b, c in zip(skin, hair_color(scene, head), cloth_color(scene, torso))
    )
    gloss = jnp.where(is_skin, gloss, 0.10 * is_hair.astype(x.dtype))
    glint = jnp.where(is_skin, glint, 0.0)

    nx, ny, nz = shaded.normal
    light = scene.light
    facing = nx * light[0] + ny * light[1] + nz * light[2]
    # light wraps a little around the skin's edges; light from above fills shadows
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


class _Shaded(NamedTuple):
    normal: tuple  # nx, ny, nz [...]: unit normals averaged over joints
    shadow: jax.Array  # [...] 0 lit, 1 in the shadow of another part


def _shade(world: World, p, material, light) -> _Shaded:
    """Compute normals and cast shadows at surface points `p` (x, y, z in view coordinates) of `material` [...].

    For one ellipsoid: half the gradient g = form (p - center), value F = (p - center).g, distance about (F - 1) / 2|g|,
    and a ray from p towards the light L passes it at the squared distance F - (g.L)^2 / (L'form L) (ellipsoid: 1).
    """

    def add(carry, part):
        *total, left = carry
        (center, form), (kind, blend, _, dark) = part
        d = tuple(a - c for a, c in zip(p, center))
        g = axes(form, *d)
        value = g[0] * d[0] + g[1] * d[1] + g[2] * d[2]
        inverse = jax.lax.rsqrt(g[0] * g[0] + g[1] * g[1] + g[2] * g[2] + 1e-12)
        distance = 0.5 * (value - 1.0) * inverse
        near = jnp.maximum(1.0 - jnp.abs(distance) * (1.0 / blend), 0.0)
        weight = jnp.where(material == kind, near * near * inverse, 0.0)
        towards = g[0] * light[0] + g[1] * light[1] + g[2] * light[2]
        passing = value - towards * towards * (1.0 / dot(light, dot(form, light)))
        # the shadow has a soft edge, and a part casts no shadow on itself
        cast = step(1.05, 0.65, passing) * step(0.0, -0.15, towards * inverse) * step(0.02, 0.10, distance)
        return (*(t + weight * a for t, a in zip(total, g)), left * (1.0 - dark * cast)), None

    start = (*(jnp.zeros_like(p[0]),) * 3, jnp.ones_like(p[0]))
    (*total, left), _ = jax.lax.scan(add, start, (world.solids, world.traits))
    inverse = jax.lax.rsqrt(total[0] ** 2 + total[1] ** 2 + total[2] ** 2 + 1e-12)
    return _Shaded(tuple(t * inverse for t in total), 1.0 - left)

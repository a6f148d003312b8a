"""Stable Diffusion 1.5 or 2.1 as a backbone: the features of Tourani et al. (CVPR 2024) and of Luo et al. (2023)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax import devices, weights
from uld_jax.backbones import Spec, Tap
from uld_jax.errors import UserError
from uld_jax.models.stable_diffusion import attention, schedule, unet, vae

MODES = ("clean", "noise", "inversion")


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """Maps from the UNet's decoder, of a latent at one timestep or several, under the empty prompt.

    1) resize, and encode to the mean latent (its distribution is not sampled, so features are repeatable)
    2) bring it to each timestep:
         clean      no change: the UNet sees the clean latent and the number of the timestep. (-1,) is the single step
                    of diffusion hyperfeatures, and the default
         noise      sqrt(a_t) latent + sqrt(1 - a_t) noise, each timestep on its own, with the same noise
         inversion  DDIM inversion from the clean latent, as diffusion hyperfeatures with many steps do; timesteps must
                    lie on its path: -1, 0, 20, ..., 960 for 50 steps
    3) the UNet up to the last tap

    Maps are named by timestep and tap, timesteps first: `t-1.up0.0`, ..., `t-1.up3.2`, `t60.up0.0`, ...

    Tourani et al. leave version, timesteps, prompt and size open; the defaults are those of diffusion hyperfeatures,
    except for the mean latent.

    Attributes:
      folder: folder of converted weights (`uld convert --kind=stable_diffusion`); the version is read from it.
      timesteps: timesteps from -1 (clean) to 999.
      mode: `clean`, `noise` or `inversion`, see above.
      taps: (decoder block, residual block) of each map; empty for all 12.
      image_size: longer side of the resized image in pixels; 0: the image's own sides. Sides become multiples of 64.
        Versions 1.5 and 2.1-base were trained at 512; 256 costs a quarter.
      inversion_steps: number of steps of the whole path from clean to noise.
      seed: seed of the noise when `features` is given no key.
      compute: type of the arithmetic, one of `attention.TYPES`; `auto` goes by the device: bfloat16 on TPUs and on
        GPUs from A100 on, float16 on T4 and V100, which lack it, float32 elsewhere.
      attention: one of `attention.WAYS`; `auto` also goes by the device.
    """

    folder: str = ""
    timesteps: tuple[int, ...] = (schedule.CLEAN,)
    mode: str = "clean"
    taps: tuple[tuple[int, int], ...] = ()
    image_size: int = 512
    inversion_steps: int = 50
    seed: int = 0
    compute: str = "auto"
    attention: str = "auto"

    def __post_init__(self):
        for name, known in (("mode", MODES), ("compute", attention.TYPES), ("attention", attention.WAYS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} of StableDiffusion is {getattr(self, name)!r}; use one of {', '.join(known)}")
        if not self.timesteps or min(self.timesteps) < -1 or len(set(self.timesteps)) < len(self.timesteps):
            raise UserError(
                f"timesteps of StableDiffusion are {self.timesteps}; use -1 or more, each once, such as (-1,)"
            )
        if self.image_size < 0:
            raise UserError(f"image_size of StableDiffusion is {self.image_size}; use 0, or pixels such as 512")
        # Configs hold lists; a frozen value is hashed.
        for name, value in (("timesteps", tuple(self.timesteps)), ("taps", tuple(map(tuple, self.taps)))):
            object.__setattr__(self, name, value)

    @property
    def spec(self) -> Spec:
        """The maps, with strides in pixels of the resized image. Raises UserError when there are no weights."""
        source = weights.read_source(self.folder, "stable_diffusion")
        widths, levels = source["widths"], len(source["widths"])
        taps = [
            Tap(f"t{step}.{unet.tap_name(block, i)}", widths[-1 - block], source["stride"] * 2 ** (levels - 1 - block))
            for step in self.timesteps
            for block, i in self.taps or unet.all_taps(levels, source["depth"])
        ]
        # The fingerprint depends on the weights and the type of arithmetic, not on the path of their folder.
        setting = dataclasses.replace(self, folder=source["sha256"], compute=self._type, attention="auto")
        return Spec("stable_diffusion", tuple(taps), 1, f"stable_diffusion-1 {setting}")

    @property
    def latents_fingerprint(self) -> str:
        """Fingerprint of the results of `encode`, the same for all timesteps, modes and taps.

        Raises UserError when there are no weights.
        """
        source = weights.read_source(self.folder, "stable_diffusion")
        setting = f"image_size={self.image_size}, compute={self._type!r}, folder={source['sha256']!r}"
        return f"stable_diffusion-1 latents({setting})"

    def load(self) -> Any:
        """Load the converted weights. Raises UserError when there are none."""
        return weights.load(self.folder, "stable_diffusion")

    def prepare(self, frozen) -> Any:
        """Compute of the weights what is the same for all images, and round the others to the type of the arithmetic.

        The embeddings of the timesteps and of the empty prompt are computed here, once; the weights that they alone
        need, and those of blocks behind the last tap, are left out. Results depend on the device, so that hashes are
        for the result of `load`. Raises UserError for timesteps that do not exist.
        """
        network, dtype = frozen["unet"], jnp.dtype(self._type)
        here, _ = self._path(len(frozen["alphas_cumprod"]))
        embed = jax.jit(functools.partial(self._embed, timesteps=here))
        whole = self._walks and len(here) > 1
        return frozen | {
            "embedded": {_key(here): embed(network, frozen["empty_prompt"])},
            "unet": unet.prepare(network, self._taps(network), whole=whole, dtype=dtype),
            "vae": vae.prepare(frozen["vae"], dtype),
        }

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,H,W,3] uint8 to {"t-1.up0.0": [B,h,w,C] float32, ...}.

        Args:
          frozen: the result of `load`, or of `prepare` for it.
          images: [B,H,W,3] uint8 of any size; see `image_size`.
          rng: typed PRNG key of the noise, the same noise for all images; or a key for each image, [B]. Without a key,
            all images get the noise of `seed`, so that features depend on the image alone.

        Raises UserError for timesteps or taps that do not exist.
        """
        return self.describe(frozen, self.encode(frozen, images), rng)

    def encode(self, frozen, images):
        """Compute step 1: images [B,H,W,3] uint8 to clean latents [B,h,w,4] float32, small enough to keep."""
        # cuDNN has no attention over the autoencoder's heads of 512 channels.
        way = "xla" if self.attention == "xla" else "auto"
        network = vae.of(frozen["vae"], attention=way, **self._options)
        levels = len(unet.of(frozen["unet"]).widths)
        x = images.astype(jnp.float32) / 127.5 - 1
        size = self._size(*images.shape[1:3], 2 ** (len(network.widths) + levels - 2))
        if size != images.shape[1:3]:
            x = _resized(x, size)
        return network.apply({"params": frozen["vae"]}, x).mean * frozen["scaling_factor"]

    def describe(self, frozen, latents, rng=None) -> dict[str, jax.Array]:
        """Compute steps 2 and 3: latents of `encode` to maps; see `features`.

        Without an inversion all timesteps are one batch, so that memory grows with their number.
        """
        params, table = frozen["unet"], frozen["alphas_cumprod"]
        network = unet.of(params, attention=self.attention, taps=self._taps(params), **self._options)
        here, there = self._path(len(table))
        embedded, steps = self._embedded(frozen, here), jnp.array(here, jnp.int32)
        if not self._walks:
            x = latents[:, None]
            if self.mode == "noise":
                noise = self._noise(latents, rng)
                alphas = schedule.alpha(table, steps)[:, None, None, None]
                x = schedule.add_noise(x, noise[..., None, :, :, :], alphas)
            x = jnp.broadcast_to(x, (len(latents), len(here), *latents.shape[1:])).reshape(-1, *latents.shape[1:])
            found = network.clone(whole=False).apply({"params": params}, x, embedded=embedded)
            by_step = lambda tap: tap.reshape(len(latents), len(here), *tap.shape[1:]).astype(jnp.float32)
            maps = {name: by_step(tap) for name, tap in found.taps.items()}
            return {f"t{step}.{name}": tap[:, i] for i, step in enumerate(here) for name, tap in maps.items()}

        def visit(x, place, there, final):
            """Latents and maps of one timestep; the latents then move on."""
            at = embedded._replace(shifts={name: shift[place][None] for name, shift in embedded.shifts.items()})
            found = network.clone(whole=not final).apply({"params": params}, x, embedded=at)
            if not final:
                alpha = schedule.alpha(table, steps[place])
                predicted = schedule.predicted_noise(found.output, x, alpha, frozen["v_prediction"])
                x = schedule.move(x, predicted, alpha, schedule.alpha(table, there))
            return x, {name: tap.astype(jnp.float32) for name, tap in found.taps.items()}

        kept = [here.index(step) for step in self.timesteps]
        # On CPU a scan over convolutions is many times slower; elsewhere fifty networks would compile for minutes.
        unrolled = devices.platform() == "cpu"
        maps = _walk(visit, latents, list(range(len(here))), there, kept, unrolled=unrolled)
        return {f"t{step}.{name}": tap for step, found in zip(self.timesteps, maps) for name, tap in found.items()}

    @property
    def _walks(self) -> bool:
        """Whether the latents of a timestep come out of the network at the one before."""
        return self.mode == "inversion"

    def _taps(self, params) -> tuple[tuple[int, int], ...]:
        network = unet.of(params)
        return self.taps or unet.all_taps(len(network.widths), network.depth)

    def _embed(self, params, prompt, timesteps) -> unet.Embedded:
        return unet.embed(params, jnp.array(timesteps, jnp.float32), jnp.asarray(prompt), **self._options)

    def _embedded(self, frozen, timesteps) -> unet.Embedded:
        if "embedded" not in frozen:
            return self._embed(frozen["unet"], frozen["empty_prompt"], timesteps)
        if _key(timesteps) not in frozen["embedded"]:
            raise UserError(
                f"weights of StableDiffusion were prepared for timesteps {', '.join(frozen['embedded'])}, not "
                f"{_key(timesteps)}; prepare them by the backbone that uses them"
            )
        return frozen["embedded"][_key(timesteps)]

    @property
    def _type(self) -> str:
        return attention.compute_type(attention.this_device()) if self.compute == "auto" else self.compute

    @property
    def _options(self) -> dict[str, Any]:
        # In half precision, more exact products would gain nothing.
        return dict(dtype=jnp.dtype(self._type), precision="highest" if self._type == "float32" else "default")

    def _path(self, total: int) -> tuple[list[int], list[int]]:
        """Timesteps at which the network is evaluated, and those to which the latents then move."""
        if max(self.timesteps) >= total:
            raise UserError(f"timesteps of StableDiffusion are {self.timesteps}; use -1 to {total - 1}")
        if self.mode != "inversion":
            return list(self.timesteps), list(self.timesteps)
        sources, targets = schedule.inversion(self.inversion_steps, total)
        if off := sorted(set(self.timesteps) - set(sources)):
            between = f"0, {targets[1]}, ... {sources[-1]}" if self.inversion_steps > 2 else sources[-1]
            raise UserError(
                f"timestep {off[0]} of StableDiffusion is not on the path of {self.inversion_steps} inversion steps; "
                f"use -1, {between}"
            )
        count = sources.index(max(self.timesteps)) + 1
        return sources[:count], targets[:count]

    def _noise(self, latents, rng):
        rng = jax.random.key(self.seed) if rng is None else rng
        draw = lambda key: jax.random.normal(key, latents.shape[1:], latents.dtype)
        return jax.vmap(draw)(rng) if rng.ndim else draw(rng)

    def _size(self, height: int, width: int, multiple: int) -> tuple[int, int]:
        """Sides (height, width) of the resized image in pixels."""
        scale = self.image_size / max(height, width) if self.image_size else 1
        return tuple(max(1, int(side * scale / multiple + 0.5)) * multiple for side in (height, width))


def _resized(x, size):
    """Images [B,H,W,3] resized to `size` = (height, width), bilinearly, and smoothed where they shrink.

    Whole multiples are blends of neighbours. The products of `jax.image.resize` are dense, and at 256 to 512 pixels
    XLA finds no tiles for them on an H100 when it may not try (`xla_gpu_autotune_level=0`).
    """
    if size[0] % x.shape[1] or size[1] % x.shape[2]:
        return jax.image.resize(x, (len(x), *size, 3), "bilinear", antialias=True)
    for axis in (1, 2):
        x = _enlarged(x, axis, size[axis - 1] // x.shape[axis])
    return x


def _enlarged(x, axis: int, factor: int):
    """Repeat x `factor` times along an axis, blended with the nearer neighbour by where a new pixel lies in the old."""
    count = x.shape[axis]
    part = lambda start, stop: jax.lax.slice_in_dim(x, start, stop, axis=axis)
    before = jnp.concatenate([part(0, 1), part(0, count - 1)], axis)  # at the border the pixel itself
    after = jnp.concatenate([part(1, count), part(count - 1, count)], axis)
    away = [(i + 0.5) / factor - 0.5 for i in range(factor)]  # in old pixels, from the old pixel's centre
    blends = [(1 - abs(d)) * x + abs(d) * (before if d < 0 else after) for d in away]
    shape = (*x.shape[:axis], count * factor, *x.shape[axis + 1 :])
    return jnp.stack(blends, axis + 1).reshape(shape)


def _key(timesteps) -> str:
    """Name of an entry for these timesteps, as keys of a nested dict are strings."""
    return " ".join(map(str, timesteps))


def _walk(visit, x, here, there, kept, unrolled):
    """Collect the findings of `visit` at chosen places of a path.

    Args:
      visit: function (x, here, there, final) -> (x at the next place, findings), pytrees of arrays.
      x: x at the first place.
      here, there: whole numbers, one of each a place.
      kept: the places whose findings are returned, in the order wanted.
      unrolled: True for a program that holds `visit` once for every place, False for a scan that holds it once.
    """
    last = len(here) - 1
    if unrolled or not last:
        found = []
        for i, place in enumerate(zip(here, there, strict=True)):
            x, maps = visit(x, *map(jnp.int32, place), i == last)
            found.append(maps if i in kept else None)
        return [found[i] for i in kept]

    # The findings of other places overwrite one another in a slot behind the last one wanted.
    slots = np.array([kept.index(i) if i in kept else len(kept) for i in range(last + 1)])

    def body(carry, place):
        x, buffers = carry
        x, maps = visit(x, place[0], place[1], False)
        put = lambda buffer, y: jax.lax.dynamic_update_index_in_dim(buffer, y, place[2], 0)
        return (x, jax.tree.map(put, buffers, maps)), None

    places = jnp.asarray(np.stack([here, there, slots], 1), jnp.int32)
    _, shapes = jax.eval_shape(lambda x: visit(x, places[0, 0], places[0, 1], False), x)
    buffers = jax.tree.map(lambda y: jnp.zeros((len(kept) + 1, *y.shape), y.dtype), shapes)
    (_, buffers), _ = jax.lax.scan(body, (x, buffers), places)
    return [jax.tree.map(lambda y, i=i: y[i], buffers) for i in range(len(kept))]

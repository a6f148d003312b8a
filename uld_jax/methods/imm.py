"""IMM: landmarks from conditional image generation.

Jakab, Gupta, Bilen and Vedaldi, "Unsupervised Learning of Object Landmarks through Conditional Image Generation",
NeurIPS 2018, and its published TensorFlow code.

    1) x' is a random thin-plate warp of the photo, x one of x'     2) pose of x': K points, through a separable
    softmax, drawn as Gaussians     3) x' again, from the features of x and the Gaussians of x'     4) perceptual loss,
    each layer divided by the running mean of its own value, inside the warped photo

Differences from the published code:

    outside     outside a warped photo its border is repeated; the published code has black there
    units       a view 2 wide has its borders at -1 and 1, in the published code its outer pixels' centres: warps move
                128 / 127 as far here. The Gaussians are the same
    mask        resized to the features' size with pixel centres in the middle; TensorFlow 1 has them in the corner
    balance     `FIRST_BALANCE` fits the trained VGG16; with random weights the terms are uneven until the running means
                have followed, a few times 1 / BALANCE_RATE steps
    prediction  a point in cell i of n lies at (i + 1/2) / n of the view, in the published code at i / (n - 1); a linear
                regression to annotation compensates for the difference
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uld_jax import optimizers
from uld_jax.backbones import perceptual
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Positive
from uld_jax.method import Need, Prediction, Stage, TrainState, same_shapes
from uld_jax.methods import shared
from uld_jax.methods.shared import View
from uld_jax.models import imm_net, layers, vgg
from uld_jax.ops import color, heatmaps, views, warp

# Constants of the published code. A warp has standard deviations of the rotation in degrees, the scale, the shift (the
# view is 2 wide), and two of the thin-plate weights: each moves by the first, every second one by the other too.
TARGET_WARP = (0.0, 0.0, 0.1, 0.001, 0.005)  # from photo to target
SOURCE_WARP = (5.0, 0.1, 0.1, 0.001, 0.01)  # from target to source
FIRST_BALANCE = (100.0, 1.6, 2.3, 1.8, 2.8, 100.0)  # first divisors of the loss's terms: the image, then the layers
BALANCE_RATE = 0.01  # of the running means of the loss's terms, through which the gradient flows
DECAY, DECAY_EVERY = 0.95, 100_000  # of the learning rate, and the steps between
CLIP = 1.0  # largest norm of each variable's own gradient
L2 = 1e-5  # weight of the L2 loss on convolution kernels


class Balance(NamedTuple):
    """The divisors of the terms of the loss.

    Attributes:
      mean: [6] running means of the terms: the image itself, then `vgg.IMM_TAPS`.
    """

    mean: jax.Array


@dataclasses.dataclass(frozen=True)
class IMM(Stage):
    """Encoders of pose and appearance, and the renderer.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      start: `scratch`; or `previous` to go on with all of a run of IMM, which `config.init_from` names: networks,
        optimiser, its count of steps for the decay, and running means (published code, its script for AFLW).
      view: view of the frame, a multiple of 8 pixels; the published code crops 160 pixels to 128.
      width: channels of the encoders' first stage.
      vgg_width: width of the random VGG16 that is used when `config.weights.vgg16_colorization` is empty.
      dtype: type of the networks' arithmetic.
      gauss_std: width of the Gaussians exp(-|u - mu|^2 / gauss_std^2) in units in which the view is 2 wide.
      control: n of the n x n control points of the thin-plate warps.
      learning_rate: first learning rate of Adam.
      weights: folders of converted weights by kind.
    """

    k: int
    frame_size: int
    start: Literal["scratch", "previous"] = "scratch"
    view: View = View(128, 0.8)
    width: int = 32
    vgg_width: int = 64
    dtype: str = "float32"
    gauss_std: float = 0.10
    control: int = 10
    learning_rate: Positive = 1e-3
    weights: Any = ()

    weight_kinds = frozenset({"vgg16_colorization"})

    def __post_init__(self):
        super().__post_init__()
        if self.view.image_size % 8:
            raise UserError(f"view.image_size is {self.view.image_size}; use a multiple of 8")

    @property
    def needs(self):
        """A run of IMM to go on with."""
        return (Need("network", "a run of imm.IMM", of_images=False),) if self.start == "previous" else ()

    @property
    def _nets(self):
        options = layers.precision(self.dtype)
        return {
            "appearance": imm_net.ImmEncoder(self.width, **options),
            "pose": imm_net.ImmPose(self.k, self.width, **options),
            "renderer": imm_net.ImmRenderer(self.width, **options),
        }

    @property
    def _optimizer(self):
        rate = optax.exponential_decay(self.learning_rate, DECAY_EVERY, DECAY, staircase=True)
        return optax.chain(optimizers.clip_each(CLIP), optimizers.adam(rate))

    @property
    def _geometry(self) -> views.Geometry:
        return self.view.geometry(self.frame_size, 8, self.dtype)

    def frozen(self, purpose="train"):
        if purpose != "train":
            return {}  # VGG16 is only for the loss in training
        folder = dict(self.weights).get("vgg16_colorization")
        return {"vgg": perceptual.load("vgg16_colorization", folder, self.vgg_width, channels=1)}

    def init(self, rng, batch, frozen, start):
        wide, view, heat = layers.wide(self.dtype), self._geometry.view, self._geometry.heat
        shape = lambda *sizes: jax.ShapeDtypeStruct((1, *sizes), wide)
        image, features = shape(*view, 3), shape(*heat, 8 * self.width)
        inputs = {"appearance": [image], "pose": [image], "renderer": [features, shape(*heat, self.k)]}
        params, model_state = {}, {}
        for i, (name, net) in enumerate(self._nets.items()):
            key = jax.random.fold_in(rng, i)
            drawn = layers.initialize(net, key, *inputs[name], law=imm_net.INITIAL, train=False)
            params[name], model_state[name] = layers.split(drawn)
        aux = Balance(jnp.asarray(FIRST_BALANCE, wide))
        drawn = TrainState(jnp.int32(0), params, model_state, self._optimizer.init(params), aux)
        if self.start == "scratch":
            return drawn
        shared.take(self, start, "network")
        if not same_shapes(start.previous, drawn):
            raise UserError(
                f"{start.stage}.start=previous goes on with a run of IMM of other sizes; use the same k and width"
            )
        return start.previous.replace(step=drawn.step)

    def train_step(self, state, frozen, batch, rng):
        # Step 1) Two warps, one upon the other; images are 0..255 here, as in the published code.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        photo = 255 * self._geometry.look(batch["image"])
        source, target, inside = warped_pair(keys, photo, self.control)

        (loss, (model_state, metrics, mean)), grads = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.model_state, state.aux.mean, frozen, source, target, inside
        )
        new = shared.updated(state, self._optimizer, grads)
        return new.replace(model_state=model_state, aux=Balance(mean)), {"loss": loss} | metrics

    def _loss(self, params, model_state, mean, frozen, source, target, inside):
        new_state = {}

        def run(name, *inputs):
            variables = {"params": params[name], **model_state[name]}
            out, new_state[name] = self._nets[name].apply(variables, *inputs, train=True, mutable=["batch_stats"])
            return out

        # Step 2) The points of the target.
        cells = heatmaps.separable_soft_argmax(run("pose", target))
        # Step 3) The target again.
        made = run("renderer", run("appearance", source), self._maps(cells))
        # Step 4) Terms of the loss, each over the running mean of itself.
        found, want = self._features(frozen, made), jax.lax.stop_gradient(self._features(frozen, target))
        terms = distances(found, want, inside)
        mean = (1 - BALANCE_RATE) * mean + BALANCE_RATE * terms
        loss = 1000 * jnp.sum(terms / mean)
        kernels = [x for path, x in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
        decay = 0.5 * L2 * sum(jnp.sum(x**2) for x in kernels)
        # By construction `loss` stays near 6000; what falls is `pixels`.
        metrics = {"pixels": terms[0] / 255**2, "features": jnp.mean(terms[1:] / jnp.asarray(FIRST_BALANCE[1:]))}
        return loss + decay, (new_state, metrics, jax.lax.stop_gradient(mean))

    def predict(self, state, frozen, images):
        _, cells, features = self._look(state, images)
        xy = self._geometry.to_frame(cells)
        return Prediction(xy.astype(jnp.float32), jnp.ones(xy.shape[:2], jnp.float32), features=features)

    def heatmaps(self, state, frozen, images):
        seen, cells, _ = self._look(state, images)
        return color.to_uint8(seen), self._maps(cells)

    def pictures(self, state, frozen, images):
        """Sheets of pictures, of each photo i and the next one, j.

        `generated` in columns: a warp of i as the source, i as the target, Gaussians, generated target, target in the
        appearance of j's warp. `swaps` as C3's, without warps: i, j, i decoded, the appearance of i with the pose of j,
        the other way round. IMM trains on two warps of one photo: a photo as it is lies in the middle of these, but
        the appearance of one photo and the pose of another never met.
        """
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(len(images)))
        target, cells, _ = self._look(state, images)
        source = warped(keys, SOURCE_WARP, target, self.control)
        maps = self._maps(cells)

        def run(name, *inputs):
            variables = {"params": state.params[name], **state.model_state[name]}
            return self._nets[name].apply(variables, *inputs, train=False)

        other = lambda x: jnp.roll(x, -1, 0)
        render = lambda features, maps: run("renderer", features, maps) / 255
        features, still = (run("appearance", 255 * x) for x in (source, target))
        made, swapped = render(features, maps), render(other(features), maps)
        pairs = [target, other(target), render(still, maps), render(still, other(maps)), render(other(still), maps)]
        big = jax.image.resize(jnp.max(maps, -1, keepdims=True), (len(images), *self._geometry.view, 1), "nearest")
        shown = jnp.stack([source, target, target * (1 - big) * 0.6 + big, made, swapped], 1)
        return {"generated": color.to_uint8(shown), "swaps": color.to_uint8(jnp.stack(pairs, 1))}

    def _look(self, state, images):
        """The views of unwarped photos, their points [B,K,2] in heatmap cells, and the pose head's logits."""
        seen = self._geometry.look(images)
        variables = {"params": state.params["pose"], **state.model_state["pose"]}
        logits = self._nets["pose"].apply(variables, 255 * seen, train=False)
        return seen, heatmaps.separable_soft_argmax(logits), logits

    def _maps(self, cells):
        heat = self._geometry.heat
        cell = 2 / (heat[0] - 1)  # in units in which the view is 2 wide, its outer cells' centres at -1 and 1
        return heatmaps.gaussian(cells, heat, self.gauss_std / 2**0.5 / cell)

    def _features(self, frozen, images):
        """The terms that the loss compares: the image in 0..255, and its features in VGG16."""
        found = vgg.vgg16(frozen["vgg"], vgg.gray_input(images), vgg.IMM_TAPS, jnp.dtype(self.dtype))
        return [images, *(found[name] for name in vgg.IMM_TAPS)]


def warped_pair(keys, photo, control: int):
    """Step 1) The source and the target of photos [B,S,S,3] by keys [B], and the mask [B,S,S,1] of the target.

    The target is a warp of the photo, and the source one of the target, of `control` x `control` points. The mask falls
    to 0 where the target shows what is beyond its photo.
    """
    keys = jax.vmap(jax.random.split)(keys)
    edge = jnp.broadcast_to(jnp.asarray(_edge_mask(photo.shape[1]), photo.dtype)[..., None], (*photo.shape[:3], 1))
    target = warped(keys[:, 0], TARGET_WARP, jnp.concatenate([photo, edge], -1), control)
    target, inside = target[..., :3], target[..., 3:]
    return warped(keys[:, 1], SOURCE_WARP, target, control), target, inside


def warped(keys, deviations, images, control: int):
    """Warp each image [B,S,S,C] by its own thin-plate warp, its weights drawn as in the published code."""
    rotation, scale, shift, bend, more = deviations
    dtype = images.dtype

    def draw(key):
        draws = jax.random.split(key, 6)
        normal = lambda i, *shape: jax.random.normal(draws[i], shape, dtype)
        points = (control**2, 2)
        some = jax.random.bernoulli(draws[5], 0.5, points)
        one = warp.Warp(
            linear=(1 + scale * normal(0)) * jnp.eye(2, dtype=dtype),
            shift=shift * normal(1, 2),
            bend=bend * normal(2, *points) + more * some * normal(3, *points),
        )
        return warp.turned(one, rotation * normal(4))

    return jax.vmap(lambda w, image: warp.warp_image(w, image, images.shape[1:3]))(jax.vmap(draw)(keys), images)


def distances(found, want, inside=None):
    """Step 4) Mean squared distances [n] of maps [B,h,w,C] from those that are wanted, in the type of the first.

    `inside` [B,S,S,1], resized to each map, weighs its cells; None weighs all alike.
    """
    wide = found[0].dtype
    weigh = lambda x: 1.0 if inside is None else _resized(inside, x.shape[1:3])
    square = lambda a, b: jnp.mean(weigh(a) * (a.astype(wide) - b.astype(wide)) ** 2)
    return jnp.stack([square(a, b) for a, b in zip(found, want, strict=True)])


def _edge_mask(side: int) -> np.ndarray:
    """A mask [S,S]: 0 at the border, 1 in the middle, a tanh ramp between.

    Its widths are the 10 and 20 of 128 pixels of the published code, to scale.
    """
    margin, ramp = round(side * 10 / 128), round(side * 20 / 128)
    rise = 0.5 + 0.5 * np.tanh(np.linspace(-1, 1, ramp) / 0.4)
    line = np.concatenate([np.zeros(margin), rise, np.ones(side - 2 * (margin + ramp)), rise[::-1], np.zeros(margin)])
    return line[:, None] * line[None]


def _resized(mask, size):
    return jax.image.resize(mask, (len(mask), *size, 1), "bilinear", antialias=False)

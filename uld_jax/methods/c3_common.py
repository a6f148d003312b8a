"""What the stages of C3 share: its networks, the perceptual distance, prediction and pictures.

`c3.py` has the paper's steps and its title.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from uld_jax import weights
from uld_jax.backbones import perceptual
from uld_jax.errors import UserError
from uld_jax.hyperparameters import NotNegativeFloat, Positive, PositiveInt
from uld_jax.method import Need, Prediction, Stage, same_shapes
from uld_jax.methods import imm, shared
from uld_jax.methods.shared import AdamL2, View
from uld_jax.models import c3_net, layers, resnet, vgg
from uld_jax.ops import color, coordinates, heatmaps

RATE = 0.01  # of the running means of the perceptual terms (published code of IMM)
COLLAPSED = 0.02  # mean distance of landmarks from their middle, or contrast of made images, below which a stage warns
WARM = 500  # steps of a stage before it warns, as landmarks start in the middle of the view
PARTS = ("backbone", "appearance", "pose", "decoder")
LOCATES = ("backbone", "pose")  # the parts that place the landmarks


@dataclasses.dataclass(frozen=True)
class Net:
    """The networks.

    Attributes:
      depth: of the ResNet: 50 as in the paper, 101 as in NC-Net, 18, or 10 for tests.
      stem: channels of the ResNet's first layer; 64 as published.
      output_stride: pixels of the image in a cell of the ResNet's last map; 32 is the network as published.
      cells: side of the maps of appearance and pose; the ResNet's last map is resized to it.
      width: channels of the heads and of the decoder's first block.
      least: fewest channels of the decoder.
      softmax: `2d` reads a landmark off one softmax over all cells (section 3.1); `marginal` off one over columns and
        one over rows, as IMM does.
      temperature: divisor of the logits before the softmax; 1 in the paper. Landmarks all start in the middle of the
        view, and leave it sooner with less.
      gauss_std: width of the Gaussians exp(-|u - mu|^2 / gauss_std^2) in units in which the outer cells' centres are 2
        apart (IMM).
    """

    depth: Literal[101, 50, 18, 10] = 50
    stem: PositiveInt = 64
    output_stride: Literal[8, 16, 32] = 8
    cells: PositiveInt = 16
    width: PositiveInt = 256
    least: PositiveInt = 32
    softmax: Literal["2d", "marginal"] = "2d"
    temperature: Positive = 1.0
    gauss_std: Positive = 0.10

    def gaussians(self, unit_xy, side: int):
        """Return maps [B,side,side,K] of landmarks [B,K,2] in unit coordinates.

        On fewer than 16 x 16 cells a Gaussian is at least a cell wide, else points between two cells would vanish.
        """
        xy, cell = coordinates.from_unit(unit_xy, (side, side)), 2 / max(side - 1, 1)
        width = self.gauss_std / cell if side >= 16 else max(self.gauss_std / cell, 1.0)
        return heatmaps.gaussian(xy, (side, side), width / 2**0.5)


class Terms(NamedTuple):
    """The running means of the perceptual terms: of the image, then of `vgg.IMM_TAPS`, if they count.

    Attributes:
      mean: [1] or [6], which start at 0.
      count: int32, steps that they have seen.
    """

    mean: jax.Array
    count: jax.Array

    @classmethod
    def first(cls, count: int, dtype):
        """Return the means of `count` terms before the first step."""
        return cls(jnp.zeros(count, dtype), jnp.int32(0))

    def updated(self, terms):
        """Return the means after the terms of a step, and the divisors of this step's terms."""
        new = Terms((1 - RATE) * self.mean + RATE * jax.lax.stop_gradient(terms), self.count + 1)
        # Started at 0, so less than their share at first: as in Adam, the first divisor is the first term itself.
        return new, jnp.maximum(new.mean / (1 - (1 - RATE) ** new.count.astype(terms.dtype)), 1e-12)


class Seen(NamedTuple):
    """What the networks make of images.

    Attributes:
      features: f' [B,h,w,C], the ResNet's map before the last.
      appearance: a [B,n,n,A].
      xy: [B,K,2], landmarks in unit coordinates of the view.
      pose: p [B,n,n,K], their Gaussians.
    """

    features: jax.Array
    appearance: jax.Array
    xy: jax.Array
    pose: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class C3Stage(Stage):
    """What the three stages share.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      steps: number of steps of the stage.
      dtype: type of the networks' arithmetic.
      view: what the networks see of a frame.
      net: the networks.
      perceptual: weight of each of VGG16's terms beside that of the image; 1 in the paper, 0 leaves VGG16 out.
      vgg_width: width of the random VGG16 that is used when `config.weights.vgg16` is empty.
      optimizer: Adam and its schedule.
      pose_rate: factor of the learning rate of the backbone and the pose head; 1 in the paper. Landmarks that another
        method found are kept by a small one.
      start: `previous`, the networks of the stage before; `checkpoint`, a backbone from `config.weights.resnet50` (or
        18, or 101) and else new networks, as in the paper with ImageNet's; or `scratch`.
      weights: folders of converted weights by kind.
    """

    k: int
    frame_size: int
    steps: int
    dtype: str = "float32"
    start: Literal["previous", "checkpoint", "scratch"] = "previous"
    view: View = View(128)
    net: Net = Net()
    perceptual: NotNegativeFloat = 1.0
    vgg_width: PositiveInt = 64
    optimizer: AdamL2 = AdamL2(clip=1.0)
    pose_rate: Positive = 1.0
    weights: Any = ()

    def __post_init__(self):
        super().__post_init__()
        side, cells = self.view.image_size, self.net.cells
        if side % cells or (side // cells) & (side // cells - 1):
            raise UserError(f"net.cells is {cells}; view.image_size is {side}, use a power of two times net.cells")

    compares = True  # whether the stage's loss compares images; no field

    # -- networks -----------------------------------------------------------------------------------------------------

    @property
    def _backbone(self):
        return resnet.ResNet(
            self.net.depth, self.net.stem, output_stride=self.net.output_stride, **layers.precision(self.dtype)
        )

    @property
    def _nets(self):
        net, options = self.net, layers.precision(self.dtype)
        return {
            "backbone": self._backbone,
            "appearance": c3_net.AppearanceHead(net.width, **options),
            "pose": c3_net.PoseHead(self.k, net.width, **options),
            "decoder": c3_net.Decoder(self.view.image_size, net.width, net.least, **options),
        }

    @property
    def geometry(self):
        return self.view.geometry(self.frame_size, self.view.image_size // self.net.cells, self.dtype)

    @property
    def _optimizer(self):
        adam = self.optimizer.transform(self.steps)
        if self.pose_rate == 1:
            return adam
        slow = lambda name, step: jax.tree.map(lambda x: self.pose_rate * x, step) if name in LOCATES else step
        slower = optax.stateless(lambda updates, params: {name: slow(name, x) for name, x in updates.items()})
        return optax.chain(adam, slower)

    # -- start --------------------------------------------------------------------------------------------------------

    @property
    def needs(self):
        """Networks to go on with."""
        return (Need("network", "a stage of C3", of_images=False),) if self.start == "previous" else ()

    @property
    def _looks(self) -> bool:
        """Whether the loss looks at images through VGG16."""
        return self.compares and self.perceptual > 0

    @property
    def _kind(self) -> str:
        return f"resnet{self.net.depth}"

    @property
    def weight_kinds(self):
        """The kinds of converted weights that the stage uses; see `method.Stage`."""
        return frozenset([self._kind] * (self.start == "checkpoint") + ["vgg16"] * self._looks)

    def frozen(self, purpose="train"):
        if purpose != "train":
            return {}  # VGG16 is only for the loss in training, and the backbone's weights for its start
        loaded = self.backbone_weights()
        if self._looks:
            loaded["vgg"] = perceptual.load("vgg16", dict(self.weights).get("vgg16"), self.vgg_width)
        return loaded

    def backbone_weights(self):
        """Load the weights of `start=checkpoint`, {"backbone": ...}; {} for another start."""
        if self.start != "checkpoint":
            return {}
        return {"backbone": weights.load(dict(self.weights).get(self._kind, ""), self._kind)}

    def networks(self, rng, frozen, start):
        """Return the first parameters and statistics by part, after `start`."""
        params, model_state = self._drawn(rng)
        if self.start == "previous":
            return self._taken(params, model_state, start)
        if self.start == "checkpoint" and not start.shapes_only:
            remedy = f"config.weights.{self._kind} is of other sizes; set net.depth and net.stem to its own"
            return shared.take_resnet(frozen["backbone"], params, model_state, "backbone", remedy)
        return params, model_state

    def _taken(self, params, model_state, start):
        """The networks of the stage before, which may have more parts than these."""
        known, statistics = shared.take(self, start, "network"), start.previous.model_state
        given = {name: (known.get(name), statistics.get(name)) for name in PARTS}
        if not same_shapes(given, {name: (params[name], model_state[name]) for name in PARTS}):
            raise UserError(
                f"stage {start.stage} goes on with the networks of a stage of C3, and the stage before has none of the "
                "same k, view.image_size and net"
            )
        return dict(known), dict(statistics)

    def _drawn(self, rng):
        """New parameters and statistics by part."""
        wide, net = layers.wide(self.dtype), self.net
        shape = lambda *sizes: jax.ShapeDtypeStruct((1, *sizes), wide)
        image = shape(*self.geometry.view, 3)
        variables = jax.eval_shape(lambda key, x: self._backbone.init(key, x, train=False), rng, image)
        maps = jax.eval_shape(lambda v, x: self._backbone.apply(v, x, train=False), variables, image)
        given = shape(net.cells, net.cells, maps["layer4"].shape[-1])
        inputs = {"backbone": [image], "appearance": [given], "pose": [given]}
        inputs["decoder"] = [shape(net.cells, net.cells, net.width), shape(net.cells, net.cells, self.k)]
        params, model_state = {}, {}
        for i, (name, part) in enumerate(self._nets.items()):
            law = resnet.INITIAL if name == "backbone" else c3_net.INITIAL
            key = jax.random.fold_in(rng, i)
            drawn = layers.initialize(part, key, *inputs[name], law=law, train=False)
            params[name], model_state[name] = layers.split(drawn)
        return params, model_state

    def _run(self, name, params, model_state, *inputs, train):
        """The result of one network, and its new statistics."""
        variables = {"params": params[name], **model_state[name]}
        if not train:
            return self._nets[name].apply(variables, *inputs, train=False), model_state[name]
        return self._nets[name].apply(variables, *inputs, train=True, mutable=["batch_stats"])

    def maps(self, params, model_state, images, *, train: bool):
        """Return f [B,n,n,C] and f' [B,h,w,C'] of normalised images [B,S,S,3], and the backbone's statistics."""
        found, statistics = self._run("backbone", params, model_state, images, train=train)
        f, cells = found["layer4"], self.net.cells
        if f.shape[1:3] != (cells, cells):
            f = jax.image.resize(f, (len(f), cells, cells, f.shape[-1]), "linear")
        return f, found["layer3"], statistics

    def appearance(self, params, model_state, f, *, train: bool):
        """Return the appearance [B,n,n,A] of maps f, and the head's statistics."""
        return self._run("appearance", params, model_state, f, train=train)

    def pose(self, params, model_state, f, *, train: bool):
        """Return the landmarks [B,K,2] of maps f in unit coordinates, and the head's statistics."""
        logits, statistics = self._run("pose", params, model_state, f, train=train)
        read = heatmaps.soft_argmax if self.net.softmax == "2d" else heatmaps.separable_soft_argmax
        xy = read(logits / self.net.temperature)
        return coordinates.to_unit(xy, (self.net.cells, self.net.cells)), statistics

    def encode(self, params, model_state, images, *, train: bool):
        """Encode normalised images [B,S,S,3]: `Seen`, and the statistics with new ones of the parts that ran."""
        new = dict(model_state)
        f, features, new["backbone"] = self.maps(params, model_state, images, train=train)
        appearance, new["appearance"] = self.appearance(params, model_state, f, train=train)
        xy, new["pose"] = self.pose(params, model_state, f, train=train)
        return Seen(features, appearance, xy, self.net.gaussians(xy, self.net.cells)), new

    def decode(self, params, model_state, appearance, pose, *, train: bool):
        """Decode an image [B,S,S,3], normalised: the image, and the decoder's new statistics."""
        return self._run("decoder", params, model_state, appearance, pose, train=train)

    def look(self, images):
        """Show normalised views [B,S,S,3] of frames [B,H,W,3] uint8."""
        return resnet.normalize(self.geometry.look(images))

    def first_terms(self) -> Terms:
        """Return the running means before the first step."""
        return Terms.first(1 + len(vgg.IMM_TAPS) * self._looks, layers.wide(self.dtype))

    def distance(self, frozen, terms: Terms, made, target, inside=None):
        """Eq. 1) The distance of made images [B,S,S,3] from their targets, the new running means, and the terms.

        `inside` [B,S,S,1] weighs pixels, and the layers' cells by its size there; None weighs all alike.
        """
        # sum over terms of mean |term(made) - term(target)|^2 / its running mean; about 6 at the start

        def features(x):
            if not self._looks:
                return [x]
            found = vgg.vgg16(frozen["vgg"], x, vgg.IMM_TAPS, jnp.dtype(self.dtype))
            return [x, *(found[name] for name in vgg.IMM_TAPS)]

        found, want = features(made), features(target)
        values = imm.distances(found, jax.lax.stop_gradient(want), inside)
        terms, divisors = terms.updated(values)
        weigh = jnp.full(values.shape, self.perceptual, values.dtype).at[0].set(1)
        return jnp.sum(weigh * values / divisors), terms, values

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, state, frozen, images):
        xy = self._read(state, images)[1].xy
        xy = self.geometry.to_frame(coordinates.from_unit(xy, self.geometry.heat))
        return Prediction(xy.astype(jnp.float32), jnp.ones(xy.shape[:2], jnp.float32))

    def heatmaps(self, state, frozen, images):
        seen, found = self._read(state, images)
        return color.to_uint8(resnet.denormalize(seen)), found.pose

    def pictures(self, state, frozen, images):
        """Sheets of pictures, of each photo i and the next one, j.

        `swaps` (figures 1 and 4a) in columns: i, j, i decoded, the appearance of i with the pose of j, the other way
        round. `isolated` (figure 4b): i, its pose alone (the template face), its appearance alone.
        """
        seen, found = self._read(state, images)
        decode = lambda a, p: self.decode(state.params, state.model_state, a, p, train=False)[0]
        other = lambda x: jnp.roll(x, -1, 0)
        a, p = found.appearance, found.pose
        shown = [seen, other(seen), decode(a, p), decode(a, other(p)), decode(other(a), p)]
        alone = [seen, decode(jnp.zeros_like(a), p), decode(a, jnp.zeros_like(p))]
        sheet = lambda columns: color.to_uint8(resnet.denormalize(jnp.stack(columns, 1)))
        return {"swaps": sheet(shown), "isolated": sheet(alone)}

    def _read(self, state, images):
        """Normalised views of frames, and what the networks make of them."""
        seen = self.look(images)
        return seen, self.encode(state.params, state.model_state, seen, train=False)[0]

    def warning(self, numbers):
        if numbers.get("step", WARM) < WARM:
            return None
        if numbers.get("spread", 1.0) < COLLAPSED:
            return (
                f"all landmarks are at one point (mean distance from their middle {numbers['spread']:.2g} of half the "
                "view): lower optimizer.learning_rate, train paired longer, or raise losses.paired"
            )
        if numbers.get("contrast", 1.0) < COLLAPSED:
            return (
                f"made images are nearly of one colour (contrast {numbers['contrast']:.2g} of the photos'): lower "
                "optimizer.learning_rate, or train paired longer"
            )
        return None


def health(xy, made, target):
    """Numbers that fall to 0 where training collapses.

    `spread`: mean distance of the landmarks [B,K,2] of an image from their middle. `contrast`: deviation of the pixels
    of made images, over that of the photos.
    """
    away = jnp.linalg.norm(xy - jnp.mean(xy, 1, keepdims=True), axis=-1)
    deviation = lambda x: jnp.mean(jnp.std(x, (1, 2)))
    return {"spread": jnp.mean(away), "contrast": deviation(made) / jnp.maximum(deviation(target), 1e-6)}

"""LEAD, stage 1: dense features of one category, learned from whole images without annotation.

Karmali, Atrishi, Harsha, Agrawal, Jampani and Babu, "LEAD: Self-Supervised Landmark Estimation by Aligning
Distributions of Feature Similarity", WACV 2022, section 3.2; and the method that it is compared with, ContrastLandmarks
(Cheng, Su and Maji, "On Equivariant and Invariant Learning of Object Landmark Representations", ICCV 2021).

    1) two random crops of each image, with colours changed
    2) BYOL: the online network predicts what a slowly moving copy of it projects of the other crop     (eq. 1)
       or MoCo: a crop is told from those of other images, which wait in a queue
    3) the copy follows the online network
    4) dense features are hypercolumns of the encoder's four maps: 3,840 numbers a cell

Stage 2, which makes them compact, is in `lead_compact.py`; landmarks from the features are in `lead_common.py`.

The paper says little about its stage 1. What it leaves open follows BYOL (Grill et al. 2020) and ContrastLandmarks'
published code, and each class says which. Deviations from both: crops go to 96 px at once, with no central crop after
it; and images are not mirrored unless `augment.flip` says so, as a mirrored half is otherwise asked to be like the
other one.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import sharding, weights
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Fraction, NotNegative, NotNegativeFloat, Positive, PositiveInt, Share
from uld_jax.method import TrainState
from uld_jax.methods import shared
from uld_jax.methods.lead_common import DenseStage, Parts, encode
from uld_jax.methods.shared import Sgd
from uld_jax.models import layers, lead_net, resnet
from uld_jax.ops import augment, keypoints

COLLAPSED = 0.1  # share of a healthy spread below which a stage warns


@dataclasses.dataclass(frozen=True)
class Changes:
    """How a training view differs from its image (`ops/augment.py`).

    Two numbers are of the two views. Defaults are ContrastLandmarks' crops with BYOL's changes of colour.

    Attributes:
      area: least share of the image that a crop covers.
      most: largest share of the image that a crop covers.
      within: largest distance of the middle of the second crop from that of the first, as a share of the first one's
        sides; 0 for a place of its own, as in the papers.
      side: side of the crops in pixels; 0 for that of the stage's view.
      flip: probability of a mirrored view.
      jitter: probability of changed brightness, contrast, saturation and hue.
      strength: largest change of each of these.
      grey: probability of a view without colours.
      law: how these are changed, `byol` or `torchvision`, see `augment.color_jitter`.
      blur: probabilities of a blurred view, with a Gaussian of 0.1 to 2 pixels.
      solarize: probabilities of a view whose bright half is inverted.
      lighting: deviation of a shift along the principal components of colours; 0.1 in ContrastLandmarks.
    """

    area: Fraction = 0.2
    most: Fraction = 1.0
    within: NotNegativeFloat = 0.0
    side: NotNegative = 0
    flip: float = 0.0
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    law: Literal["byol", "torchvision"] = "byol"
    grey: float = 0.2
    blur: tuple[float, float] = (1.0, 0.1)
    solarize: tuple[float, float] = (0.0, 0.2)
    lighting: float = 0.0

    def __post_init__(self):
        if self.area > self.most:
            raise UserError(f"changes.area is {self.area} and changes.most is {self.most}; use area <= most")

    def crops(self, keys, images, image_size: int):
        """Return V crops of each image by keys [B,V], [V,B,S,S,3] in 0..1 of images [B,H,W,3] uint8.

        S is `side`, or `image_size` if that is 0. The crops after the first lie `within` its neighbourhood.
        """
        source, view = images.shape[1:3], (self.side or image_size,) * 2

        def draw(keys):
            boxes = jax.vmap(
                lambda key: augment.random_crop(key, source, view, area=(self.area, self.most), flip=self.flip)
            )(keys)
            if not self.within:
                return boxes
            near = lambda key, box: augment.beside(jax.random.fold_in(key, 1), box, boxes[0], source, view, self.within)
            return jnp.concatenate([boxes[:1], jax.vmap(near)(keys[1:], boxes[1:])])

        boxes = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)
        return jax.vmap(lambda boxes: jax.vmap(augment.crop, (0, 0, None))(images, boxes, view))(boxes)

    def recolored(self, keys, seen, order, number: int):
        """Return images [B,S,S,3] in 0..1 with other colours by keys [B] and `augment.random_order`."""
        names = ("brightness", "contrast", "saturation", "hue")
        options = dict(zip(names, self.strength, strict=True)) | dict(law=self.law, jitter=self.jitter, grey=self.grey)
        options |= dict(blur=self.blur[number], solarize=self.solarize[number])
        draw = lambda key, image: augment.recolor(key, image, order, **options)
        seen = jax.vmap(draw)(keys, seen)
        if self.lighting:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
            seen = jax.vmap(augment.pca_lighting, (0, 0, None))(keys, seen, self.lighting)
        return seen


def networks(stage, heads: dict[str, Any], rng, groups: int = 1):
    """Draw the variables of an encoder and of heads on its means: (params, model_state), both by part."""
    shown = jax.ShapeDtypeStruct((2 * groups, *stage._geometry.view, 3), layers.wide(stage.dtype))
    encoder = stage.encoder.network(stage.dtype, groups)
    keys = jax.random.split(rng, len(heads) + 1)
    drawn = {"encoder": layers.initialize(encoder, keys[0], shown, law=resnet.INITIAL, train=False)}
    given = jax.eval_shape(lambda x: resnet.pool(encoder.apply(drawn["encoder"], x, train=False)["layer4"]), shown)
    for key, (name, head) in zip(keys[1:], heads.items(), strict=True):
        drawn[name] = layers.initialize(head, key, given, train=False)
        given = jax.eval_shape(lambda x, head=head, own=drawn[name]: head.apply(own, x, train=False), given)
    parts = {name: layers.split(variables) for name, variables in drawn.items()}
    return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}


def from_checkpoint(stage, params, model_state, frozen, start):
    """Return parameters and state with the converted encoder, for `start=checkpoint`."""
    if stage.start != "checkpoint" or start.shapes_only:
        return params, model_state
    kind = f"resnet{stage.encoder.depth}"
    remedy = f"config.weights.{kind} holds a network of other sizes; set encoder.depth and encoder.width to its own"
    return shared.take_resnet(frozen["encoder"], params, model_state, "encoder", remedy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining(DenseStage):
    """Fields of both kinds of stage 1.

    Attributes:
      start: `scratch`; or `checkpoint` for an encoder from `config.weights.resnet50` (or 18).
      changes: how training views differ from images.
      optimizer: SGD with a cosine schedule (LEAD: 0.03; momentum and weight decay as ContrastLandmarks).
      weights: folders of converted weights by kind.
    """

    start: Literal["scratch", "checkpoint"] = "scratch"
    changes: Changes = Changes()
    optimizer: Sgd = Sgd()
    weights: Any = ()

    @property
    def weight_kinds(self):
        """The kinds of converted weights that the stage uses; see `method.Stage`."""
        return frozenset({f"resnet{self.encoder.depth}"} if self.start == "checkpoint" else ())

    @property
    def _optimizer(self):
        return self.optimizer.transform(self.steps)

    def frozen(self, purpose="train"):
        if purpose != "train" or self.start != "checkpoint":
            return {}
        kind = f"resnet{self.encoder.depth}"
        return {"encoder": weights.load(dict(self.weights).get(kind, ""), kind)}

    def _views(self, batch, rng):
        """Two normalised views [B,S,S,3] of each image."""
        own, order = jax.random.split(rng)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own, batch["index"])
        keys = jax.vmap(lambda key: jax.random.split(key, (2, 2)))(keys)  # [B, view, crop and colours]
        orders = jax.vmap(augment.random_order)(jax.random.split(order))
        found = []
        for i, seen in enumerate(self.changes.crops(keys[:, :, 0], batch["image"], self.view.image_size)):
            found.append(self.encoder.normalised(self.changes.recolored(keys[:, i, 1], seen, orders[i], i)))
        return found

    def features(self, state, frozen, shown):
        # Step 4) The online network, with the statistics that it collected.
        return encode(self, state.params["encoder"], state.model_state["encoder"], shown)

    def summary(self, state):
        return {"spread": state.aux.spread}

    def warning(self, numbers):
        if numbers.get("spread", 1.0) < COLLAPSED:
            return (
                f"projections of different images are nearly equal, the features have collapsed (spread "
                f"{numbers['spread']:.2g} of 1): lower optimizer.learning_rate, or use larger batches"
            )
        return None


def spread(z):
    """Deviation of vectors [B,C] made length 1, as a share of that of random ones, 1 / sqrt(C); 0 if collapsed."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return jnp.mean(jnp.std(keypoints.l2_normalize(z), 0)) * math.sqrt(z.shape[-1])


class Target(NamedTuple):
    """The slowly moving copy of the online network, and what rounds found.

    Attributes:
      params: parameters of its encoder and projector.
      statistics: its own batch statistics, which do not follow the online network's.
      spread: that of the last step's projections, see `spread`.
      parts: landmarks.
    """

    params: Any
    statistics: Any
    spread: jax.Array
    parts: Parts

    @property
    def labels(self):
        """Landmarks of the training images, for the next stage."""
        return self.parts.labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Byol(Pretraining):
    """Stage 1 of LEAD: bootstrap your own latent (section 3.2, eq. 1).

    Eq. 1 is one-directional and of vectors as they are. Here, as in BYOL, vectors have length 1 and both views are
    predicted from one another; vectors of any length may collapse under SGD. The heads are BYOL's.

    Attributes:
      hidden: width of the hidden layers of projector and predictor.
      projection: size of the projections.
      momentum: tau at the start, from which it rises to 1 by a cosine: BYOL's 0.99 for 300 epochs and fewer.
    """

    hidden: PositiveInt = 4096
    projection: PositiveInt = 256
    momentum: Share = 0.99

    @property
    def _heads(self):
        head = lead_net.Projector(self.hidden, self.projection, **layers.precision(self.dtype))
        return {"projector": head, "predictor": head}

    def init(self, rng, batch, frozen, start):
        own, other = jax.random.split(rng)
        params, model_state = networks(self, self._heads, own)
        # The target starts from other numbers, as in BYOL's published code.
        target, statistics = networks(self, {"projector": self._heads["projector"]}, other)
        params, model_state = from_checkpoint(self, params, model_state, frozen, start)
        target, statistics = from_checkpoint(self, target, statistics, frozen, start)
        state = TrainState(jnp.int32(0), params, model_state, self._optimizer.init(params))
        shown = jax.ShapeDtypeStruct((1, *self._geometry.view, 3), layers.wide(self.dtype))
        parts = self.no_parts(start.num_images, jax.eval_shape(lambda x: self.features(state, frozen, x), shown))
        return state.replace(aux=Target(target, statistics, jnp.ones((), layers.wide(self.dtype)), parts))

    def train_step(self, state, frozen, batch, rng):
        # Step 1)
        views, aux = self._views(batch, rng), state.aux
        # Step 2)
        (value, (model_state, statistics, metrics)), grads = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.model_state, aux, views
        )
        new = shared.updated(state, self._optimizer, grads)
        # Step 3)
        tau = target_momentum(self.momentum, state.step, self.steps)
        follow = lambda old, new: (tau * old + (1 - tau) * new).astype(old.dtype)
        target = jax.tree.map(follow, aux.params, {name: new.params[name] for name in aux.params})
        aux = aux._replace(params=target, statistics=statistics, spread=metrics["spread"])
        return new.replace(model_state=model_state, aux=aux), {"loss": value, "tau": tau} | metrics

    def _loss(self, params, model_state, aux: Target, views):
        """The loss of two views [B,S,S,3], both networks' new statistics, and metrics."""
        statistics, targets, total = aux.statistics, [], 0.0
        for seen in views:
            (_, z), statistics = self._project(aux.params, statistics, seen)
            targets.append(jax.lax.stop_gradient(z))
        for seen, target in zip(views, reversed(targets), strict=True):
            (pooled, z), model_state = self._project(params, model_state, seen)
            predicted, model_state = _apply(self._heads["predictor"], "predictor", params, model_state, z)
            total += byol_loss(predicted, target)
        return total, (model_state, statistics, {"spread": spread(z), "spread_pooled": spread(pooled)})

    def _project(self, params, model_state, seen):
        """The encoder's mean [B,C] and its projection, and the state with new statistics."""
        pooled, model_state = _pooled(self.encoder.network(self.dtype), params, model_state, seen)
        z, model_state = _apply(self._heads["projector"], "projector", params, model_state, pooled)
        return (pooled, z), model_state


def byol_loss(predicted, target):
    """Mean squared distance of vectors [B,C] made length 1; from 0 to 4 (eq. 1, and BYOL's eq. 2)."""
    unit = lambda x: keypoints.l2_normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return jnp.mean(jnp.sum((unit(predicted) - unit(target)) ** 2, -1))


def target_momentum(first: float, step, steps: int):
    """tau = 1 - (1 - first) (cos(pi step / steps) + 1) / 2, which rises from `first` to 1 (Grill et al. 2020)."""
    return 1 - (1 - first) * (jnp.cos(jnp.pi * step / max(steps, 1)) + 1) / 2


def _pooled(network, params, model_state, seen):
    """The mean [B,C] of the last map in training, and the state with new statistics of the encoder."""
    variables = {"params": params["encoder"], **model_state["encoder"]}
    maps, new = network.apply(variables, seen, train=True, mutable=["batch_stats"])
    return resnet.pool(maps["layer4"]), model_state | {"encoder": new}


def _apply(head, name: str, params, model_state, x):
    """The result of a head in training, and the state with its new statistics."""
    found, new = head.apply({"params": params[name], **model_state[name]}, x, train=True, mutable=["batch_stats"])
    return found, model_state | {name: new}


class Queue(NamedTuple):
    """The key network, past keys, and what rounds found.

    Attributes:
      params: parameters of the key network's encoder and head.
      statistics: its own batch statistics.
      keys: [Q,D] float32 of length 1, keys of earlier images.
      spread: that of the last step's queries, see `spread`.
      parts: landmarks.
    """

    params: Any
    statistics: Any
    keys: jax.Array
    spread: jax.Array
    parts: Parts

    @property
    def labels(self):
        """Landmarks of the training images, for the next stage."""
        return self.parts.labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moco(Pretraining):
    """Stage 1 of ContrastLandmarks: momentum contrast with a queue (He et al. 2020), as its published code.

    That code runs on 4 GPUs, of which each normalises its own part of the batch, and shuffles the keys among them, so
    that a query does not find its key by the statistics that both share. Here parts of the batch (`groups`) are
    normalised apart on any number of devices, and keys are shuffled in the same way.

    Attributes:
      projection: size of queries and keys.
      queue: Q, number of keys that wait; a multiple of the batch.
      temperature: of the softmax over the own key and those of the queue.
      momentum: share of the key network that stays in each step.
      groups: parts of a batch with statistics of their own.
    """

    changes: Changes = Changes(
        jitter=1.0,
        strength=(0.4, 0.4, 0.4, 0.0),
        law="torchvision",
        grey=0.0,
        blur=(0.0, 0.0),
        solarize=(0.0, 0.0),
        lighting=0.1,
    )
    projection: PositiveInt = 128
    queue: PositiveInt = 4096
    temperature: Positive = 0.07
    momentum: Share = 0.999
    groups: PositiveInt = 4

    @property
    def _head(self):
        return lead_net.Linear(self.projection, **layers.precision(self.dtype))

    def init(self, rng, batch, frozen, start):
        size = len(batch["index"])
        if self.queue % size or size % self.groups:
            raise UserError(
                f"stage {start.stage} has batches of {size}; use a divisor of queue = {self.queue} that is a multiple "
                f"of groups = {self.groups}"
            )
        rng, waiting = jax.random.split(rng)
        params, model_state = networks(self, {"head": self._head}, rng, self.groups)
        params, model_state = from_checkpoint(self, params, model_state, frozen, start)
        state = TrainState(jnp.int32(0), params, model_state, self._optimizer.init(params))
        shown = jax.ShapeDtypeStruct((1, *self._geometry.view, 3), layers.wide(self.dtype))
        parts = self.no_parts(start.num_images, jax.eval_shape(lambda x: self.features(state, frozen, x), shown))
        wide = layers.wide(self.dtype)
        keys = keypoints.l2_normalize(jax.random.normal(waiting, (self.queue, self.projection), wide))
        return state.replace(aux=Queue(params, model_state, keys, jnp.ones((), wide), parts))

    def train_step(self, state, frozen, batch, rng):
        # Step 1)
        drawn, shuffled = jax.random.split(rng)
        views, aux = self._views(batch, drawn), state.aux
        order = jax.random.permutation(shuffled, len(batch["index"]))
        # Step 2)
        (value, (model_state, statistics, keys, metrics)), grads = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.model_state, aux, views, order
        )
        new = shared.updated(state, self._optimizer, grads)
        # Step 3)
        follow = lambda old, new: (self.momentum * old + (1 - self.momentum) * new).astype(old.dtype)
        target = jax.tree.map(follow, aux.params, new.params)
        # The oldest keys make place; with the step the place is part of the state, so a resumed run goes on with it.
        place = (state.step * len(keys)) % self.queue
        keys = sharding.gathered(keys.astype(aux.keys.dtype))
        waiting = jax.lax.dynamic_update_slice_in_dim(aux.keys, keys, place, 0)
        aux = aux._replace(params=target, statistics=statistics, keys=waiting, spread=metrics["spread"])
        return new.replace(model_state=model_state, aux=aux), {"loss": value} | metrics

    def _loss(self, params, model_state, aux: Queue, views, order):
        """The loss of two views [B,S,S,3], both networks' new statistics, the keys [B,D], and metrics."""
        # Keys are normalised in other company than their queries: in the given order of the batch.
        keys, statistics = self._project(aux.params, aux.statistics, views[1][order])
        keys = jax.lax.stop_gradient(jnp.zeros_like(keys).at[order].set(keys))
        queries, model_state = self._project(params, model_state, views[0])
        value, metrics = moco_loss(queries, keys, aux.keys, self.temperature)
        return value, (model_state, statistics, keys, metrics | {"spread": spread(queries)})

    def _project(self, params, model_state, seen):
        pooled, model_state = _pooled(self.encoder.network(self.dtype, self.groups), params, model_state, seen)
        z, model_state = _apply(self._head, "head", params, model_state, pooled)
        return keypoints.l2_normalize(z), model_state


def moco_loss(queries, keys, waiting, temperature: float):
    """Cross-entropy of finding the own key among those that wait (He et al. 2020, eq. 1), and the share found.

    Args:
      queries, keys: [B,D] of length 1, in the same order.
      waiting: [Q,D] keys of other images.
      temperature: of the softmax.

    Returns:
      A scalar, and {"found": share of the queries whose own key is the most similar}.
    """
    own = jnp.sum(queries * keys, -1, keepdims=True)
    others = jnp.einsum("bd,qd->bq", queries, waiting, precision="highest")
    logits = jnp.concatenate([own, others], -1) / temperature
    value = jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0])
    return value, {"found": jnp.mean(jnp.argmax(logits, -1) == 0, dtype=logits.dtype)}

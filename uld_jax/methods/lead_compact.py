"""LEAD, stage 2: compact dense features, from the similarities that those of stage 1 have.

Karmali et al., WACV 2022, section 3.3. `lead.py` has stage 1 and the paper's title.

    1) two images of the category, or two views of one
    2) the frozen encoder of stage 1 tells how similar each cell of one is to all cells of the other     p
    3) a network with a feature pyramid, which starts from that encoder, has C numbers for each cell      f
    4) the distribution of similarity of f follows p: mean over cells of the cross-entropy of q under p

With `objective=equivariance` the same network learns what ContrastLandmarks' second stage, and DVE, learn: a cell
matches its own place in a warped copy. With stage 1 by `lead.Byol` or `lead.Moco` this is the grid of the paper's
table 6. `Nmf` is the baseline without a network (tables 1 and 2).
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.bank import flatten
from uld_jax.clustering import nmf
from uld_jax.errors import UserError
from uld_jax.hyperparameters import NotNegative, Positive, PositiveInt
from uld_jax.method import Need, Round, TrainState, same_shapes
from uld_jax.methods import shared
from uld_jax.methods.lead import Changes
from uld_jax.methods.lead_common import STRIDE, DenseStage, Parts, Seen, encode
from uld_jax.methods.shared import Augment, Sgd
from uld_jax.models import layers, lead_net
from uld_jax.models.lead_net import LEVELS
from uld_jax.ops import augment, dense_matching, hypercolumns, keypoints

STAGE1 = "stage 1, lead.Byol or lead.Moco"


class Teacher(NamedTuple):
    """The encoder of stage 1, which no longer changes, and what rounds found.

    Attributes:
      params: its parameters.
      model_state: its statistics, as training left them.
      parts: landmarks.
    """

    params: Any
    model_state: Any
    parts: Parts

    @property
    def labels(self):
        """Landmarks of the training images, for the next stage."""
        return self.parts.labels


def encoder_before(stage, start, params, model_state):
    """Return the encoder of stage 1 and its statistics. Raises UserError if there is none, or one of other sizes."""
    known = shared.take(stage, start, "network")
    found = known.get("encoder"), start.previous.model_state.get("encoder")
    if not same_shapes(found, (params, model_state)):
        raise UserError(
            f"stage {start.stage} goes on with the encoder of {STAGE1}, and the stage before has none of the same "
            "encoder.depth and encoder.width"
        )
    return found


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """A feature pyramid (`lead_net.FeaturePyramid`), of usual widths: the paper gives none.

    Attributes:
      width: channels of its levels.
      inner: channels of the blocks that bring the levels to one size.
    """

    width: PositiveInt = 256
    inner: PositiveInt = 128


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The loss of LEAD (section 3.3).

    Attributes:
      pairs: `different` takes two images, each other's neighbours in a batch; `views` two crops of one image, which the
        paper's words allow too; `mixed` half of each.
      tau: temperature of q, and of p in the paper.
      teacher_tau: temperature of p.
      block: rows of p and q that exist at a time; 0 for all.
    """

    pairs: Literal["different", "views", "mixed"] = "different"
    tau: Positive = 0.05
    teacher_tau: Positive = 0.05
    block: NotNegative = 0


@dataclasses.dataclass(frozen=True)
class Equivariance:
    """The loss of ContrastLandmarks' second stage and of DVE (`dense_matching.equivariance`).

    Attributes:
      scale: length of features; logits are its square times a cosine.
      exchange: whether features go through those of another image, as in DVE.
      bend: deviation of the thin-plate weights of the warped copy (`warp.random_warp`).
      block: as in `Alignment`.
    """

    scale: Positive = 20.0
    exchange: bool = False
    bend: float = 0.02
    block: NotNegative = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compact(DenseStage):
    """Stage 2: a feature pyramid at a quarter of the image's resolution.

    The published table of widths of the head (table 3) has its best error at 256, which is the default.

    Attributes:
      size: C, numbers of a cell: 64, 128 or 256 in the paper.
      head: width of the projection head, which is dropped after training; 0 for none.
      fpn: widths of the feature pyramid.
      objective: `alignment`, LEAD's; or `equivariance`, ContrastLandmarks'.
      alignment, equivariance: of these.
      changes: crops, which teacher and student share, and changes of colour, which only the student sees.
      warps: the warped copies of `equivariance`.
      optimizer: SGD as in stage 1.
    """

    needs = (Need("network", STAGE1, of_images=False),)

    size: PositiveInt = 64
    head: NotNegative = 256
    fpn: Pyramid = Pyramid()
    objective: Literal["alignment", "equivariance"] = "alignment"
    alignment: Alignment = Alignment()
    equivariance: Equivariance = Equivariance()
    changes: Changes = Changes()
    warps: Augment = Augment(5.0, 0.1, 0.1)
    optimizer: Sgd = Sgd()

    @property
    def _optimizer(self):
        return self.optimizer.transform(self.steps)

    @property
    def _fpn(self):
        return lead_net.FeaturePyramid(self.size, **dataclasses.asdict(self.fpn), **layers.precision(self.dtype))

    @property
    def _head(self):
        return lead_net.Projector(self.head, self.head, **layers.precision(self.dtype))

    @property
    def _uses_head(self) -> bool:
        return bool(self.head) and self.objective == "alignment"

    def init(self, rng, batch, frozen, start):
        for_encoder, for_fpn, for_head = jax.random.split(rng, 3)
        shown = jax.ShapeDtypeStruct((2, *self._geometry.view, 3), layers.wide(self.dtype))
        network = self.encoder.network(self.dtype)
        variables = jax.eval_shape(lambda key, x: network.init(key, x, train=False), for_encoder, shown)
        encoder, statistics = encoder_before(self, start, *layers.split(variables))
        maps = jax.eval_shape(lambda x: encode(self, encoder, statistics, x), shown)
        drawn = {"fpn": layers.initialize(self._fpn, for_fpn, dict(zip(LEVELS, maps, strict=True)), train=False)}
        if self._uses_head:
            given = jax.ShapeDtypeStruct((*maps[0].shape[:3], self.size), layers.wide(self.dtype))
            drawn["head"] = layers.initialize(self._head, for_head, given, train=False)
        parts = {name: layers.split(one) for name, one in drawn.items()}
        params = {"encoder": encoder} | {name: part[0] for name, part in parts.items()}
        model_state = {"encoder": statistics} | {name: part[1] for name, part in parts.items()}
        state = TrainState(jnp.int32(0), params, model_state, self._optimizer.init(params))
        features = jax.eval_shape(lambda x: self.features(state, frozen, x), shown)
        return state.replace(aux=Teacher(encoder, statistics, self.no_parts(start.num_images, features)))

    def train_step(self, state, frozen, batch, rng):
        learn = self._aligned if self.objective == "alignment" else self._equivariant
        draw = lambda params: learn(state, params, batch, rng)
        (value, (model_state, metrics)), grads = jax.value_and_grad(draw, has_aux=True)(state.params)
        new = shared.updated(state, self._optimizer, grads)
        return new.replace(model_state=model_state), {"loss": value} | metrics

    def _aligned(self, state, params, batch, rng):
        # Step 1) Crops that both networks see, in other colours for the student.
        own, order = jax.random.split(rng)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own, batch["index"])
        keys = jax.vmap(lambda key: jax.random.split(key, (2, 2)))(keys)
        orders = jax.vmap(augment.random_order)(jax.random.split(order))
        views = (0,) if self.alignment.pairs == "different" else (0, 1)
        model_state, maps, teachers = state.model_state, [], []
        crops = self.changes.crops(keys[:, : len(views), 0], batch["image"], self.view.image_size)
        for i, seen in zip(views, crops, strict=True):
            # Step 2)
            teachers.append(jax.lax.stop_gradient(self._teach(state.aux, seen)))
            # Step 3)
            shown = self.changes.recolored(keys[:, i, 1], seen, orders[i], i)
            f, model_state = self._study(params, model_state, shown)
            maps.append(keypoints.l2_normalize(f))
        first, second = (maps[0], teachers[0]), self._partners(maps, teachers)
        # Step 4) Both directions, as both students are there.
        options = dict(tau=self.alignment.tau, teacher_tau=self.alignment.teacher_tau, block=self.alignment.block)
        match = lambda a, b: dense_matching.similarity_alignment(a[0], b[0], a[1], b[1], **options)
        there, back = match(first, second), match(second, first)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, there, back)
        return mean.loss, (model_state, {"divergence": mean.divergence, "perplexity": mean.perplexity})

    def _partners(self, maps, teachers):
        """The other image, or view, of each image: its map and its pyramid."""
        roll = lambda x: jnp.roll(x, -1, 0)
        other = jax.tree.map(roll, (maps[0], teachers[0]))
        if self.alignment.pairs == "different":
            return other
        view = maps[1], teachers[1]
        if self.alignment.pairs == "views":
            return view
        even = jnp.arange(len(maps[0])) % 2 == 0
        choose = lambda a, b: jnp.where(even.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        return jax.tree.map(choose, view, other)

    def _equivariant(self, state, params, batch, rng):
        own, order = jax.random.split(rng)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own, batch["index"])
        warped, *colours = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 3))(keys), axis=1)
        orders = jax.vmap(augment.random_order)(jax.random.split(order))
        # The image, and a warped copy.
        geometry = self._geometry
        warps = self.warps.random_warps(warped, self.view.zoom, self.dtype, self.equivariance.bend)
        model_state, maps = state.model_state, []
        for i, seen in enumerate((geometry.look(batch["image"]), geometry.look(batch["image"], warps))):
            f, model_state = self._study(params, model_state, self.changes.recolored(colours[i], seen, orders[i], i))
            maps.append(f)
        # The place of each cell of the image in the copy.
        truth = geometry.cells_in(geometry.still(len(keys)), warps)
        options = dict(stride=STRIDE, scale=self.equivariance.scale, exchange=self.equivariance.exchange)
        value = dense_matching.equivariance(
            *maps, truth, geometry.on_map(truth), block=self.equivariance.block, **options
        )
        return value, (model_state, {})

    def _teach(self, teacher: Teacher, seen) -> hypercolumns.Pyramid:
        """The pyramid of stage 1 of images [B,S,S,3] in 0..1, by the statistics that it collected."""
        return encode(self, teacher.params, teacher.model_state, seen)

    def _study(self, params, model_state, seen):
        """The student's map [B,R,R,C] of images [B,S,S,3] in 0..1 after its head, and the state with new statistics."""
        new = dict(model_state)
        variables = variables_of(params["encoder"], model_state["encoder"])
        maps, new["encoder"] = self.encoder.network(self.dtype).apply(
            variables, self.encoder.normalised(seen), train=True, mutable=["batch_stats"]
        )
        given = maps
        for name, part in (("fpn", self._fpn), ("head", self._head))[: 1 + self._uses_head]:
            variables = variables_of(params[name], model_state[name])
            given, new[name] = part.apply(variables, given, train=True, mutable=["batch_stats"])
        return given.astype(layers.wide(self.dtype)), new

    def features(self, state, frozen, shown):
        maps = encode(self, state.params["encoder"], state.model_state["encoder"], shown)
        variables = variables_of(state.params["fpn"], state.model_state["fpn"])
        return (self._fpn.apply(variables, dict(zip(LEVELS, maps, strict=True)), train=False),)


def variables_of(params, model_state):
    """Return the variables of a network, {collection: ...}."""
    return {"params": params, **model_state}


class Dictionary(NamedTuple):
    """Non-negative factors of hypercolumns, and what rounds found.

    Attributes:
      round: int32, passes done: the first fits the factors.
      factors: [C,sum C_l] float32.
      parts: landmarks.
    """

    round: jax.Array
    factors: jax.Array
    parts: Parts

    @property
    def labels(self):
        """Landmarks of the training images, for the next stage."""
        return self.parts.labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nmf(DenseStage):
    """The baseline: non-negative factors of hypercolumns, a stage of zero steps.

    The paper does not say how it fits them. Here factors are fitted to random cells of the training images by
    multiplicative updates (`clustering/nmf.py`), and a cell's features are its coefficients after as many updates.

    Attributes:
      size: C, number of factors.
      updates: multiplicative updates of the fit.
      codes: multiplicative updates of a cell's coefficients.
    """

    needs = (Need("network", STAGE1, of_images=False),)

    size: PositiveInt = 64
    updates: PositiveInt = 200
    codes: PositiveInt = 50

    def init(self, rng, batch, frozen, start):
        shown = jax.ShapeDtypeStruct((2, *self._geometry.view, 3), layers.wide(self.dtype))
        network = self.encoder.network(self.dtype)
        variables = jax.eval_shape(lambda key, x: network.init(key, x, train=False), rng, shown)
        encoder, statistics = encoder_before(self, start, *layers.split(variables))
        maps = jax.eval_shape(lambda x: encode(self, encoder, statistics, x), shown)
        wide = layers.wide(self.dtype)
        factors = jnp.zeros((self.size, sum(level.shape[-1] for level in maps)), wide)
        parts = self.no_parts(start.num_images, (jax.ShapeDtypeStruct((self.size,), wide),))
        aux = Dictionary(jnp.int32(0), factors, parts)
        return TrainState(jnp.int32(0), {"encoder": encoder}, {"encoder": statistics}, aux=aux)

    def round_at(self, step):
        return Round(passes=3) if step == self.steps else None

    def observe(self, state, frozen, batch, rng):
        seen = super().observe(state, frozen, batch, rng)
        maps = encode(self, state.params["encoder"], state.model_state["encoder"], self._geometry.look(batch["image"]))
        return Sampled(hypercolumns.at_cells(maps, self._side, self.drawn(rng, batch["index"], state)), *seen)

    def refresh(self, state, frozen, bank, rng):
        aux, values = state.aux, bank.values
        x, real = flatten(values.hypercolumns, jnp.broadcast_to(bank.real[..., None], values.hypercolumns.shape[:-1]))
        fit = lambda: nmf.unit_atoms(nmf.fit(rng, x, self.size, self.updates, mask=real)).dictionary
        factors = jax.lax.cond(aux.round == 0, fit, lambda: aux.factors)
        found = super().refresh(state, frozen, bank._replace(values=Seen(*values[1:])), rng).aux.parts
        parts = jax.tree.map(lambda new, old: jnp.where(aux.round == 0, old, new), found, aux.parts)
        return state.replace(aux=Dictionary(aux.round + 1, factors, parts))

    def features(self, state, frozen, shown):
        maps = encode(self, state.params["encoder"], state.model_state["encoder"], shown)
        side = maps[0].shape[1]
        cells = hypercolumns.materialise(maps, side)
        codes = nmf.encode(cells.reshape(-1, cells.shape[-1]), state.aux.factors, self.codes)
        return (codes.reshape(*cells.shape[:3], self.size),)


class Sampled(NamedTuple):
    """The data that a pass of `Nmf` collects.

    Attributes:
      hypercolumns: [B,P,sum C_l] float32, not normalised.
      descriptors, xy, score: coefficients and landmarks, see `lead_common.Seen`.
    """

    hypercolumns: jax.Array
    descriptors: jax.Array
    xy: jax.Array
    score: jax.Array

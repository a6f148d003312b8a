"""C3: landmarks from unpaired images, by swapping appearance and pose twice, and by a flow between images.

Xu, Yang, Liu, Dai and Zhou, "Unsupervised Landmark Learning from Unpaired Data", 2020. There is no published code; what
the paper leaves open is decided here and said where.

    Network    a backbone N with maps f (its last layer) and f' (the one before), heads E_a and E_p, a decoder D

    Paired     1) a photo's warp is decoded from the appearance of another warp of it and its own pose: IMM's recipe
                  (appendix)
    Flow       2) C: cosines of the cells of f' of two images; convolutions over both images' cells   (eq. 3)
               3) S: softmax over one image's cells for each cell of the other; T: the best cell     (section 3.2)
               4) the true place of each cell is known in two warps of an image, or matches of two images of one
                  category must be surer than those of two categories
    Joint      5) two photos swap their poses: I_ij = D(a_i, p_j)                                      (section 3.1)
               6) the made images are encoded, and swap again: I'_i = D(a'_i, p'_i) must be I_i        (eq. 1)
               7) the pose survives the swap                                                           (eq. 2)
               8) landmarks follow the flow from one image to the other                                (eq. 4)

Deviations, and choices where the paper is silent:

    cells         the pose lives on 16 x 16 cells whatever the backbone's stride: with IMM's Gaussians, a tenth of half
                  the image wide, a point between two cells of an 8 x 8 map is seen by none of them
    normalised    heads and decoder have batch normalisation (`models/c3_net.py`), whose running statistics follow the
                  photos alone, not the made images
    perceptual    five layers of VGG16 and the image, each over the running mean of its own value, as IMM has it, but
                  without a gradient through that mean, and without the factor 1000
    weights       all three are 1; each loss is a mean over images, landmarks, and a sum over cells where it is of maps
    stopped       the images of step 5 are constants to the gradient (appendix); so the appearance of photos learns by
                  the second swap alone, and their pose by steps 7 and 8
    flow          learns before step 5 and stays; it sees f' of the present backbone, through which nothing flows back
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.errors import UserError
from uld_jax.hyperparameters import NotNegative, NotNegativeFloat, PositiveInt
from uld_jax.method import TrainState
from uld_jax.methods import imm, shared
from uld_jax.methods.c3_common import PARTS, C3Stage, Seen, Terms, health
from uld_jax.methods.shared import AdamL2, Augment
from uld_jax.models import layers, resnet
from uld_jax.models.neigh_consensus import NeighConsensus
from uld_jax.ops import color, coordinates, correlation

CONTROL = 10  # n of the n x n control points of the warps of step 1 (IMM)


# -- 1) paired images (appendix; IMM) ---------------------------------------------------------------------------------


def paired_loss(stage: C3Stage, params, model_state, terms: Terms, frozen, views):
    """Step 1) The target from the source's appearance and its own pose: the loss, the new state and means, metrics."""
    source, target, inside = views
    both, new = jnp.concatenate([source, target]), dict(model_state)
    f, _, new["backbone"] = stage.maps(params, model_state, both, train=True)
    of_source, of_target = jnp.split(f, 2)
    appearance, new["appearance"] = stage.appearance(params, model_state, of_source, train=True)
    xy, new["pose"] = stage.pose(params, model_state, of_target, train=True)
    pose = stage.net.gaussians(xy, stage.net.cells)
    made, new["decoder"] = stage.decode(params, model_state, appearance, pose, train=True)
    value, terms, values = stage.distance(frozen, terms, made, target, inside)
    return value, (new, terms, {"pixels": values[0]} | health(xy, made, target))


def paired_views(stage: C3Stage, batch, rng):
    """Step 1) Normalised sources and targets [B,S,S,3], and where targets show their photo [B,S,S,1]."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
    source, target, inside = imm.warped_pair(keys, stage.geometry.look(batch["image"]), CONTROL)
    return resnet.normalize(source), resnet.normalize(target), inside


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired(C3Stage):
    """Step 1) All networks learn from warps of single photos, as in IMM."""

    start: Literal["previous", "checkpoint", "scratch"] = "checkpoint"

    def init(self, rng, batch, frozen, start):
        params, model_state = self.networks(rng, frozen, start)
        params, model_state = ({name: parts[name] for name in PARTS} for parts in (params, model_state))
        return TrainState(jnp.int32(0), params, model_state, self._optimizer.init(params), self.first_terms())

    def train_step(self, state, frozen, batch, rng):
        views = paired_views(self, batch, rng)
        draw = lambda params: paired_loss(self, params, state.model_state, state.aux, frozen, views)
        (value, (model_state, terms, metrics)), grads = jax.value_and_grad(draw, has_aux=True)(state.params)
        new = shared.updated(state, self._optimizer, grads)
        return new.replace(model_state=model_state, aux=terms), {"loss": value} | metrics


# -- 2), 3), 4) the flow between two images (section 3.2) -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Matcher:
    """The convolutions over the cells of both images (`models/neigh_consensus.py`).

    Attributes:
      form: `separable`, two convolutions in place of one (eq. 3); or `full`, those of neighbourhood consensus.
      kernel: side of their kernels in cells.
      channels: of the layers; the last is 1.
      mutual: whether pairs of cells that are not each other's best count less, before and after the layers (NC-Net).
    """

    form: Literal["separable", "full"] = "separable"
    kernel: PositiveInt = 5
    channels: tuple[int, ...] = (16, 16, 1)
    mutual: bool = True

    def network(self, dtype: str) -> NeighConsensus:
        """Return the network."""
        return NeighConsensus(self.channels, self.kernel, self.form, **layers.precision(dtype))

    def correlate(self, params, a, b, dtype: str):
        """Steps 2, 3) How alike all cells of maps a [B,h,w,C] are to all of b: the scores before the softmax.

        Without `params`, {}, no flow was learned, and they are the cosines.
        """
        cosines = correlation.correlate(a, b)
        if not params:
            return cosines
        mutual = correlation.mutual_matching if self.mutual else lambda x: x
        return mutual(self.network(dtype).apply({"params": params}, mutual(cosines)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowStage(C3Stage):
    """What the two stages with a flow share: `params` has the part `flow`, or lacks it where none was learned.

    Attributes:
      matcher: the flow's network.
    """

    matcher: Matcher = Matcher()

    def field(self, state, images_a, images_b):
        """Step 3) T: the best cell in a for each cell of b, [B,h,w,2] `(x, y)`, of frames [B,H,W,3] uint8."""
        of = lambda images: self._features(state.params, state.model_state, self.look(images))
        found = self.matcher.correlate(state.params.get("flow"), of(images_a), of(images_b), self.dtype)
        return correlation.matches(correlation.swap(found))

    def carry(self, state, frozen, images_a, images_b, points_b):
        geometry, view = self.geometry, self.geometry.view
        field = self.field(state, images_a, images_b)
        size = field.shape[1:3]
        to_view = dataclasses.replace(geometry, stride=1)
        in_view = to_view.to_cells(points_b, geometry.still(len(points_b)))
        cells = correlation.carry_points(field, coordinates.rescale_corners(in_view, view, size))
        return to_view.to_frame(coordinates.rescale_corners(cells, size, view))

    def pictures(self, state, frozen, images):
        return super().pictures(state, frozen, images) | {"carried": self._carried(state, frozen, images)}

    def _carried(self, state, frozen, images):
        """Figure 3) Photo i and the next, j, with their landmarks, and j with those that the flow carries from i."""
        other = jnp.roll(images, -1, 0)
        mine, theirs = (self.predict(state, frozen, x).xy for x in (images, other))
        brought = self.carry(state, frozen, other, images, mine)
        shown = ((images, mine), (other, theirs), (other, brought))
        return jnp.stack([color.dotted(photo, xy) for photo, xy in shown], 1)

    def _features(self, params, model_state, seen):
        """f' [B,h,w,C] of normalised images, by the statistics that training collected."""
        return self._run("backbone", params, model_state, seen, train=False)[0]["layer3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(FlowStage):
    """Steps 2) to 4) The convolutions learn, on features that stay; all other parts go on to the next stage.

    Attributes:
      objective: `grid`, the cross-entropy of each cell's true place in another warp of its image, which sets of one
        category need; or `weak`, NC-Net's: matches of images of one category are surer than those of two categories.
        `weak` needs config.data.partner=True and config.data.partner_by=category or pairs.
      warps: the two views of `grid`, whose warps have normal deviations.
      bend: deviation of their thin-plate weights (`warp.random_warp`).
      apart: whether negative pairs of `weak` that are of one category by chance are left out (ours), or count as in
        NC-Net's published code (False).
      start: as in every stage; or `ncnet`, the published networks of `config.weights.ncnet`.
      features_learn: whether the backbone learns too, as in the second half of the paper's training on PF-Pascal.
      optimizer: Adam; 5e-4, then 1e-5 with `features_learn` (appendix).
    """

    compares = False
    start: Literal["previous", "checkpoint", "scratch", "ncnet"] = "previous"
    objective: Literal["grid", "weak"] = "grid"
    warps: Augment = Augment(10.0, 0.1, 0.1, 0.0)
    bend: float = 0.02
    apart: bool = True
    features_learn: bool = False
    optimizer: AdamL2 = AdamL2(l2=0.0)

    @property
    def needs_partner(self):
        """Two images of one category."""
        return self.objective == "weak"

    @property
    def partner_by(self):
        """Which second images suit."""
        return ("category", "pairs") if self.objective == "weak" else ()

    def step_tables(self):
        return {"categories": ()} if self.objective == "weak" and self.apart else {}

    @property
    def _learns(self) -> tuple[str, ...]:
        return ("flow", "backbone") if self.features_learn else ("flow",)

    @property
    def weight_kinds(self):
        """The kinds of converted weights that the stage uses; see `method.Stage`."""
        return super().weight_kinds | ({"ncnet"} if self.start == "ncnet" else set())

    def frozen(self, purpose="train"):
        loaded = super().frozen(purpose)
        if purpose == "train" and self.start == "ncnet":
            loaded["ncnet"] = weights.load(dict(self.weights).get("ncnet", ""), "ncnet")
        return loaded

    def init(self, rng, batch, frozen, start):
        rng, for_flow = jax.random.split(rng)
        params, model_state = self.networks(rng, frozen, start)
        if self.start == "ncnet":
            params, model_state = self._published(params, model_state, frozen, for_flow)
        elif "flow" not in params:
            params = params | {"flow": self._new_flow(for_flow, params, model_state)}
        opt_state = self._optimizer.init({name: params[name] for name in self._learns})
        return TrainState(jnp.int32(0), params, model_state, opt_state)

    def _published(self, params, model_state, frozen, rng):
        """The networks with NC-Net's features, which end before f, and its convolutions."""
        remedy = "config.weights.ncnet needs net.depth=101, matcher.form=full, and its own kernel and channels there"
        if not frozen:
            return params | {"flow": self._new_flow(rng, params, model_state)}, model_state
        given, own = frozen["ncnet"]["features"], params["backbone"]
        statistics = model_state["backbone"]["batch_stats"]
        take = lambda given, own: own | shared.take_weights(given, {name: own.get(name) for name in given}, remedy)
        params = params | {"backbone": take(given["params"], own)}
        params["flow"] = shared.take_weights(
            frozen["ncnet"]["consensus"]["params"], self._new_flow(rng, params, model_state), remedy
        )
        return params, model_state | {"backbone": {"batch_stats": take(given["batch_stats"], statistics)}}

    def _new_flow(self, rng, params, model_state):
        shown = jax.ShapeDtypeStruct((1, *self.geometry.view, 3), layers.wide(self.dtype))
        f = jax.eval_shape(lambda x: self._features(params, model_state, x), shown)
        given = jnp.zeros((1, *f.shape[1:3], *f.shape[1:3]), layers.wide(self.dtype))
        return self.matcher.network(self.dtype).init(rng, given)["params"]

    def train_step(self, state, frozen, batch, rng):
        examples = self._warped(batch, rng) if self.objective == "grid" else self._related(batch)

        def loss(params, examples):
            of = lambda seen: self._features(params, state.model_state, seen)
            match = lambda a, b: self.matcher.correlate(params["flow"], a, b, self.dtype)
            a, b = of(examples["a"]), of(examples["b"])
            # Step 2, 3)
            found = match(a, b)
            # Step 4)
            if self.objective == "grid":
                true = self._true_cells(examples, found.shape[1:3])
                value = correlation.grid_cross_entropy(found, *true)
                return value, {"certainty": jnp.mean(correlation.weak_score(found))}
            unrelated = match(jnp.roll(a, 1, 0), b)
            scores = correlation.weak_score(found), correlation.weak_score(unrelated)
            value = correlation.weak_loss(*scores, examples.get("apart"))
            return value, {"related": jnp.mean(scores[0]), "unrelated": jnp.mean(scores[1])}

        return shared.descend(state, loss, examples, self._optimizer, names=self._learns)

    def _warped(self, batch, rng):
        """Objective `grid`) Two views of each image, and their warps."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        warps = [self.warps.random_warps(k, self.view.zoom, self.dtype, self.bend) for k in keys]
        seen = [resnet.normalize(self.geometry.look(batch["image"], each)) for each in warps]
        return {"a": seen[0], "b": seen[1], "warps": warps}

    def _true_cells(self, examples, size):
        """The true places of the cells of each view in the other one, two [B,h,w,2] in cells of maps of `size`."""
        geometry = dataclasses.replace(self.geometry, stride=self.view.image_size // size[0])
        a, b = examples["warps"]
        return geometry.cells_in(a, b), geometry.cells_in(b, a)

    def _related(self, batch):
        """Objective `weak`) Two images of one category, and whether a's predecessor is of another one."""
        examples = {"a": self.look(batch["image"]), "b": self.look(batch["image2"])}
        if self.apart:
            categories = batch["categories"]
            examples["apart"] = jnp.roll(categories, 1) != categories
        return examples


# -- 5) to 8) unpaired images (sections 3.1, 3.2) ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Losses:
    """Weights of the losses of unpaired images; the paper gives none.

    Attributes:
      cycle: of eq. 1.
      invariance: of eq. 2.
      equivariance: of eq. 4; 0 leaves the flow out.
      rise: steps over which the weight of eq. 4 rises to that.
      paired: of the loss of step 1, on warps of the same photos; 0 in the paper. With cycle=invariance=0 and this at 1
        it gives the rows of table 2 without the cycle.
      weak: of NC-Net's loss, which then keeps teaching the flow beside the landmarks, for several categories (the row
        "with landmarks" of table 3, which the paper does not describe); it needs `pairs=partner`.
    """

    cycle: NotNegativeFloat = 1.0
    invariance: NotNegativeFloat = 1.0
    equivariance: NotNegativeFloat = 1.0
    rise: NotNegative = 0
    paired: NotNegativeFloat = 0.0
    weak: NotNegativeFloat = 0.0


class Balances(NamedTuple):
    """Running means of perceptual terms.

    Attributes:
      cycle: of eq. 1.
      paired: of step 1.
    """

    cycle: Terms
    paired: Terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint(FlowStage):
    """Steps 5) to 8) All networks but the flow learn from pairs of different photos.

    Attributes:
      pairs: `batch`, neighbours in a batch, whose size is even; or `partner`, an image and its second one, which
        config.data.partner=True and config.data.partner_by give, so that both show one category.
      losses: weights of the losses.
      warp: how maps follow the flow: `hard`, its best cell (section 3.2); `soft`, the mean under the scores;
        `softargmax`, the mean place; `st`, hard, with the gradient of soft. As the flow is a constant here, they differ
        in what is compared and not in what learns.
      stop_pose: whether the photo's own pose is a constant in eq. 2.
    """

    pairs: Literal["batch", "partner"] = "batch"
    losses: Losses = Losses()
    warp: Literal["hard", "soft", "softargmax", "st"] = "hard"
    stop_pose: bool = False

    @property
    def needs_partner(self):
        """Two images of one category."""
        return self.pairs == "partner"

    def step_tables(self):
        return {"categories": ()} if self.losses.weak else {}

    @property
    def _learns(self) -> tuple[str, ...]:
        return (*PARTS, "flow") if self.losses.weak else PARTS

    def init(self, rng, batch, frozen, start):
        if self.pairs == "batch" and len(batch["index"]) % 2:
            raise UserError(f"stage {start.stage} has batches of {len(batch['index'])}; use an even number, for pairs")
        params, model_state = self.networks(rng, frozen, start)
        for name in ("equivariance", "weak"):
            if getattr(self.losses, name) and "flow" not in params:
                raise UserError(
                    f"{start.stage}.losses.{name} needs a flow; put a stage c3.Flow before it, or set it to 0"
                )
        opt_state = self._optimizer.init({name: params[name] for name in self._learns})
        terms = self.first_terms()
        return TrainState(jnp.int32(0), params, model_state, opt_state, Balances(terms, terms))

    def train_step(self, state, frozen, batch, rng):
        views = paired_views(self, batch, rng) if self.losses.paired else None
        images, categories = batch["image"], batch.get("categories")
        if self.pairs == "partner":
            images = shared.neighbours(images, batch["image2"])
            categories = None if categories is None else shared.neighbours(categories, batch["categories2"])
        seen = self.look(images)
        trained = {name: state.params[name] for name in self._learns}
        loss = lambda trained: self._loss(state.params | trained, state, frozen, seen, views, categories)
        (value, (model_state, aux, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        new = shared.updated(state, self._optimizer, grads)
        return new.replace(model_state=model_state, aux=aux), {"loss": value} | metrics

    def _loss(self, params, state, frozen, seen, views, categories):
        weigh, aux, total, model_state, metrics = self.losses, state.aux, 0.0, state.model_state, {}
        if weigh.cycle or weigh.invariance or weigh.equivariance or weigh.weak:
            found, model_state = self.encode(params, model_state, seen, train=True)
            metrics = health(found.xy, seen, seen)
        if weigh.cycle or weigh.invariance:
            value, (model_state, terms, told) = self._cycle(params, model_state, aux.cycle, frozen, seen, found)
            total, aux, metrics = total + value, aux._replace(cycle=terms), metrics | told
        if weigh.equivariance:
            value, told = self.equivariance(params, found)
            rise = jnp.minimum(1.0, state.step / max(weigh.rise, 1)) if weigh.rise else 1.0
            total, metrics = total + weigh.equivariance * rise * value, metrics | told
        if weigh.weak:
            value, told = self._weak(params, found.features, categories)
            total, metrics = total + weigh.weak * value, metrics | told
        if weigh.paired:
            value, (model_state, terms, told) = paired_loss(self, params, model_state, aux.paired, frozen, views)
            total, aux, metrics = total + weigh.paired * value, aux._replace(paired=terms), metrics | told
        return total, (model_state, aux, metrics)

    def _cycle(self, params, model_state, terms, frozen, seen, found: Seen):
        """Steps 5, 6, 7) The weighted losses of two swaps."""
        # Step 5) I_ij has the appearance of i and the pose of j. Nothing flows back through it, so that its decoder's
        # activations are not kept.
        made, _ = self.decode(params, model_state, found.appearance, pairs_swapped(found.pose), train=True)
        made = jax.lax.stop_gradient(made)
        # Step 6) The image at i has the appearance of i, and that at j the pose of i.
        again, _ = self.encode(params, model_state, made, train=True)
        pose = pairs_swapped(again.pose)
        back, decoder = self.decode(params, model_state, again.appearance, pose, train=True)
        value, terms, values = self.distance(frozen, terms, back, seen)
        # Step 7)
        own = jax.lax.stop_gradient(found.pose) if self.stop_pose else found.pose
        invariance = map_distance(pose, own)
        metrics = {"cycle": value, "pixels": values[0], "invariance": invariance} | health(found.xy, made, seen)
        total = self.losses.cycle * value + self.losses.invariance * invariance
        return total, (model_state | {"decoder": decoder}, terms, metrics)

    def equivariance(self, params, found: Seen):
        """Step 8, eq. 4) Landmarks of i beside those of j that the flow carries to i: the loss, and metrics.

        `carried` is the mean distance of both, in pixels of the view.
        """
        # mean over images and landmarks of  sum over cells of (p_i - T o p_j)^2;  T(u) is j's cell for cell u of i
        f = jax.lax.stop_gradient(found.features)
        matches = jax.lax.stop_gradient(self.matcher.correlate(params["flow"], f, pairs_swapped(f), self.dtype))
        pose = self.net.gaussians(found.xy, f.shape[1])
        value = map_distance(pose, correlation.warp_maps(matches, pairs_swapped(pose), self.warp))
        size = f.shape[1:3]
        cells = coordinates.from_unit(found.xy, size)
        away = correlation.carry_points(correlation.matches(matches), cells) - pairs_swapped(cells)
        cell = self.view.image_size / size[0]
        return value, {"equivariance": value, "carried": cell * jnp.mean(jnp.linalg.norm(away, axis=-1))}

    def _weak(self, params, features, categories):
        """NC-Net's loss of a batch's pairs, beside the first image of each pair with the second of the one before."""
        a, b = features[0::2], features[1::2]
        match = lambda a, b: correlation.weak_score(self.matcher.correlate(params["flow"], a, b, self.dtype))
        scores = match(a, b), match(jnp.roll(a, 1, 0), b)
        apart = jnp.roll(categories[0::2], 1) != categories[0::2]
        return correlation.weak_loss(*scores, apart), {"related": jnp.mean(scores[0]), "unrelated": jnp.mean(scores[1])}


def pairs_swapped(x):
    """Rows [B,...] in which neighbours 2i and 2i + 1 change places.

    >>> pairs_swapped(jnp.arange(4)).tolist()
    [1, 0, 3, 2]
    """
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def map_distance(a, b):
    """Mean over images and landmarks of the sum over cells of (a - b)^2, for maps [B,h,w,K].

    The paper's norm without a square has no gradient where both are equal.
    """
    return jnp.mean(jnp.sum((a - b) ** 2, (1, 2)))

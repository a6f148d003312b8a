"""The protocol of a method: the only interface between a paper's file in `methods/` and the loop in `engine/loop.py`.

Glossary of shape letters, used in every docstring and comment:

  B batch · N dataset rows · H,W image · h,w feature map · K landmarks · P keypoint slots an image
  L annotated landmarks · D descriptor size · M cluster slots · T batches in one pass over the data
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import jax
from flax import struct

from uld_jax import hyperparameters
from uld_jax.bank import Bank, by_batch

# image [B,H,W,3] uint8; index [B] int32, the dataset row (N marks padding); on request the partner image2, index2, and
# rows of tables of the images by name (`side_tables`, `step_tables`).
# A batch never holds annotation: evaluation takes it from the source, on the host.
Batch = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """Everything that training changes. A checkpoint holds this and the config, nothing else.

    Attributes:
      step: int32 scalar, number of steps done in this stage.
      params: trained parameters.
      model_state: other variable collections of the networks, such as batch statistics; {} if none.
      opt_state: state of the optimiser.
      aux: NamedTuple of the method, named after terms of its paper (Labels, Ring, Teacher, ...).
    """

    step: jax.Array
    params: Any = struct.field(default_factory=dict)
    model_state: Any = struct.field(default_factory=dict)
    opt_state: Any = struct.field(default_factory=dict)
    aux: Any = ()


class Prediction(NamedTuple):
    """Landmarks of a batch of images.

    Attributes:
      xy: [B,K,2] float32 `(x, y)` in pixels of the images given.
      score: [B,K] float32, the confidence; 0 where the landmark is missing.
      detected: [B,K] bool, True where the stage found the landmark in the image; False where the landmark is missing,
        or only placed at its expected position. None means every landmark that is not missing. Evaluation also gives
        the errors of detected landmarks alone.
      features: [B,h,w,D] descriptors for further use, or None.
    """

    xy: jax.Array
    score: jax.Array
    detected: jax.Array | None = None
    features: jax.Array | None = None


class Described(NamedTuple):
    """Descriptors of a batch of images.

    Attributes:
      z: [B,P,D] float32, the descriptors.
      landmark: [B,P] int32, number of the landmark that each descriptor belongs to; -1 for none.
      mask: [B,P] bool, False where a slot is empty.
    """

    z: jax.Array
    landmark: jax.Array
    mask: jax.Array


class Need(NamedTuple):
    """Something that `init` takes from the state that the stage before left.

    Attributes:
      what: field of that state's `aux`, such as `labels`; or `network` for its parameters.
      left_by: stages that leave it, as `config.<stage>.method` names them, for the error.
      of_images: True for a table of the training images, which must be the images of this run.
      required: False for a stage that also starts without.
    """

    what: str
    left_by: str
    of_images: bool = True
    required: bool = True


class Start(NamedTuple):
    """Starting point of a stage.

    Attributes:
      previous: final state of the previous stage; None if there is none.
      num_images: N, number of training images.
      shapes_only: True when only the shapes of the first state are traced, so that weights may be missing.
      stage: name of the stage in the config, for errors.
      before: name of the stage that left `previous`, for errors; "" if there is none.
    """

    previous: TrainState | None
    num_images: int
    shapes_only: bool = False
    stage: str = "STAGE"
    before: str = ""

    def left(self, what: str) -> Any:
        """Return what the stage before left, by the name of a `Need`; None if it left no such thing."""
        if self.previous is None:
            return None
        if what == "network":
            return self.previous.params or None
        return getattr(self.previous.aux, what, None)


class Round(NamedTuple):
    """A refresh of the clusters or pseudo-labels that a stage learns from.

    Attributes:
      passes: number of passes over the training data, each with its own refresh, such as 2 to cluster and then to
        place; with 0 there is one refresh, from the state alone.
    """

    passes: int


Purpose = Literal["train", "predict", "shapes"]


class Method(Protocol):
    """One stage of one paper: a frozen dataclass of hyper-parameters. Every function is pure.

    A method without pseudo-labels only needs `init`, `train_step` and `predict`; `Stage` below has defaults for the
    rest.
    """

    def frozen(self, purpose: Purpose = "train") -> Any:
        """Load the weights that are never trained, saved or donated (VGG, Stable Diffusion, ...); {} if none.

        `purpose` selects weights, so that a finished run loads without those that only training needs: `train` stands
        for all; `predict` for those of `predict`, `heatmaps` and the shapes of `init`; `shapes` for those of the
        shapes of `init` alone.
        """

    def prepared(self, frozen: Any) -> Any:
        """Return the frozen weights with what is the same for all images computed, by the device at hand.

        Training gives `frozen` to all other members in this form. Hashes are of the weights as loaded.
        """

    def side_tables(self) -> Mapping[str, tuple]:
        """Name the tables of training images that rounds need besides pixels, {function of `data.objects`: arguments}.

        `observe` finds the images' rows in its batch under the function's name. The tables never hold annotation.
        """

    def step_tables(self) -> Mapping[str, tuple]:
        """Name the tables of training images that `train_step` needs, as `side_tables` does for rounds.

        `train_step` finds the images' rows in its batch under the function's name, such as `categories` [B] int32, and
        those of the partners under the name with a 2, `categories2`. Every device holds the tables whole.
        """

    def init(self, rng: jax.Array, batch: Batch, frozen: Any, start: Start) -> TrainState:
        """Make the first state of the stage."""

    def train_step(self, state: TrainState, frozen: Any, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict]:
        """Take one optimiser step; return the new state and scalar metrics, among them `loss`."""

    def predict(self, state: TrainState, frozen: Any, images: jax.Array) -> Prediction:
        """Predict the landmarks of [B,H,W,3] uint8 images in the frame."""

    def round_at(self, step: int) -> Round | None:
        """Return the round that comes before this step, if any."""

    def observe(self, state: TrainState, frozen: Any, batch: Batch, rng: jax.Array) -> Any:
        """Return the data that a pass collects from one batch: the method's own NamedTuple of arrays [B,...].

        `rng` is the typed key of the pass, the same for all its batches. Draw random numbers of an image from
        `fold_in(rng, row)`, so that they do not depend on how many processes share the rows.
        """

    def refresh(self, state: TrainState, frozen: Any, bank: Bank | None, rng: jax.Array) -> TrainState:
        """Return the state with new `aux`, such as clusters and pseudo-labels, from a whole pass.

        `bank` is None in a round without passes; then the state holds everything that is needed.
        """

    def summary(self, state: TrainState) -> dict[str, jax.Array]:
        """Return scalars about the last refresh for `metrics.jsonl`; {} for none."""

    def warning(self, numbers: dict[str, float]) -> str | None:
        """Return a warning, with the remedy, if training or a refresh went wrong; otherwise None.

        `numbers` are those of `summary` after a refresh, or the metrics of a step that is logged; and `step`, the
        number of steps done in the stage.
        """

    def landmarks(self, state: TrainState) -> jax.Array | None:
        """Tell which slots of `predict` stand for a landmark, [K] bool; None for all.

        This serves a stage that estimates the number of landmarks. Unused slots never have a point, and pictures,
        counts and files leave them out.
        """

    def poses(self, state: TrainState, frozen: Any, images: jax.Array) -> jax.Array | None:
        """Return the pose cluster of each of [B,H,W,3] uint8 images, [B] int32 in 0..Q-1; None for a stage without any.

        A negative number means no cluster.
        """

    def describe(self, state: TrainState, frozen: Any, images: jax.Array) -> Described | None:
        """Return the descriptors of keypoints or landmarks in [B,H,W,3] uint8 images; None for a stage without any.

        Reports on clusters read these descriptors.
        """

    def dense(self, state: TrainState, frozen: Any, images: jax.Array) -> tuple[jax.Array, ...] | None:
        """Return the dense features of [B,S,S,3] uint8 images of any side S, a pyramid of maps [B,h_l,w_l,C_l].

        The features at one size are the maps resized to it (bilinear, half-pixel centres) and concatenated, a
        "hypercolumn"; a compact model has one map. They are not normalised. `evaluation.dense` reads them, with the
        frozen weights of the purpose `predict`. None for a stage without any.
        """

    def carry(
        self, state: TrainState, frozen: Any, images_a: jax.Array, images_b: jax.Array, points_b: jax.Array
    ) -> jax.Array | None:
        """Carry points of images b to images a: [B,P,2] points for [B,H,W,3] uint8 images and [B,P,2] float32 points.

        Points are `(x, y)` in pixels of the images given. Image a shows another object of the category of b's. Each
        point is carried on its own, because slots without a keypoint hold a point of no meaning. `evaluation.alignment`
        measures the result, with the frozen weights of the purpose `predict`. None for a stage that cannot.
        """

    def heatmaps(self, state: TrainState, frozen: Any, images: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Return the network's input [B,H,W,3] uint8 and its maps [B,h,w,K], for pictures; None without maps."""

    def pictures(self, state: TrainState, frozen: Any, images: jax.Array) -> dict[str, jax.Array]:
        """Return sheets of pictures by name, [rows,columns,h,w,3] uint8, of [B,H,W,3] uint8 images; {} if none."""


class Model(NamedTuple):
    """A stage with what it learned: all that its predictions need.

    Attributes:
      method: the stage, built.
      state: its state, replicated.
      frozen: frozen weights, replicated.
    """

    method: Method
    state: TrainState
    frozen: Any


class Stage:
    """Defaults of the protocol for methods that need only a part of it.

    Attributes:
      needs: what `init` takes from the previous stage, see `methods.shared.take`.
      needs_partner: True if `train_step` takes a second image with each image.
      partner_by: values of `config.data.partner_by` that suit `train_step`, such as `("category", "pairs")` for
        partners of the same category; () for all.
      weight_kinds: kinds of `config.weights` that `frozen` looks for, besides those of `backbone`.
      backbone: module and class below `uld_jax.backbones` of a frozen network that the stage looks through; "" for
        none.
      backbone_kwargs: hyper-parameters of `backbone`, as pairs.
      cache: folder with the maps of `backbone`, which `observe` then finds in its batch; "" for none.
      trains_on_cache: True if `train_step` finds its images' rows of a cache of latents in its batch, as `latents`.
    """

    needs: tuple[Need, ...] = ()
    needs_partner = False
    partner_by = ()
    weight_kinds = frozenset()
    backbone = ""
    backbone_kwargs = ()
    cache = ""
    trains_on_cache = False

    def __post_init__(self):
        hyperparameters.check(self)

    def frozen(self, purpose="train"):
        del purpose
        return {}

    def backbone_frozen(self, frozen: Any) -> Any:
        """Return the part of `frozen` that is the backbone's."""
        return frozen

    def prepared(self, frozen):
        return frozen

    def side_tables(self):
        return MappingProxyType({})

    def step_tables(self):
        return MappingProxyType({})

    def train_step(self, state, frozen, batch, rng):
        raise NotImplementedError(f"{type(self).__name__} has nothing to train")

    def round_at(self, step):
        del step

    def observe(self, state, frozen, batch, rng):
        raise NotImplementedError(f"{type(self).__name__} makes no passes")

    def refresh(self, state, frozen, bank, rng):
        raise NotImplementedError(f"{type(self).__name__} makes no passes")

    def summary(self, state):
        del state
        return {}

    def warning(self, numbers):
        del numbers

    def landmarks(self, state):
        del state

    def poses(self, state, frozen, images):
        del state, frozen, images

    def describe(self, state, frozen, images):
        del state, frozen, images

    def dense(self, state, frozen, images):
        del state, frozen, images

    def carry(self, state, frozen, images_a, images_b, points_b):
        del state, frozen, images_a, images_b, points_b

    def heatmaps(self, state, frozen, images):
        del state, frozen, images

    def pictures(self, state, frozen, images):
        del state, frozen, images
        return {}


class Clustering(Stage):
    """A stage whose refresh forms clusters from descriptors, and then assigns each image to them independently.

    Hence clusters can be formed from the descriptors of a sample of images, and the descriptors of the others need not
    be kept once their image is placed. A bank holds descriptors of at most `bank_gib` GiB. From a larger data set,
    whole images are drawn by the key of the pass; clusters are formed from these, and all images are placed in a second
    walk over the data. The extra cost is that the sample is described twice.

    This differs from the published code, which keeps all descriptors in the host's memory and clusters the first
    500,000 of them, of which faiss takes 256 for each centroid. The default of 4 GiB holds 4 million descriptors of 256
    numbers; with the memory of the clustering itself, this fits an accelerator of 16 GB. A data set below the limit is
    used whole.
    """

    bank_gib: float  # every subclass has this field

    def form(self, state: TrainState, frozen, bank: Bank, rng: jax.Array) -> Any:
        """Form clusters from a bank of all images or of a sample, in arrays whose size is independent of the images."""
        raise NotImplementedError

    def locate(self, state: TrainState, found, seen: Any) -> Any:
        """Assign one batch of results of `observe` to the clusters that `form` found; return arrays [B,...].

        The result must hold everything that `settle` needs of the images, because descriptors are not kept.
        """
        raise NotImplementedError

    def settle(self, state: TrainState, found, bank: Bank) -> TrainState:
        """Return the state with new labels; the bank's values are the results of `locate` for all images [B,T,...]."""
        raise NotImplementedError

    def refresh(self, state, frozen, bank, rng):
        found = self.form(state, frozen, bank, rng)
        placed = by_batch(lambda seen: self.locate(state, found, seen), bank.values)
        return self.settle(state, found, bank._replace(values=placed))


def same_shapes(a: Any, b: Any) -> bool:
    """Tell whether two pytrees have the same structure and leaves of the same shapes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )

"""What a method is: the one protocol between a paper's file in `methods/` and the loop in `engine/loop.py`.

Glossary of shape letters, used in every comment:

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

# image [B,H,W,3] uint8; index [B] int32, the dataset row (N marks padding); on request the partner image2, index2.
# No annotation ever travels in a batch: evaluation takes it from the source, on the host.
Batch = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """All that training changes. A checkpoint is this and the config, nothing else.

    Attributes:
      step: int32 scalar, steps done in this stage.
      params: the trained parameters.
      model_state: other variable collections of the networks, such as batch statistics; {} if none.
      opt_state: the optimiser's state.
      aux: the method's own NamedTuple in its paper's words (Labels, Ring, Teacher, ...).
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
      detected: [B,K] bool, whether the stage found the landmark there; False where it is missing, or only placed where
        it should be. None: wherever it is not missing. Evaluation also gives the errors of what was detected alone.
      features: [B,h,w,D] descriptors for whoever wants them, or None.
    """

    xy: jax.Array
    score: jax.Array
    detected: jax.Array | None = None
    features: jax.Array | None = None


class Described(NamedTuple):
    """Descriptors of a batch of images.

    Attributes:
      z: [B,P,D] float32.
      landmark: [B,P] int32, the landmark that each one is of; -1 for none.
      mask: [B,P] bool, False where a slot is empty.
    """

    z: jax.Array
    landmark: jax.Array
    mask: jax.Array


class Start(NamedTuple):
    """What a stage starts from.

    Attributes:
      previous: the final state of the stage before; None without any.
      num_images: N, the number of training images.
      shapes_only: whether only the shapes of the first state are asked for, so that weights may be missing.
    """

    previous: TrainState | None
    num_images: int
    shapes_only: bool = False


class Round(NamedTuple):
    """A refresh of what a stage learns from.

    Attributes:
      passes: passes over the training data, each with its refresh, such as 2 to cluster and then to place; with 0 there
        is one refresh, from what the state holds.
    """

    passes: int


Purpose = Literal["train", "predict", "shapes"]


class Method(Protocol):
    """One STAGE of one paper: a frozen dataclass of hyper-parameters. Every function is pure.

    A method without pseudo-labels needs `init`, `train_step` and `predict` alone; `Stage` below gives the rest.
    """

    def frozen(self, purpose: Purpose = "train") -> Any:
        """Load the weights that are never trained, saved or donated (VGG, Stable Diffusion, ...); {} if none.

        `purpose` says what they are for, so that a finished run loads without weights that only training needed:
        `train` is everything; `predict` is what `predict`, `heatmaps` and the shapes of `init` need; `shapes` is what
        those shapes alone need.
        """

    def side_tables(self) -> Mapping[str, tuple]:
        """Tables of the training images that rounds need besides pixels, {function of `data.objects`: arguments}.

        `observe` finds the images' rows in its batch under the function's name. Never annotation.
        """

    def init(self, rng: jax.Array, batch: Batch, frozen: Any, start: Start) -> TrainState:
        """Make the first state of the stage."""

    def train_step(self, state: TrainState, frozen: Any, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict]:
        """One optimiser step; metrics are scalars and hold `loss`."""

    def predict(self, state: TrainState, frozen: Any, images: jax.Array) -> Prediction:
        """Landmarks of [B,H,W,3] uint8 images in the frame."""

    def round_at(self, step: int) -> Round | None:
        """Return the round that comes before this step, if any."""

    def observe(self, state: TrainState, frozen: Any, batch: Batch, rng: jax.Array) -> Any:
        """Return what a pass collects from one batch: the method's own NamedTuple of arrays [B,...].

        `rng` is the pass's typed key, the same for all its batches: what is drawn for an image is drawn by
        `fold_in(rng, row)`, so that it does not depend on how many processes share the rows.
        """

    def refresh(self, state: TrainState, frozen: Any, bank: Bank | None, rng: jax.Array) -> TrainState:
        """Return the state with new `aux`, such as clusters and pseudo-labels, from a whole pass.

        `bank` is None in a round of no passes: then the state holds all that is needed.
        """

    def summary(self, state: TrainState) -> dict[str, jax.Array]:
        """Return scalars about the last refresh for `metrics.jsonl`; {} for none."""

    def warning(self, summary: dict[str, float]) -> str | None:
        """Return a warning, with the remedy, if a refresh gave a degenerate result; otherwise None."""

    def landmarks(self, state: TrainState) -> jax.Array | None:
        """Which of the slots that `predict` fills stand for a landmark, [K] bool; None for all.

        For a stage that finds out how many landmarks there are. Slots that are not in use never have a point, and all
        that is shown, counted or written leaves them out.
        """

    def poses(self, state: TrainState, frozen: Any, images: jax.Array) -> jax.Array | None:
        """Which pose cluster each of [B,H,W,3] uint8 images is in, [B] int32 in 0..Q-1; None for a stage without any.

        Negative: in none of them.
        """

    def describe(self, state: TrainState, frozen: Any, images: jax.Array) -> Described | None:
        """Return the descriptors of keypoints or landmarks in [B,H,W,3] uint8 images; None for a stage without any.

        Reports on clusters read them.
        """

    def heatmaps(self, state: TrainState, frozen: Any, images: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """For pictures: what the network sees [B,H,W,3] uint8 and its maps over that [B,h,w,K]; None without maps."""

    def pictures(self, state: TrainState, frozen: Any, images: jax.Array) -> dict[str, jax.Array]:
        """Sheets of pictures by name, [rows,columns,h,w,3] uint8, of images [B,H,W,3] uint8; {} without any."""


class Stage:
    """Defaults of the protocol for methods that need only a part of it.

    Attributes:
      uses_previous: whether `init` takes anything from the stage before.
      needs_previous_rows: whether that stage must have seen the same images.
      needs_partner: whether `train_step` takes a second image with each.
      weight_kinds: the kinds of `config.weights` that `frozen` looks for, besides those of a field `backbone`.
    """

    uses_previous = True
    needs_previous_rows = False
    needs_partner = False
    weight_kinds = frozenset()

    def __post_init__(self):
        hyperparameters.check(self)

    def frozen(self, purpose="train"):
        del purpose
        return {}

    def side_tables(self):
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

    def warning(self, summary):
        del summary

    def landmarks(self, state):
        del state

    def poses(self, state, frozen, images):
        del state, frozen, images

    def describe(self, state, frozen, images):
        del state, frozen, images

    def heatmaps(self, state, frozen, images):
        del state, frozen, images

    def pictures(self, state, frozen, images):
        del state, frozen, images
        return {}


class Clustering(Stage):
    """A stage whose refresh forms clusters from descriptors, and then places each image among them by itself.

    So the descriptors of a sample of images are enough to form clusters from, and those of the others need not be kept
    once their image is placed. A bank holds descriptors of at most `bank_gib` GiB. Of a data set with more, whole
    images are drawn, by the key of the pass; clusters are formed from these, and all images are placed in a walk of
    their own over the data. It costs their description once more, for the sample alone.

    Ours: the papers' code keeps all descriptors in the host's memory and clusters the first 500,000 of them, of which
    faiss takes 256 a centroid. The 4 GiB that stages have by default are 4 million descriptors of 256 numbers; with
    what clustering needs besides it stays within an accelerator of 16 GB. Where the images do not reach it, nothing
    is drawn.
    """

    bank_gib: float  # a field of every such stage

    def form(self, state: TrainState, frozen, bank: Bank, rng: jax.Array) -> Any:
        """What a bank tells, of all images or of a sample: clusters, in arrays that do not grow with the images."""
        raise NotImplementedError

    def locate(self, state: TrainState, found, seen: Any) -> Any:
        """Place one batch of what `observe` gives among the clusters that `form` found: arrays [B,...].

        Whatever `settle` needs of the images is a part of it: descriptors are not kept.
        """
        raise NotImplementedError

    def settle(self, state: TrainState, found, bank: Bank) -> TrainState:
        """Return the state with new labels; the bank's values are what `locate` gave of all images [B,T,...]."""
        raise NotImplementedError

    def refresh(self, state, frozen, bank, rng):
        found = self.form(state, frozen, bank, rng)
        placed = by_batch(lambda seen: self.locate(state, found, seen), bank.values)
        return self.settle(state, found, bank._replace(values=placed))


def same_shapes(a: Any, b: Any) -> bool:
    """Whether two pytrees have the same structure and leaves of the same shapes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )

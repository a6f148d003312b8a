"""What a method is: the one protocol between a paper's file in `methods/` and the loop in `engine/loop.py`.

Glossary of shape letters, used in every comment:

  B batch · N dataset rows · H,W image · h,w feature map · K landmarks · P keypoint slots an image
  L annotated landmarks · D descriptor size · M cluster slots · T batches in one pass over the data
"""

from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
from flax import struct

from uld_jax.bank import Bank, Rows, by_batch

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
      score: [B,K] float32, higher is surer; 0 means missing.
      features: [B,h,w,D] descriptors for whoever wants them, or None.
    """

    xy: jax.Array
    score: jax.Array
    features: jax.Array | None = None


class Method(Protocol):
    """One STAGE of one paper: a frozen dataclass of hyper-parameters. Every function is pure.

    A method without pseudo-labels needs `init`, `train_step` and `predict` alone; `Stage` below gives the rest.
    """

    def frozen(self) -> Any:
        """Weights that are never trained, saved or donated (VGG, Stable Diffusion, ...); {} if none."""

    def frozen_to_predict(self) -> Any:
        """The part of `frozen` that `predict`, `heatmaps` and the shapes of `init` need."""

    def frozen_to_init(self) -> Any:
        """The part of that which the shapes of `init` need."""

    def init(self, rng: jax.Array, batch: Batch, frozen: Any, previous: TrainState | None, rows: int) -> TrainState:
        """First state of the stage. `previous` is the final state of the stage before; `rows` is N."""

    def train_step(self, state: TrainState, frozen: Any, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict]:
        """One optimiser step; metrics are scalars and hold `loss`."""

    def predict(self, state: TrainState, frozen: Any, images: jax.Array) -> Prediction:
        """Landmarks of [B,H,W,3] uint8 images in the frame."""

    def passes(self, step: int) -> int:
        """How many passes over the training data come before this step: 0, 1 or 2 (cluster, then place)."""

    def observe(self, state: TrainState, frozen: Any, batch: Batch, rng: jax.Array) -> Rows:
        """What a pass collects from one batch.

        `rng` is the pass's typed key, the same for all its batches: what is drawn for an image is drawn by
        `fold_in(rng, row)`, so that it does not depend on how many processes share the rows.
        """

    def refresh(self, state: TrainState, frozen: Any, bank: Bank | None, rng: jax.Array) -> TrainState:
        """The whole bank to a state with new `aux`: clusters, pseudo-labels."""

    def found(self, state: TrainState) -> dict[str, jax.Array]:
        """What a refresh found: scalars for `metrics.jsonl`; {} for nothing."""

    def warning(self, found: dict[str, float]) -> str | None:
        """What is wrong with what a refresh found, and the remedy; None if nothing is."""

    def landmarks(self, state: TrainState) -> jax.Array | None:
        """Which of the slots that `predict` fills stand for a landmark, [K] bool; None for all.

        For a stage that finds out how many landmarks there are. Slots that are not in use never have a point, and all
        that is shown, counted or written leaves them out.
        """

    def poses(self, state: TrainState, frozen: Any, images: jax.Array) -> jax.Array | None:
        """Which pose cluster each of [B,H,W,3] uint8 images is in, [B] int32 in 0..Q-1; None for a stage without any.

        Negative: in none of them.
        """

    def grouped(self, state: TrainState, frozen: Any, images: jax.Array) -> tuple[Rows, jax.Array] | None:
        """For reports on clusters: descriptors, and which landmark each one is [B,P] int32, -1 for none.

        None: those are what `observe` gives, and a row is the landmark that `predict` puts where it is. A stage whose
        passes collect other things too, or whose landmarks are not at its keypoints, tells them here.
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
      trainable: whether there is anything to train; a stage without takes no steps.
      describes: whether `observe` gives descriptors of what is at the landmarks, and not only how sure it is.
      slots_are_landmarks: whether a slot of what `observe` gives is the same landmark in every image.
      observes: whether a round collects a bank; without one `refresh` is given None, and works on what the state holds.
      filled_below: landmarks of `predict` with a score above 0, but below this, were not detected: something else put
        them where they are. Evaluation also tells the errors with those counted as missing. 0: there are none.
      known: what training asks of `data.objects` about its images besides their pixels, {function: arguments}; it is
        given, one row an image, as `frozen["rows"]`. Never annotation.
      weight_kinds: the kinds of `config.weights` that `frozen` looks for, besides those of a field `backbone`.
    """

    uses_previous = True
    needs_previous_rows = False
    needs_partner = False
    trainable = True
    describes = False
    slots_are_landmarks = True
    observes = True
    filled_below = 0.0
    known = MappingProxyType({})
    weight_kinds = frozenset()

    def frozen(self):
        return {}

    def frozen_to_predict(self):
        return self.frozen()

    def frozen_to_init(self):
        return self.frozen_to_predict()

    def passes(self, step):
        del step
        return 0

    def observe(self, state, frozen, batch, rng):
        raise NotImplementedError(f"{type(self).__name__} makes no passes")

    def refresh(self, state, frozen, bank, rng):
        raise NotImplementedError(f"{type(self).__name__} makes no passes")

    def found(self, state):
        del state
        return {}

    def warning(self, found):
        del found

    def landmarks(self, state):
        del state

    def poses(self, state, frozen, images):
        del state, frozen, images

    def grouped(self, state, frozen, images):
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

    def locate(self, state: TrainState, found, rows: Rows) -> Any:
        """Of one batch's rows [B,P], where they are among the clusters that `form` found: arrays [B,...]."""
        raise NotImplementedError

    def settle(self, state: TrainState, found, bank: Bank, placed) -> TrainState:
        """New labels, from what `locate` gave of all images [B,T,...]; the bank's descriptors may be left out."""
        raise NotImplementedError

    def refresh(self, state, frozen, bank, rng):
        found = self.form(state, frozen, bank, rng)
        placed = by_batch(lambda rows: self.locate(state, found, rows), bank.rows)
        return self.settle(state, found, bank, placed)


def same_shapes(a: Any, b: Any) -> bool:
    """Whether two pytrees have the same structure and leaves of the same shapes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )

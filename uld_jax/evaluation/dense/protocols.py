"""Protocols of dense features: those of DVE, ContrastLandmarks and LEAD, and the ids of their numbers.

Numbers may be compared only under one id. The id begins with the data (`data.specs.DatasetSpec.protocol`), and names
the protocol, what departs from it, and the measure:

  mafl_5_eyes+lead2022+matching                         pairs of images, cosine of features at 96 x 96 cells
  mafl_5_eyes+lead2022+regression_120_epochs            a regressor of all labelled training images
  aflw_5_eyes+lead2022+regression_1000_epochs_x5        regressors of a few images, mean over five draws
  mafl_5_eyes+lead2022+matching_percent                 matching errors in percent of the normaliser
  mafl_5_eyes+lead2022+squared+regression_120_epochs    regressors are trained by the squared error
  folder_68_eyes+lead2022+view_96_of_96+matching        the frame has 96 pixels and is shown whole

In all protocols a photo is fitted into a frame of 136 x 136 pixels, and the network sees the central 96 x 96.
"""

import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from uld_jax import optimizers
from uld_jax.errors import UserError

CANONICAL = 70  # pixels across the view in which matching errors are given (DVE, published code)
MARGIN = 8  # pixels at the border that the quantisation floor leaves out, a cell of the largest stride
MEASURES = ("matching", "regression", "zoom", "parts")
LOSSES = ("smooth_l1", "squared")


class Fit(NamedTuple):
    """The training of a regressor.

    Attributes:
      rate: learning rate of Adam at the start.
      l2: weight of the L2 term in the gradient.
      epochs: number of epochs. The last state is measured, never the best one on the test images.
      schedule: course of the rate over the epochs. `cosine` is one epoch ahead, because the published code of
        ContrastLandmarks steps its schedule before each epoch.
      period: epochs of the cosine.
      floor: share of the rate at which the cosine ends.
      milestones: epochs from which the rate is a tenth of what it was, for `steps`.
      b1: decay of Adam's first moment.
      amsgrad: True for AMSGrad as PyTorch defines it.
      batch: images a step.
      drop_last: True leaves out the images of an epoch that do not fill a batch.
      images: images in an epoch: drawn images are repeated a whole number of times, up to this number; 0 repeats them
        up to the number of labelled training images.
      warped: True warps images and points at random in every step.
      loss: `smooth_l1` of ten times the difference (published codes), or `squared` for its squared length (LEAD,
        section 3.4), see `regression.loss`.
    """

    rate: float
    l2: float
    epochs: int
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    period: int = 0
    floor: float = 0.0
    milestones: tuple[int, ...] = ()
    b1: float = 0.9
    amsgrad: bool = False
    batch: int = 32
    drop_last: bool = False
    images: int = 0
    warped: bool = False
    loss: Literal["smooth_l1", "squared"] = "smooth_l1"

    def rate_at(self, epoch):
        """The learning rate of an epoch, counted from 0; a traced number is fine.

        >>> [f"{LEAD_2022.full.rate_at(epoch):.4e}" for epoch in (0, 99, 199)]
        ['9.9994e-04', '5.0040e-04', '8.0000e-07']
        >>> [f"{DVE_2019.full.rate_at(epoch):.0e}" for epoch in (99, 100, 250)]
        ['1e-03', '1e-04', '1e-05']
        """
        if self.schedule == "cosine":
            lowest = self.floor * self.rate
            course = jnp.cos(math.pi * jnp.minimum(epoch + 1, self.period) / self.period)
            return lowest + (self.rate - lowest) * 0.5 * (1 + course)
        if self.schedule == "steps":
            return optimizers.schedule("steps", self.rate, self.epochs, boundaries=self.milestones)(epoch)
        return jnp.asarray(self.rate)

    def optimizer(self, steps: int):
        """The optimiser, for epochs of `steps` steps."""
        rate = lambda step: self.rate_at(step // steps)
        if self.amsgrad:
            return optimizers.amsgrad(rate, b1=self.b1, l2=self.l2)
        return optimizers.adam(rate, b1=self.b1, l2=self.l2)


class DenseProtocol(NamedTuple):
    """Choices under which dense features are measured.

    Attributes:
      name: name of the protocol.
      frame: side of the square frame that photos are fitted into, in pixels.
      side: S, side of its central part that the network sees, in pixels.
      similarity: `cosine`, or `dot` for the inner product of features that are not normalised.
      cells: cells along a side of the map on which a match is sought; 0 for those of the finest map. A view of another
        side has another number, so that cells keep their size in pixels (`preset`).
      pairs: largest number of pairs of images.
      full: training of a regressor of all labelled images.
      few: training of a regressor of a few labelled images.
      repeats: number of draws of a few labelled images.
      points: virtual keypoints a landmark.
      sharpness: factor of the logits before their softmax, beta in the papers.
      regressed: cells along a side of the map of logits; fewer for a smaller view, as `cells`.
    """

    name: str
    full: Fit
    few: Fit
    frame: int = 136
    side: int = 96
    similarity: Literal["cosine", "dot"] = "cosine"
    cells: int = 96
    pairs: int = 500
    repeats: int = 5
    points: int = 50
    sharpness: float = 100.0
    regressed: int = 48

    def checked(self) -> "DenseProtocol":
        """Return the protocol itself. Raises UserError, naming the flag, for meaningless values."""
        for flag, value in (
            ("frame", self.frame),
            ("side", self.side),
            ("pairs", self.pairs),
            ("repeats", self.repeats),
            ("epochs", self.full.epochs),
            ("few_epochs", self.few.epochs),
        ):
            if value < 1:
                raise UserError(f"--{flag} is {value}; use 1 or more")
        if self.full.loss not in LOSSES:
            raise UserError(f"--loss={self.full.loss} is unknown; use one of {', '.join(LOSSES)}")
        if self.side > self.frame:
            raise UserError(f"--side={self.side} is larger than the frame of {self.frame} pixels; use at most --frame")
        return self

    def id(self, data: str, measure: str, fit: Fit | None = None, repeats: int = 1) -> str:
        """The id of a number, see the module.

        Args:
          data: id of the data, `DatasetSpec.protocol`.
          measure: name of the measure, or of a part of it.
          fit: training of the regressor, if there is one.
          repeats: number of draws that the number is the mean of.

        >>> LEAD_2022.id("aflw_5_eyes", "regression", LEAD_2022.few, 5)
        'aflw_5_eyes+lead2022+regression_1000_epochs_x5'
        >>> DVE_2019._replace(frame=96).id("mafl_5_eyes", "matching")
        'mafl_5_eyes+dve2019+view_96_of_96+matching'
        >>> warped = preset("dve2019", 5, warped=True, loss="squared").few
        >>> DVE_2019.id("aflw_5_eyes", "regression", warped, 3)
        'aflw_5_eyes+dve2019+squared+warped+regression_50_epochs_x3'
        """
        usual = PRESETS[self.name]
        departs = [] if (self.frame, self.side) == (usual.frame, usual.side) else [f"view_{self.side}_of_{self.frame}"]
        what = measure
        if fit is not None:
            departs += [] if fit.loss == usual.full.loss else [fit.loss]
            departs += ["warped"] if fit.warped and not usual.few.warped else []
            what = f"{measure}_{fit.epochs}_epochs"
        return "+".join([data, self.name, *departs, what + (f"_x{repeats}" if repeats > 1 else "")])

    def asdict(self) -> dict[str, Any]:
        """The choices by name, those of both regressors too."""
        return self._asdict() | {"full": self.full._asdict(), "few": self.few._asdict()}


# Thewlis et al., ICCV 2019 (DVE), published code: AMSGrad, descriptors on their own grid, matches by inner product. Its
# few-shot config asks for warps (`warped=True`), which its caching of descriptors cancels; three draws.
DVE_2019 = DenseProtocol(
    "dve2019",
    full=Fit(1e-3, 5e-4, 300, "steps", milestones=(100, 250), amsgrad=True, drop_last=True),
    few=Fit(1e-2, 5e-4, 50, amsgrad=True),
    similarity="dot",
    cells=0,
    repeats=3,
)

# Cheng et al. (ContrastLandmarks), published code. Its script stops at epoch 120 on MAFL, 45 on AFLW and 80 on 300W, of
# a cosine over 200, and keeps the best epoch on the test images, which we do not. It has no code for matching: cosine
# on 48 x 48 cells, the size to which it resizes hypercolumns, is ours.
CONTRAST_LANDMARKS_2021 = DenseProtocol(
    "contrast_landmarks2021",
    full=Fit(1e-3, 5e-4, 120, "cosine", period=200, floor=8e-4, b1=0.5),
    few=Fit(1e-2, 0.05, 1000, "cosine", period=1000, floor=8e-4, b1=0.5, images=1000, warped=True),
    cells=48,
)

# Karmali et al., WACV 2022 (LEAD): regression as ContrastLandmarks, whose loss is the smooth L1, although section 3.4
# names the squared error (`loss="squared"`). Its matching errors are below what cells of two pixels allow, so its
# features must have been resized to the 96 x 96 pixels of the view.
LEAD_2022 = CONTRAST_LANDMARKS_2021._replace(name="lead2022", cells=96)

PRESETS = {protocol.name: protocol for protocol in (LEAD_2022, CONTRAST_LANDMARKS_2021, DVE_2019)}
_EPOCHS_68 = 80  # of ContrastLandmarks on 300W, the set of 68 points


def preset(name: str, landmarks: int | None = None, **changes) -> DenseProtocol:
    """A protocol by its name, for a number of annotated points, with other values of some choices.

    Args:
      name: name in `PRESETS`.
      landmarks: number of annotated points; for 68, ContrastLandmarks and LEAD train regressors for 80 epochs.
      **changes: `frame`, `side`, `pairs`, `repeats`; `epochs`, `few_epochs` and `loss` of the regressors, and `warped`
        of those of a few images; None changes nothing.

    Raises:
      UserError: an unknown name, or meaningless values.

    >>> preset("lead2022", 68).full.epochs, preset("lead2022", 68, epochs=3).full.epochs
    (80, 3)
    >>> [preset(name, side=64).cells for name in PRESETS]
    [64, 32, 0]
    >>> preset("lead2022", side=64).regressed
    32
    """
    if name not in PRESETS:
        raise UserError(f"--protocol={name} is unknown; use one of {', '.join(PRESETS)}")
    protocol, changes = PRESETS[name], {key: value for key, value in changes.items() if value is not None}
    epochs = _EPOCHS_68 if landmarks == 68 and name != "dve2019" else protocol.full.epochs
    full, few = protocol.full, protocol.few
    loss = changes.pop("loss", full.loss)
    full = full._replace(epochs=changes.pop("epochs", epochs), loss=loss)
    warped = changes.pop("warped", few.warped)
    few = few._replace(epochs=changes.pop("few_epochs", few.epochs), loss=loss, warped=warped)
    changed = protocol._replace(full=full, few=few, **changes).checked()
    scaled = {name: getattr(protocol, name) * changed.side // protocol.side for name in ("cells", "regressed")}
    return changed._replace(**scaled)

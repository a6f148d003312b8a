"""The parts shared by all configs: the argument after the colon, presets, and the keys that the loop reads."""

from ml_collections import ConfigDict

from uld_jax import config as config_lib
from uld_jax.errors import UserError
from uld_jax.evaluation import protocols

PRESETS = ("paper", "small", "tiny")


def parse(arg: str | None, **defaults) -> ConfigDict:
    """Parse `dataset=celeba,k=10,preset=small` to values; types follow the defaults.

    `protocol`, a paper in `evaluation/protocol.py` or an id in `evaluation/protocols.py`, is that of the evaluation.

    Raises UserError for an unknown key, preset or malformed number.
    """
    out = {"dataset": "synthetic", "k": 10, "preset": "paper", "protocol": "awan2023"} | defaults
    for item in filter(None, (arg or "").split(",")):
        key, eq, value = item.partition("=")
        if not eq or key not in out:
            known = ", ".join(out)
            raise config_lib.UnknownArgument(
                f"config argument {item!r} is not understood; write KEY=VALUE with KEY in {known}"
            )
        try:
            out[key] = type(out[key])(value)
        except ValueError as error:
            raise UserError(f"config argument {item!r}: {value!r} is not a number") from error
    if out["preset"] not in PRESETS:
        raise UserError(f"preset is {out['preset']!r}; use one of {', '.join(PRESETS)}")
    if out["k"] < 1:
        raise UserError(f"k is {out['k']}; use 1 or more landmarks")
    return ConfigDict(out)


def stage(method: str, steps: int, **changes) -> ConfigDict:
    """A stage's section: the method, its steps, and all its hyper-parameters, defaults included.

    `backbone_kwargs` become a section of their own.
    """
    section = config_lib.defaults("methods", method)
    config_lib.update(section, **{key: value for key, value in changes.items() if key != "backbone_kwargs"})
    if "backbone_kwargs" in section:
        kwargs = config_lib.defaults("backbones", section.backbone)
        kwargs.update(changes.get("backbone_kwargs", {}))
        del section.backbone_kwargs
        section.backbone_kwargs = kwargs
    section.method, section.steps = method, steps
    section.batch_size = 0  # images a step; 0: config.batch_size
    if config_lib.takes("methods", method, "accumulate_steps"):
        section.accumulate_steps = 0  # pieces of a batch; 0: config.accumulate_steps
    return section


def base(arg: ConfigDict) -> ConfigDict:
    """The keys that the loop, the data and the evaluation read. Stages are added by the method's config."""
    small = arg.preset != "paper"
    config = ConfigDict()
    config.preset = arg.preset
    config.k = arg.k
    config.seed = 0
    config.dtype = "float32"  # type of the networks' arithmetic: float32 | bfloat16 | float64 (tests)

    config.dataset = arg.dataset  # synthetic | folder | pf_pascal, or a name that `uld prepare` wrote
    config.data_dir = ""
    config.data = ConfigDict()
    config.data.frame_size = 80 if small else 160  # px; every image is fitted into a square of this side
    config.data.fit = "stretch" if arg.dataset == "pf_pascal" else "pad"  # pad | crop | stretch
    # Annotated points: none | ibug68 | eyes_nose_mouth5 | aflw21 | cat9 | wflw98 | human36m_32 | bbc_pose7
    config.data.scheme = "none"
    config.data.normaliser = "auto"  # auto (by scheme, else box) | eyes | mouth | shoulders | box | image | "36,45"
    config.data.sides = "auto"  # sides of a body's joints: auto | object | image (human36m_32, in the published code)
    config.data.reader = "auto"  # auto | resident | stream
    config.data.on_bad_file = "error"  # images that cannot be read: error | skip (all are decoded once to find them)
    config.data.workers = 0  # Grain worker processes; 0 reads with threads
    config.data.partner = False  # True: batches carry a second image
    config.data.partner_by = "any"  # which image that is: any | category (csv column) | pairs (those of the data set)
    config.data.rows = (2000, 500)  # synthetic images: train, test

    config.batch_size = 32  # images a step, for stages without their own (config.STAGE.batch_size)
    config.accumulate_steps = 1  # pieces of a batch that are computed one after the other, to save memory
    config.steps_per_dispatch = 0  # steps in one program; 0 chooses: 1 on CPU, up to 16 on accelerators

    # Folders made by `uld convert --kind=KIND` (gcn_v: or `uld gcn`); a method's file tells what it does without one.
    config.weights = ConfigDict(
        dict(
            dhf_aggregator="",
            dinov2="",
            fan="",
            gcn_v="",
            lead="",
            mallis="",
            ncnet="",
            r2d2="",
            resnet101="",
            resnet18="",
            resnet50="",
            self_training="",
            stable_diffusion="",
            superpoint="",
            vgg16="",
            vgg16_colorization="",
        )
    )

    config.stages = ()
    config.init_from = ""  # WORKDIR[:stage] of a finished run with whose state the first stage starts

    config.log_every = 50
    config.eval_every = 1000
    config.save_every = 500
    config.keep_last = 2
    config.keep_every = 0

    config.eval = ConfigDict()
    config.eval.batch_size = 64
    config.eval.stability_images = 200  # images of the measured split whose views are turned; 0: all
    config.eval.train_images = 5000  # training images of evaluations before a stage's last one; 0: all
    config.eval.label_counts = ()  # such as (1, 5, 10, 50); also by `uld evaluate --label_counts`
    # The protocol, see evaluation/protocol.py. Each config has that of its paper; `protocol=NAME` takes another's, or
    # an id of evaluation/protocols.py. On the data of an id its choices replace keys that are still the paper's.
    config.eval.protocol = "auto"  # auto (by paper and data) | an id
    config.eval.paper = ""  # paper or id whose choices the keys below are, unless they were changed
    config.eval.ridge_forward = 0.01  # in units of the largest entry of X'X
    config.eval.ridge_backward = 0.01
    config.eval.intercept = True  # in both regressions
    config.eval.pool_images = 0  # training images for completion, filling in and counts; 0: all
    config.eval.pool_from = "spread"  # which images these are: spread (evenly over the split) | first
    config.eval.fit_images = 0  # images of the pool that each fit draws; 0: all
    config.eval.repeats = 1  # fits, each on other fit_images images
    config.eval.backward_draw = "same"  # images of backward fits: same (as forward) | first (of the pool, one fit)
    config.eval.missing = "mean"  # treatment of landmarks that were not found, in the fit: mean | svt
    config.eval.min_found = 0.8  # a landmark that is found on a larger share of the images is found often
    config.eval.match_radius = 0.1  # shares of the normaliser: largest distance of a matched keypoint
    config.eval.accuracy_radius = 0.2  # shares of the normaliser: largest distance of a right landmark
    protocols.fill(config, arg.protocol, "protocol")
    return config


def tiny(config: ConfigDict) -> None:
    """Set the values shared by the `tiny` presets: few small images, seconds of training."""
    config.data.frame_size = 40
    config.data.rows = (48, 16)
    config.batch_size = 8
    config.eval_every = config.save_every = 20
    config.log_every = 10
    config.eval.stability_images = 16

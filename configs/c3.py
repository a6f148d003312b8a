"""C3 (Xu et al., 2020): landmarks from unpaired images, by cycles of swaps and a flow between images.

    uld train --config=configs/c3.py:dataset=folder,k=10,preset=small --config.data_dir=my_photos --workdir=runs/c3
    uld align --workdir=runs/c3 --data_dir=PF_PASCAL     # points carried from one image to another

Stages: `paired` learns from warps of single photos, as IMM; `flow` learns which cells of two images match; `joint`
learns from pairs of different photos. Rows of the paper's tables:
    start             init=checkpoint, scratch or zeroshot after the colon: landmarks of ZeroShot, which a stage `pose`
                      learns first, and which all stages after it keep by slow steps (ours)
    table 2           cell=none, cycle, flow or both after the colon; without the cycle, `joint` learns as `paired` does
    table 1           k=10, k=30; another set: --config.init_from=RUN:joint --config.joint.start=previous
    table 3           dataset=pf_pascal and task=alignment after the colon: the flow alone, first on features that stay,
                      then with them; task=both goes on with landmarks. NC-Net: --config.flow.form=full, or its
                      published networks by --config.flow.start=ncnet --config.weights.ncnet=FOLDER
`paper` starts from ImageNet's ResNet-50, --config.weights.resnet50=FOLDER (uld convert --kind=resnet50), and measures
made images by VGG16, --config.weights.vgg16=FOLDER. LSUN's cars and bedrooms train by dataset=folder.

Presets: `paper` is at 128 px, batch 200, 200 epochs of the 161,962 images of CelebA that are not in MAFL's test set;
the warm-ups' lengths are ours. `small` trains a narrow ResNet-18 at 64 px on two laptop cores; `tiny` is for tests.
The measured numbers are in docs/methods/c3.md.
"""

from uld_jax.configs import common, zeroshot

from uld_jax.config import update
from uld_jax.errors import UserError

EPOCH = 161_962 // 200  # steps
PASCAL = 2_940 // 16  # steps of an epoch of PF-Pascal's pairs
CELLS = {  # of table 2
    "both": {},
    "cycle": dict(equivariance=0.0),
    "flow": dict(cycle=0.0, invariance=0.0, paired=1.0),
    "none": dict(cycle=0.0, invariance=0.0, equivariance=0.0, paired=1.0),
}
TASKS = ("landmarks", "alignment", "both")
INITS = ("checkpoint", "scratch", "zeroshot")


def get_config(arg=None):
    """The config for `arg`, see `common.parse`; further keys are `cell`, `task` and `init`."""
    arg = common.parse(arg, cell="both", task="landmarks", init="", protocol="jakab2018")
    usual = {"paper": "checkpoint", "small": "zeroshot", "tiny": "scratch"}[arg.preset]
    if arg.init and arg.task != "landmarks":
        raise UserError(f"init={arg.init} is a start of landmarks; with task={arg.task} set --config.flow.start")
    arg.init = arg.init or usual
    for key, known in (("cell", CELLS), ("task", TASKS), ("init", INITS)):
        if arg[key] not in known:
            raise UserError(f"{key} is {arg[key]!r}; use {', '.join(known)}")
    config = common.base(arg)
    return (landmarks if arg.task == "landmarks" else alignment)(config, arg).lock()


def landmarks(config, arg):
    """The stages on one category."""
    config.batch_size = 200
    config.data.frame_size = 160
    config.eval_every = 10 * EPOCH
    config.save_every = EPOCH
    stages = {
        "pose": common.stage("c3_pose.Pose", steps=10 * EPOCH, zoom=0.8),
        "paired": common.stage("c3.Paired", steps=50 * EPOCH, zoom=0.8),
        "flow": common.stage("c3.Flow", steps=5 * EPOCH, zoom=0.8),
        "joint": common.stage("c3.Joint", steps=200 * EPOCH, zoom=0.8),
    }
    stages["joint"].losses.update(CELLS[arg.cell])
    stages["joint"].losses.rise = 5 * EPOCH
    stages["joint"].optimizer.update(schedule="steps", decay_at=(100 * EPOCH, 150 * EPOCH))
    if arg.preset != "paper":
        reduced(config, stages, arg.preset)
    if arg.init == "zeroshot":
        first = zeroshot.get_config(f"dataset={arg.dataset},k={arg.k},preset={arg.preset}")
        stages = {"zeroshot": first.zeroshot} | stages
        stages["paired"].start = "previous"
        # A decoder that has not learned pulls landmarks away, as in configs/cgb.py.
        stages["paired"].pose_rate, stages["joint"].pose_rate = 0.003, 0.03
    else:
        del stages["pose"]
        stages["paired"].start = arg.init
    if arg.cell in ("none", "cycle"):
        del stages["flow"]
    config.stages = tuple(stages)
    config.update(stages)
    return config


def alignment(config, arg):
    """The stages on PF-Pascal (appendix), or on any folder with a csv column `category`."""
    config.data.partner, config.data.partner_by = True, "pairs" if arg.dataset == "pf_pascal" else "category"
    config.data.frame_size = 400
    config.batch_size = 16
    config.eval_every = 0
    config.save_every = PASCAL
    sizes = dict(image_size=400, cells=25, output_stride=16)
    weak = dict(objective="weak", steps=5 * PASCAL, **sizes)
    stages = {
        "flow": common.stage("c3.Flow", start="checkpoint", **weak),
        "finetune": common.stage("c3.Flow", features_learn=True, learning_rate=1e-5, **weak),
    }
    if arg.task == "both":
        stages["joint"] = common.stage("c3.Joint", steps=5 * PASCAL, pairs="partner", learning_rate=1e-5, **sizes)
        stages["joint"].losses.update(weak=1.0)
    if arg.preset != "paper":
        reduced(config, stages, arg.preset)
        config.eval_every = 0
    config.stages = tuple(stages)
    config.update(stages)
    return config


def reduced(config, stages, preset: str) -> None:
    """Set the sizes of `small` and `tiny`."""
    small = preset == "small"
    if small:
        config.data.frame_size = 80
        config.batch_size = 16
        config.eval_every = config.save_every = 500
    else:
        common.tiny(config)
    of_small = dict(pose=500, paired=1000, flow=200, finetune=100, joint=1000)
    steps = of_small if small else dict(pose=30, paired=30, flow=20, finetune=10, joint=20)
    for name, stage in stages.items():
        stage.steps = steps[name]
        update(stage, image_size=64 if small else 32, cells=16 if small else 8, vgg_width=8 if small else 4)
        net = dict(depth=18, stem=16, output_stride=8, width=64, least=16, temperature=0.1)
        stage.net.update(net if small else dict(depth=10, stem=4, output_stride=8, width=8, least=4))
        if stage.start == "checkpoint":
            stage.start = "scratch"
        if "matcher" in stage:
            stage.matcher.update(channels=(8, 1), kernel=3)
        if small:  # a VGG16 with random weights pulls landmarks away and blurs (as in configs/cgb.py)
            stage.perceptual = 0.0
        if "warps" in stage and not small:
            stage.warps.update(rotation=3.0, scale=0.02, shift=0.02)
            stage.bend = 0.0
        if "losses" in stage:
            stage.losses.rise = 100 if small else 5
        stage.optimizer.update(schedule="constant", decay_at=(), learning_rate=1e-3 if small else 0.02)
        if name == "joint" and not small:
            stage.optimizer.learning_rate = 0.002

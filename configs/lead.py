"""LEAD (Karmali et al., WACV 2022): self-supervised dense features of one category, and landmarks from them.

    uld train --config=configs/lead.py:dataset=folder,k=10,preset=small --config.data_dir=my_photos --workdir=runs/lead
    uld dense --workdir=runs/lead        # landmark matching and regression by the features

Stages: `byol` (or `moco`, with stage1=moco after the colon, as ContrastLandmarks) learns features, hypercolumns of
3,840 numbers; `compact` makes 64 of them. Cells of the paper's tables:
    table 6           stage1=byol or stage1=moco, and --config.compact.objective=alignment or equivariance
    table 3           --config.compact.head=0, 64 or 256
    BYOL + NMF        compact=nmf after the colon
    64, 128, 256      --config.compact.size=128
Start from published weights: --config.byol.start=checkpoint --config.weights.resnet50=FOLDER (uld convert
--kind=resnet50), with --config.byol.steps=0 to use them as they are.

Presets: `paper` is ResNet-50 at 96 px, batches of 256, 200 and 20 epochs of the 146,501 images of CelebA that are not
in MAFL. `small` trains a narrow ResNet-18 at 64 px on two laptop cores in less than an hour; `tiny` is for tests.
For few steps `small` departs from the paper: stage 1 crops overlapping windows, and stage 2 learns equivariance
(--config.compact.objective=alignment for LEAD's). The measured numbers are in docs/methods/lead.md.
"""

from uld_jax.configs import common

from uld_jax.config import update
from uld_jax.errors import UserError

EPOCH = 146_501 // 256  # steps
STAGE1 = {"byol": "lead.Byol", "moco": "lead.Moco"}
STAGE2 = {"network": "lead_compact.Compact", "nmf": "lead_compact.Nmf"}


def get_config(arg=None):
    """The config for `arg`, see `common.parse`; further keys are `stage1` and `compact`."""
    arg = common.parse(arg, stage1="byol", compact="network")
    for key, known in (("stage1", STAGE1), ("compact", STAGE2)):
        if arg[key] not in known:
            raise UserError(f"{key} is {arg[key]!r}; use {' or '.join(known)}")
    config = common.base(arg)
    config.batch_size = 256
    config.data.frame_size = 136
    config.eval_every = 0  # landmarks are found at the end of a stage
    config.save_every = 5 * EPOCH
    first = common.stage(STAGE1[arg.stage1], steps=200 * EPOCH)
    second = common.stage(STAGE2[arg.compact], steps=20 * EPOCH if arg.compact == "network" else 0)
    if arg.preset == "small":
        config.data.frame_size = 80
        config.batch_size = 64
        config.save_every = 200
        first.steps = 2500
        second.steps = 1000 if second.steps else 0
        for stage in (first, second):
            update(stage, image_size=64, zoom=0.8)
            stage.encoder.update(depth=18, width=16)
            if "optimizer" in stage:
                stage.optimizer.learning_rate = 0.1  # there are few steps
        # Overlapping windows on parts of the object, so that a few steps teach features to tell these apart.
        update(first.changes, area=0.1, most=0.4, within=0.3, side=40)
        first.optimizer.warmup = 100
        byol = dict(hidden=512, projection=128, momentum=0.97)
        update(first, **(byol if arg.stage1 == "byol" else dict(groups=2, queue=1024)))
    if arg.preset == "tiny":
        common.tiny(config)
        config.eval_every = 0
        first.steps, second.steps = 40, 20 if second.steps else 0
        for stage in (first, second):
            update(stage, image_size=32, zoom=0.8, pixels=8, roi=0.7)
            stage.encoder.update(depth=10, width=4)
        update(first, **(dict(hidden=16, projection=8) if arg.stage1 == "byol" else dict(groups=2, queue=16)))
        update(second, size=8)
    if arg.preset != "paper" and arg.compact == "network":
        small = arg.preset == "small"
        if small:  # a cell's own place teaches more in a few steps than what a hardly trained encoder finds similar
            second.objective, second.equivariance.exchange = "equivariance", True
        second.head = 64 if small else 8
        second.fpn.update(dict(width=64, inner=32) if small else dict(width=8, inner=8))
    config.stages = (arg.stage1, "compact")
    config[arg.stage1], config.compact = first, second
    return config.lock()

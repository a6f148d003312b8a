"""Self-training correspondence (Mallis et al., NeurIPS 2020): generic keypoints, then both stages.

    uld train --config=configs/self_training.py:dataset=folder,preset=small --config.data_dir=my_photos \
        --workdir=runs/mine

K, the number of landmarks, is found: `k` is of use to `variant=extended` alone, the method's later version (TPAMI
2024), in which it is given; its stages are those of `self_training_extended.py`. In `small` and `tiny` the generic
detector is SuperPoint or R2D2 where --config.weights.superpoint=FOLDER or --config.weights.r2d2=FOLDER names converted
weights, else corners, which need none.

As the published code has it, where the paper says otherwise or nothing:
    --config.stage1.memory=all_rounds --config.stage1.seeding=random --config.stage1.hinge=distance
    --config.stage1.negatives=shared --config.stage1.target=pixel --config.stage1.reading=cell
    --config.stage1.schedule=restarts --config.stage1.least_points=9 --config.stage2.least_images=500

Evaluation is the published code's: on its data sets by their rows (`evaluation/protocols.py`), elsewhere 1,000 training
images, ten draws of 300 of them (`evaluation/protocol.py`); bodies: protocol=mallis2020_bodies after the colon.
`variant=extended` has that of the later code; LS3D: protocol=mallis2024_ls3d. For MAFL's 68 points both divide by the
lower lids: --config.data.normaliser=41,46.

Presets: `paper` is section 4: SuperPoint's keypoints (--config.weights.superpoint=FOLDER) in the box that the csv has,
300,000 and 80,000 steps at 256 px in batches of 16 and 64; bodies: --config.keypoints.clusters=250. With less,
    (weights)  --config.keypoints.detector=auto       (boxes)  --config.keypoints.region=none
    (memory)   --config.stage2.accumulate_steps=4     its batches of 64 in four pieces
`small` is what two laptop cores train in about ten minutes; `tiny` is for tests.
The measured numbers are in docs/methods/self_training.md.
"""

from uld_jax.configs import common

from uld_jax.config import update
from uld_jax.errors import UserError

VARIANTS = {"neurips": "mallis2020", "extended": "mallis2024"}  # and the protocol of its paper


def get_config(arg=None):
    """`arg`: see `common.parse`; also `variant`."""
    arg = common.parse(arg, variant="neurips", protocol="")
    if arg.variant not in VARIANTS:
        raise UserError(f"variant is {arg.variant!r}; use one of {', '.join(VARIANTS)}")
    arg.protocol = arg.protocol or VARIANTS[arg.variant]
    config = common.base(arg)
    config.data.partner = True  # pairs of different images
    config.batch_size = 16
    config.eval_every = 10_000
    config.save_every = 10_000
    config.stages = ("keypoints", "stage1", "stage2")
    config.keypoints = common.stage("self_training.Keypoints", steps=0)
    extended = arg.variant == "extended"
    paper = "self_training_extended" if extended else "self_training"
    config.stage1 = common.stage(f"{paper}.Correspondence", steps=200_000 if extended else 300_000)
    config.stage2 = common.stage(f"{paper}.Landmarks", steps=200_000 if extended else 80_000)
    if arg.preset == "paper":
        config.data.frame_size = 256
        update(config.keypoints, detector="superpoint", region="box")
        config.stage2.batch_size = 0 if extended else 64
    if extended:
        update(config.keypoints, scales=(1.0,), threshold=0.15, assignment="none")  # no clusters at first
    if arg.dataset == "synthetic" and arg.preset != "paper":
        # Section 4: keypoints outside the object's box are dropped. Frames are no crops around it, so rounds do so too.
        config.keypoints.region = config.stage1.region = "box"
    if arg.preset == "small":
        config.data.frame_size = 160  # generic keypoints need the detail
        update(config.keypoints, image_size=128, zoom=0.8, most=64, clusters=40)
        update(config.stage1, steps=1500, warmup=500, round_every=250, most=64, learning_rate=1e-3, descriptor_size=64)
        update(config.stage2, steps=1500, learning_rate=1e-3, scale=0.2)
        if not extended:
            update(config.stage2, merge_from=500, merge_every=250)
        for stage in (config.stage1, config.stage2):
            update(stage, image_size=64, zoom=0.8, width=32, downsample=2, rotation=30.0)
        update(config.stage1, threshold=0.1, subpixel="parabola")  # few steps leave the confidence of keypoints low
        update(config.stage2, decode="parabola", sigma=1.5)  # cells are coarser than those of 256 px
        config.eval_every = config.save_every = 250
        if arg.dataset == "synthetic":
            for stage in (config.keypoints, config.stage1, config.stage2):
                stage.view.zoom = 0.7  # a little more than the box, as the code's crops
    if arg.preset == "tiny":
        common.tiny(config)
        update(config.keypoints, image_size=40, most=12, clusters=6, neighbours=10)
        update(config.stage1, steps=20, warmup=10, round_every=5, most=12, learning_rate=2e-3)
        update(config.stage2, steps=20, learning_rate=2e-3)
        if not extended:
            update(config.stage2, merge_from=5, merge_every=5)
        for stage in (config.stage1, config.stage2):
            update(stage, image_size=32, width=16, depth=1, downsample=2)
        config.stage1.descriptor_size = 16
        if extended:
            config.stage1.restarts = 1
        config.batch_size = 8
    config.stage1.clusters = config.keypoints.get_ref("clusters")  # the stages speak of the same ones
    if not extended:
        config.stage2.clusters = config.keypoints.get_ref("clusters")
    elif arg.preset != "paper":
        config.stage1.optimizer.decay_at = (config.stage1.steps * 3 // 4, config.stage1.steps * 9 // 10)
        config.stage2.optimizer.decay_at = (config.stage2.steps // 2, config.stage2.steps * 3 // 4)
        rate = config.stage2.optimizer.learning_rate
        update(config.stage2, head_rate=rate, learning_rate=rate / 10)
    return config.lock()

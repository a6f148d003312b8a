"""ZeroShot (Tourani et al., CVPR 2024, section 3.1), then a heatmap detector that learns from its landmarks.

    uld train --config=configs/zeroshot.py:dataset=folder,k=10,preset=small --config.data_dir=my_photos \
        --workdir=runs/mine

Presets: `paper` clusters as the paper does and trains the full FAN at 256 px; `small` is what two laptop cores train in
minutes, on candidates that are six times the landmarks; `tiny` takes seconds, for tests and notebooks.
The measured numbers are in the README's results table.
"""

from uld_jax.configs import common


def get_config(arg=None):
    """`arg`: see `common.parse`; also `backbone`, whose hyper-parameters `config.zeroshot.backbone_kwargs` then has."""
    arg = common.parse(arg, backbone="gradient.GradientHistograms", protocol="tourani2024")
    config = common.base(arg)
    config.stages = ("zeroshot", "detector")
    config.zeroshot = common.stage("zeroshot.ZeroShot", steps=0, backbone=arg.backbone)
    config.detector = common.stage("zeroshot.HeatmapDetector", steps=100_000, round_every=20_000, learning_rate=1e-3)
    if arg.preset == "small":
        config.zeroshot.update(candidates=6 * arg.k, pixels=30)
        config.detector.update(steps=3000, round_every=750, image_size=64, width=64, zoom=0.8)
        config.eval_every = 750
        config.save_every = 750
    if arg.preset == "tiny":
        common.tiny(config)
        config.zeroshot.update(candidates=3 * arg.k, factors=4)
        config.detector.update(steps=40, round_every=20, image_size=32, width=16, depth=1, downsample=2, warmup=5)
        config.detector.relabel_warps = 2
    return config.lock()

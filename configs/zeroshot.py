"""ZeroShot (Tourani et al., CVPR 2024, section 3.1), then a heatmap detector that learns from its landmarks.

    uld train --config=configs/zeroshot.py:dataset=folder,k=10,preset=small --config.data_dir=my_photos \
        --workdir=runs/mine

Presets: `paper` is section 3.1: Stable Diffusion's features (--config.weights.stable_diffusion=FOLDER) at random pixels
of the csv's box, no place in the descriptor, exemplars. Without weights or boxes,
    (weights)  --config=zeroshot:backbone=gradient.GradientHistograms       (boxes)  --config.zeroshot.region=none
Ours in it: features are stacked instead of aggregated by learnt weights (eq. 2), as there is nothing yet from which to
learn them; test images have no boxes, so that their pixels are drawn in the middle (`roi`); the stage `detector`, the
full FAN at 256 px, is not in the section, and --config.stages="('zeroshot',)" leaves it out.

`small` trains on two laptop cores in minutes, with gradient histograms, places, and six times as many candidates as
landmarks; `tiny` is for tests and notebooks. The measured numbers are in docs/methods/zeroshot.md.
"""

from uld_jax.configs import common

from uld_jax.config import update


def get_config(arg=None):
    """The config for `arg`, see `common.parse`; a further key is `backbone`.

    The backbone's hyper-parameters are `config.zeroshot.backbone_kwargs`.
    """
    arg = common.parse(arg, backbone="", protocol="tourani2024")
    paper = arg.preset == "paper"
    usual = "stable_diffusion.StableDiffusion" if paper else "gradient.GradientHistograms"
    config = common.base(arg)
    config.stages = ("zeroshot", "detector")
    config.zeroshot = common.stage("zeroshot.ZeroShot", steps=0, backbone=arg.backbone or usual)
    config.detector = common.stage(
        "heatmap_detector.HeatmapDetector", steps=100_000, round_every=20_000, learning_rate=1e-3
    )
    if paper:
        config.data.frame_size = 256
        update(config.zeroshot, position=0.0, place="exemplar", dense=False, region="box")
    if arg.preset == "small":
        update(config.zeroshot, candidates=6 * arg.k, pixels=30)
        update(config.detector, steps=3000, round_every=750, image_size=64, width=64, zoom=0.8)
        config.eval_every = 750
        config.save_every = 750
    if arg.preset == "tiny":
        common.tiny(config)
        update(config.zeroshot, candidates=3 * arg.k, factors=4)
        update(config.detector, steps=40, round_every=20, image_size=32, width=16, depth=1, downsample=2, warmup=5)
        config.detector.relabel_warps = 2
    return config.lock()

"""ZeroShot (Tourani et al., CVPR 2024, section 3.1), then a heatmap detector that learns from its landmarks.

    uld train --config=configs/zeroshot.py:dataset=folder,k=10,preset=small --config.data_dir=my_photos \\
        --workdir=runs/mine

Presets: `paper` 256 px, full FAN; `small` 64 px, a laptop CPU in minutes; `tiny` seconds, for tests and notebooks.
The measured numbers are in the README's results table.
"""

from ml_collections import ConfigDict
from uld_jax.configs import common


def get_config(arg=None):
    """`arg`: see `common.parse`."""
    arg = common.parse(arg)
    config = common.base(arg)
    config.stages = ("zeroshot", "detector")
    config.zeroshot = ConfigDict({"method": "zeroshot.ZeroShot", "steps": 0, "position": 2.0, "roi": 0.7, "pixels": 60})
    config.detector = ConfigDict({"method": "zeroshot.HeatmapDetector", "steps": 100_000, "round_every": 20_000})
    if arg.preset == "small":
        config.detector.update(
            {"steps": 3000, "round_every": 1000, "image_size": 64, "width": 64, "downsample": 2, "zoom": 0.9}
        )
    if arg.preset == "tiny":
        config.data.frame_size = 40
        config.data.rows = (48, 16)
        config.batch_size = 8
        config.eval_every = config.save_every = 20
        config.log_every = 10
        config.detector.update(
            {
                "steps": 40,
                "round_every": 20,
                "image_size": 32,
                "width": 16,
                "depth": 2,
                "downsample": 2,
                "relabel_warps": 2,
            }
        )
        config.eval.stability_images = 16
    return config.lock()

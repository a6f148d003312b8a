"""IMM (Jakab et al., NeurIPS 2018), the source of the "conditional generation" of later methods.

    uld train --config=configs/imm.py:dataset=folder,k=10,preset=small --config.data_dir=my_photos --workdir=runs/imm

Presets: `paper` is the published code's network at 128 px, batch 50; the published code trains until it is stopped,
here for 300,000 steps. `small` trains on two laptop cores in minutes; `tiny` is for tests.
Evaluation is the published code's: least squares without an intercept (`evaluation/protocol.py`).
The measured numbers are in docs/methods/imm.md.
"""

from uld_jax.configs import common


def get_config(arg=None):
    """The config for `arg`, see `common.parse`."""
    arg = common.parse(arg, protocol="jakab2018")
    config = common.base(arg)
    config.batch_size = 50
    config.eval_every = 10_000
    config.save_every = 2000
    changes = dict(steps=300_000)
    if arg.preset == "small":
        config.batch_size = 16
        config.eval_every = config.save_every = 500
        changes = dict(steps=2000, image_size=64, width=16, vgg_width=16, gauss_std=0.1 * 15 / 7)  # as wide in cells
    if arg.preset == "tiny":
        common.tiny(config)
        changes = dict(steps=40, image_size=32, width=4, vgg_width=4, control=4, learning_rate=0.03)
        changes |= dict(gauss_std=0.1 * 15 / 3)
    config.stages = ("imm",)
    config.imm = common.stage("imm.IMM", **changes)
    return config.lock()

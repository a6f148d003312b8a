"""IMM on MAFL (Jakab et al., NeurIPS 2018), as Xu et al. quote it in their table 1.

    uld prepare --dataset=celeba_imm --src=CELEBA --data_dir=DATA
    uld prepare --dataset=mafl_imm --src=CELEBA --data_dir=DATA
    uld train --config=configs/papers/imm_mafl.py --config.data_dir=DATA \
        --config.weights.vgg16_colorization=COLORIZATION --workdir=runs/imm_mafl
    uld evaluate --workdir=runs/imm_mafl --dataset=mafl_imm --data_dir=DATA

Expected: 3.19 forward with K = 10 (mafl_5_imm)
Expected: 2.58 forward with K = 30, imm_mafl.py:k=30 (mafl_5_imm)

The photos are stored as the published code shows them: 160 x 160 without their aspect, of that the middle 128 x 128. It
trains until it is stopped, so the number of steps is ours.
"""

from uld_jax.configs import imm, papers


def get_config(arg=None):
    """The config for `arg`, as configs/imm.py takes it."""
    return papers.config_of(imm, arg, dataset="celeba_imm").lock()

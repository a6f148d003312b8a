"""IMM on AFLW (Jakab et al., NeurIPS 2018), as Xu et al. quote it in their table 1: it goes on from CelebA.

    uld prepare --dataset=aflw_r_imm --src=AFLW --data_dir=DATA
    uld train --config=configs/papers/imm_aflw.py --config.data_dir=DATA --config.init_from=runs/imm_mafl \
        --config.weights.vgg16_colorization=COLORIZATION --workdir=runs/imm_aflw
    uld evaluate --workdir=runs/imm_aflw

Expected: 6.86 forward with K = 10 (aflw_5_imm)
Expected: 6.31 forward with K = 30, imm_aflw.py:k=30 from imm_mafl.py:k=30 (aflw_5_imm)

runs/imm_mafl is the run of imm_mafl.py. As in the published code (`examples/train_aflw.sh`) the
optimiser goes on too, and with it the decay of the learning rate; the number of steps is ours.
"""

from uld_jax.configs import imm, papers


def get_config(arg=None):
    """The config for `arg`, as configs/imm.py takes it."""
    config = papers.config_of(imm, arg, dataset="aflw_r_imm")
    config.imm.start = "previous"
    return config.lock()

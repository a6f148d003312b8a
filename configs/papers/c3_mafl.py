"""C3 on MAFL and AFLW (Xu et al., 2020, table 1), from one training on CelebA.

    uld prepare --dataset=celeba_imm --src=CELEBA --data_dir=DATA
    uld prepare --dataset=mafl_imm --src=CELEBA --data_dir=DATA
    uld prepare --dataset=aflw_r_imm --src=AFLW --data_dir=DATA
    uld train --config=configs/papers/c3_mafl.py --config.data_dir=DATA --config.weights.resnet50=RESNET50 \
        --config.weights.vgg16=VGG16 --workdir=runs/c3_mafl
    uld evaluate --workdir=runs/c3_mafl --dataset=mafl_imm --data_dir=DATA
    uld evaluate --workdir=runs/c3_mafl --dataset=aflw_r_imm --data_dir=DATA

Expected: 3.11 forward on MAFL with K = 10 (mafl_5_imm)
Expected: 2.54 forward on MAFL with K = 30, c3_mafl.py:k=30 (mafl_5_imm)
Expected: 6.75 forward on AFLW with K = 10 (aflw_5_imm)
Expected: 6.26 forward on AFLW with K = 30 (aflw_5_imm)

By its text the paper trains on CelebA alone; c3_aflw.py goes on as IMM does. Rows of table 2 are cell=none, cycle or
flow after the colon.
"""

from uld_jax.configs import c3, papers


def get_config(arg=None):
    """The config for `arg`, as configs/c3.py takes it."""
    return papers.config_of(c3, arg, dataset="celeba_imm").lock()

"""C3 on AFLW (Xu et al., 2020, table 1), going on from CelebA as IMM does, with which the table compares it.

    uld prepare --dataset=aflw_r_imm --src=AFLW --data_dir=DATA
    uld train --config=configs/papers/c3_aflw.py --config.data_dir=DATA --config.init_from=runs/c3_mafl:joint \
        --config.weights.vgg16=VGG16 --workdir=runs/c3_aflw
    uld evaluate --workdir=runs/c3_aflw

Expected: 6.75 forward with K = 10, though the paper names CelebA alone (aflw_5_imm)
Expected: 6.26 forward with K = 30, c3_aflw.py:k=30 from c3_mafl.py:k=30 (aflw_5_imm)

runs/c3_mafl is the run of c3_mafl.py. 200 epochs, as on CelebA, are ours.
"""

from uld_jax.configs import c3, papers

EPOCH = 9_110 // 200  # steps


def get_config(arg=None):
    """The config for `arg`, as configs/c3.py takes it."""
    config = papers.config_of(c3, arg, dataset="aflw_r_imm")
    config.stages = ("joint",)
    config.joint.start = "previous"
    papers.in_paper(config, joint=dict(steps=200 * EPOCH, decay_at=(100 * EPOCH, 150 * EPOCH), rise=0))
    return config.lock()

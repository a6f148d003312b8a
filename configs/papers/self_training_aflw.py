"""Self-training on AFLW (Mallis et al., NeurIPS 2020, figure 2b).

    uld prepare --dataset=aflw_r --src=AFLW --data_dir=DATA
    uld train --config=configs/papers/self_training_aflw.py --config.data_dir=DATA \
        --config.weights.superpoint=SUPERPOINT --workdir=runs/self_training_aflw
    uld evaluate --workdir=runs/self_training_aflw

Expected: 7.37 forward (aflw_5_2020)

The published code has no AFLW. The faces are cut to their boxes already, so keypoints are not dropped by a box.
"""

from uld_jax.configs import papers, self_training


def get_config(arg=None):
    """The config for `arg`, as configs/self_training.py takes it."""
    config = papers.config_of(self_training, arg, dataset="aflw_r")
    papers.in_paper(config, keypoints=dict(region="none"))
    return config.lock()

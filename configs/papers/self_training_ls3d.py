"""Self-training on LS3D (Mallis et al., NeurIPS 2020), as Awan et al. quote it in their table 2.

    uld prepare --dataset=ls3d_mallis --src=LS3D --data_dir=DATA
    uld train --config=configs/papers/self_training_ls3d.py --config.data_dir=DATA \
        --config.weights.superpoint=SUPERPOINT --workdir=runs/self_training_ls3d
    uld evaluate --workdir=runs/self_training_ls3d

Expected: 6.53 forward, 6.57 backward (ls3d_68_2020_code)

The crop of tests is the published code's; it trains on crops to boxes that are published as a pickle, which is not
read, so the boxes of the annotated points stand in for them.
"""

from uld_jax.configs import papers, self_training


def get_config(arg=None):
    """The config for `arg`, as configs/self_training.py takes it."""
    config = papers.config_of(self_training, arg, dataset="ls3d_mallis")
    papers.in_paper(config, keypoints=dict(region="none"))
    return config.lock()

"""Extended self-training on MAFL (Mallis et al., TPAMI 2024), as Tourani et al. quote it in their table 1.

    uld prepare --dataset=celeba_mallis --src=CELEBA --data_dir=DATA
    uld prepare --dataset=mafl --src=CELEBA --data_dir=DATA
    uld train --config=configs/papers/self_training_extended_mafl.py --config.data_dir=DATA \
        --config.weights.superpoint=SUPERPOINT --workdir=runs/self_training_extended_mafl
    uld evaluate --workdir=runs/self_training_extended_mafl --dataset=mafl --data_dir=DATA

Expected: 3.19 forward, 4.23 backward with K = 10 (mafl_5_full)

The published boxes of faces are a pickle, which is not read: here the networks see the middle of the aligned photo, and
keypoints beside the face stay. The authors publish networks of K = 10 and 30 (k=30 after the colon).
"""

from uld_jax.configs import papers, self_training


def get_config(arg=None):
    """The config for `arg`, as configs/self_training.py takes it."""
    config = papers.config_of(self_training, arg, dataset="celeba_mallis", variant="extended")
    papers.in_paper(config, keypoints=dict(region="none"))
    return config.lock()

"""Self-training on MAFL (Mallis et al., NeurIPS 2020, figure 2), as Awan et al. quote it in their tables 1 and 3.

    uld prepare --dataset=celeba_mallis --src=CELEBA --data_dir=DATA
    uld prepare --dataset=mafl --src=CELEBA --data_dir=DATA
    uld train --config=configs/papers/self_training_mafl.py --config.data_dir=DATA \
        --config.weights.superpoint=SUPERPOINT --workdir=runs/self_training_mafl
    uld evaluate --workdir=runs/self_training_mafl --dataset=mafl --data_dir=DATA --protocol=mafl_5_full

Expected: 4.12 forward, 8.23 backward, by a protocol that the quotation does not name (mafl_5_full)

The published code measures 68 points of MAFL (mafl_68_2020_code), which are published as a pickle and are not read. So
are its boxes of faces: here the networks see the middle of the aligned photo, and keypoints beside the face stay.
"""

from uld_jax.configs import papers, self_training


def get_config(arg=None):
    """The config for `arg`, as configs/self_training.py takes it."""
    config = papers.config_of(self_training, arg, dataset="celeba_mallis")
    papers.in_paper(config, keypoints=dict(region="none"))
    return config.lock()

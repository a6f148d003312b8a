"""Self-training on Human3.6M (Mallis et al., NeurIPS 2020).

    uld prepare --dataset=human36m --src=HUMAN36M --data_dir=DATA
    uld train --config=configs/papers/self_training_human36m.py --config.data_dir=DATA \
        --config.weights.superpoint=SUPERPOINT --workdir=runs/self_training_human36m
    uld evaluate --workdir=runs/self_training_human36m

No number: the table of bodies was not at hand. `uld evaluate` measures by human36m_32_800.

M = 250 clusters (section 4). The published code looks for keypoints in the whole crop of 450 pixels, tells the body
from what surrounds it by clusters of the keypoints inside and outside its box, and trains on crops enlarged by 1.4.
"""

from uld_jax.configs import papers, self_training


def get_config(arg=None):
    """The config for `arg`, as configs/self_training.py takes it."""
    config = papers.config_of(self_training, arg, dataset="human36m", protocol="mallis2020_bodies")
    papers.in_paper(config, keypoints=dict(clusters=250, background="clusters", zoom=1.0, image_size=448))
    return config.lock()

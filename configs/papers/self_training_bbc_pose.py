"""Self-training on BBC Pose (Mallis et al., NeurIPS 2020).

    uld prepare --dataset=bbc_pose --src=BBC_POSE --data_dir=DATA
    uld train --config=configs/papers/self_training_bbc_pose.py --config.data_dir=DATA \
        --config.weights.superpoint=SUPERPOINT --workdir=runs/self_training_bbc_pose
    uld evaluate --workdir=runs/self_training_bbc_pose

No number: the table of bodies was not at hand. `uld evaluate` measures by bbc_pose_7_800.

M = 250 clusters (section 4). The published code has no BBC Pose: the frames are shown whole, and without boxes
keypoints beside the body stay.
"""

from uld_jax.configs import papers, self_training


def get_config(arg=None):
    """The config for `arg`, as configs/self_training.py takes it."""
    config = papers.config_of(self_training, arg, dataset="bbc_pose", protocol="mallis2020_bodies")
    papers.in_paper(config, keypoints=dict(clusters=250, region="none"))
    return config.lock()

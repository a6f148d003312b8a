"""Self-training on heads of cats (Mallis et al., NeurIPS 2020, supplement).

    uld prepare --dataset=cats --src=CATS --data_dir=DATA
    uld train --config=configs/papers/self_training_cats.py --config.data_dir=DATA \
        --config.weights.superpoint=SUPERPOINT --workdir=runs/self_training_cats
    uld evaluate --workdir=runs/self_training_cats --protocol=cat_9_300

No number: the supplement was not at hand, and so neither was its crop. `uld evaluate` measures by cat_9_300. This
protocol is that of Tourani et al., who follow Mallis et al. Without boxes, keypoints beside the cat stay.
"""

from uld_jax.configs import papers, self_training


def get_config(arg=None):
    """The config for `arg`, as configs/self_training.py takes it."""
    config = papers.config_of(self_training, arg, dataset="cats")
    papers.in_paper(config, keypoints=dict(region="none"))
    return config.lock()

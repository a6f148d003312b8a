"""D-ULD++ on heads of cats (Tourani et al., CVPR 2024, table 1).

    uld prepare --dataset=cats --src=CATS --data_dir=DATA
    uld train --config=configs/papers/duld_cats.py --config.data_dir=DATA \
        --config.weights.stable_diffusion=SD15 --workdir=runs/duld_cats
    uld evaluate --workdir=runs/duld_cats

Expected: 2.89 forward, 3.12 backward for D-ULD++ with K = 10 (cat_9_300)

The paper finds cats by a detector; these photos have no boxes and are shown whole.
"""

from uld_jax.configs import duld, papers


def get_config(arg=None):
    """The config for `arg`, as configs/duld.py takes it."""
    return papers.config_of(duld, arg, dataset="cats").lock()

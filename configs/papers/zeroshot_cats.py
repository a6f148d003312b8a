"""ZeroShot on heads of cats (Tourani et al., CVPR 2024, table 1).

    uld prepare --dataset=cats --src=CATS --data_dir=DATA
    uld train --config=configs/papers/zeroshot_cats.py --config.data_dir=DATA \
        --config.weights.stable_diffusion=SD15 --workdir=runs/zeroshot_cats
    uld evaluate --workdir=runs/zeroshot_cats

Expected: 3.47 forward, 3.59 backward with K = 10 (cat_9_300)

The paper finds cats by a detector; these photos have no boxes and are shown whole.
"""

from uld_jax.configs import papers, zeroshot


def get_config(arg=None):
    """The config for `arg`, as configs/zeroshot.py takes it."""
    config = papers.config_of(zeroshot, arg, dataset="cats")
    config.stages = ("zeroshot",)  # the detector is ours
    papers.in_paper(config, zeroshot=dict(region="none"))
    return config.lock()

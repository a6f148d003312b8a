"""ZeroShot on AFLW (Tourani et al., CVPR 2024, table 1).

    uld prepare --dataset=aflw_r --src=AFLW --data_dir=DATA
    uld train --config=configs/papers/zeroshot_aflw.py --config.data_dir=DATA \
        --config.weights.stable_diffusion=SD15 --workdir=runs/zeroshot_aflw
    uld evaluate --workdir=runs/zeroshot_aflw

Expected: 4.98 forward, 6.29 backward with K = 10 (aflw_5_full)

The faces are cut to their boxes already.
"""

from uld_jax.configs import papers, zeroshot


def get_config(arg=None):
    """The config for `arg`, as configs/zeroshot.py takes it."""
    config = papers.config_of(zeroshot, arg, dataset="aflw_r")
    config.stages = ("zeroshot",)  # the detector is ours
    papers.in_paper(config, zeroshot=dict(region="none"))
    return config.lock()

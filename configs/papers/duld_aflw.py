"""D-ULD and D-ULD++ on AFLW (Tourani et al., CVPR 2024, tables 1 and 2).

    uld prepare --dataset=aflw_r --src=AFLW --data_dir=DATA
    uld train --config=configs/papers/duld_aflw.py --config.data_dir=DATA \
        --config.weights.stable_diffusion=SD15 --workdir=runs/duld_aflw
    uld evaluate --workdir=runs/duld_aflw --stage=duld
    uld evaluate --workdir=runs/duld_aflw --stage=proxy
    uld evaluate --workdir=runs/duld_aflw

Expected: 3.42 forward, 4.89 backward for D-ULD, the stage duld with K = 10 (aflw_5_full)
Expected: 3.15 forward, 4.46 backward for + proxy, the stage proxy with K = 10 (aflw_5_full)
Expected: 2.92 forward, 3.62 backward for D-ULD++ with K = 10 (aflw_5_full)

The faces are cut to their boxes already.
"""

from uld_jax.configs import duld, papers


def get_config(arg=None):
    """The config for `arg`, as configs/duld.py takes it."""
    return papers.config_of(duld, arg, dataset="aflw_r").lock()

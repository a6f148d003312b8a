"""D-ULD and D-ULD++ on MAFL (Tourani et al., CVPR 2024, tables 1 and 2).

    uld prepare --dataset=celeba_mallis --src=CELEBA --data_dir=DATA
    uld prepare --dataset=mafl --src=CELEBA --data_dir=DATA
    uld train --config=configs/papers/duld_mafl.py --config.data_dir=DATA \
        --config.weights.stable_diffusion=SD15 --workdir=runs/duld_mafl
    uld evaluate --workdir=runs/duld_mafl --dataset=mafl --data_dir=DATA --stage=duld
    uld evaluate --workdir=runs/duld_mafl --dataset=mafl --data_dir=DATA --stage=proxy
    uld evaluate --workdir=runs/duld_mafl --dataset=mafl --data_dir=DATA

Expected: 2.82 forward, 3.21 backward for D-ULD, the stage duld with K = 10 (mafl_5_full)
Expected: 2.68 forward, 3.12 backward for + proxy, the stage proxy with K = 10 (mafl_5_full)
Expected: 2.19 forward, 2.78 backward for D-ULD++ with K = 10 (mafl_5_full)

The paper finds faces by a detector; here the networks see the middle of the aligned photo, which has no box.
"""

from uld_jax.configs import duld, papers


def get_config(arg=None):
    """The config for `arg`, as configs/duld.py takes it."""
    return papers.config_of(duld, arg, dataset="celeba_mallis").lock()

"""D-ULD++ on LS3D (Tourani et al., CVPR 2024, table 1).

    uld prepare --dataset=ls3d --src=LS3D --data_dir=DATA
    uld train --config=configs/papers/duld_ls3d.py --config.data_dir=DATA \
        --config.weights.stable_diffusion=SD15 --workdir=runs/duld_ls3d
    uld evaluate --workdir=runs/duld_ls3d

Expected: 2.12 forward, 2.85 backward for D-ULD++ with K = 10 (ls3d_68_300x5)

The pictures have no boxes: the networks see the middle 60 % of a picture, a guess of ours at the crop of Mallis et al.
That crop itself, by the annotated points, is dataset=ls3d_mallis after the colon and in `uld prepare`; the id then ends
in +data=ls3d_mallis.
"""

from uld_jax.configs import duld, papers


def get_config(arg=None):
    """The config for `arg`, as configs/duld.py takes it."""
    return papers.config_of(duld, arg, dataset="ls3d", protocol="tourani2024_ls3d").lock()

"""ZeroShot on LS3D (Tourani et al., CVPR 2024, table 1).

    uld prepare --dataset=ls3d --src=LS3D --data_dir=DATA
    uld train --config=configs/papers/zeroshot_ls3d.py --config.data_dir=DATA \
        --config.weights.stable_diffusion=SD15 --workdir=runs/zeroshot_ls3d
    uld evaluate --workdir=runs/zeroshot_ls3d

Expected: 3.53 forward, 4.14 backward with K = 10 (ls3d_68_300x5)

A picture has no box: pixels are drawn in its middle 60 %, a guess of ours at the crop of Mallis et al.
That crop itself, by the annotated points, is dataset=ls3d_mallis after the colon and in `uld prepare`; the id then ends
in +data=ls3d_mallis.
"""

from uld_jax.configs import papers, zeroshot


def get_config(arg=None):
    """The config for `arg`, as configs/zeroshot.py takes it."""
    config = papers.config_of(zeroshot, arg, dataset="ls3d", protocol="tourani2024_ls3d")
    config.stages = ("zeroshot",)  # the detector is ours
    papers.in_paper(config, zeroshot=dict(region="none", roi=0.6))
    return config.lock()

"""ZeroShot on MAFL (Tourani et al., CVPR 2024, table 1).

    uld prepare --dataset=celeba_mallis --src=CELEBA --data_dir=DATA
    uld prepare --dataset=mafl --src=CELEBA --data_dir=DATA
    uld train --config=configs/papers/zeroshot_mafl.py --config.data_dir=DATA \
        --config.weights.stable_diffusion=SD15 --workdir=runs/zeroshot_mafl
    uld evaluate --workdir=runs/zeroshot_mafl --dataset=mafl --data_dir=DATA

Expected: 3.14 forward, 3.27 backward with K = 10 (mafl_5_full)

Table 2 has 3.98 backward. The paper finds faces by a detector; here pixels are drawn in the middle of the aligned
photo, which has no box.
"""

from uld_jax.configs import papers, zeroshot


def get_config(arg=None):
    """The config for `arg`, as configs/zeroshot.py takes it."""
    config = papers.config_of(zeroshot, arg, dataset="celeba_mallis")
    config.stages = ("zeroshot",)  # the detector is ours
    papers.in_paper(config, zeroshot=dict(region="none"))
    return config.lock()

"""LEAD (Karmali et al., WACV 2022, tables 1, 2 and 4): one training on CelebA, measured on four data sets.

    uld prepare --dataset=celeba --src=CELEBA --data_dir=DATA
    uld prepare --dataset=mafl_dve --src=CELEBA --data_dir=DATA
    uld prepare --dataset=aflw_m --src=AFLW_M --data_dir=DATA
    uld prepare --dataset=aflw_r_dve --src=AFLW --data_dir=DATA
    uld prepare --dataset=w300_dve --src=300W --data_dir=DATA
    uld train --config=configs/papers/lead_celeba.py --config.data_dir=DATA --workdir=runs/lead
    uld dense --workdir=runs/lead --dataset=mafl_dve --data_dir=DATA --measure=matching,regression
    uld dense --workdir=runs/lead --dataset=aflw_m --data_dir=DATA --measure=regression --epochs=45 \
        --labels=1,5,10,20,50,100,all
    uld dense --workdir=runs/lead --dataset=aflw_r_dve --data_dir=DATA --measure=regression --epochs=45
    uld dense --workdir=runs/lead --dataset=w300_dve --data_dir=DATA --measure=regression

The features of 64 numbers are those of the last stage, the hypercolumns those of --stage=byol.

Expected: 2.93, hypercolumns 2.39, on MAFL (mafl_dve_5_eyes+lead2022+regression_120_epochs)
Expected: 6.61, hypercolumns 6.23, on AFLW_M (aflw_m_5_eyes+lead2022+regression_45_epochs)
Expected: 6.32, hypercolumns 5.65, on AFLW_R (aflw_r_dve_5_eyes+lead2022+regression_45_epochs)
Expected: 5.32, hypercolumns 4.66, on 300W (w300_dve_68_eyes+lead2022+regression_80_epochs)
Expected: 0.51 and 2.60 px, hypercolumns 0.49 and 3.06, same and another photo (mafl_dve_5_eyes+lead2022+matching)
Expected: 21.8, 13.34, 11.50, 10.13, 9.29, 9.11 by 1 to 100 labels (aflw_m_5_eyes+lead2022+regression_1000_epochs_x5)
Expected: hypercolumns 24.41, 14.11, 11.45, 10.21, 8.43, 8.09 (aflw_m_5_eyes+lead2022+regression_1000_epochs_x5)

The paper counts all 162,770 training images, of which 808 are test images of MAFL; dataset=celeba_dve after the colon
leaves all of MAFL out, as DVE and ContrastLandmarks do. Table 2 has 2.44, 6.99, 6.27 and 5.22 for the hypercolumns of
ContrastLandmarks, in the order above; docs/papers.md measures the published network.
"""

from uld_jax.configs import lead, papers

EPOCH = 162_770 // 256  # steps


def get_config(arg=None):
    """The config for `arg`, as configs/lead.py takes it."""
    config = papers.config_of(lead, arg, dataset="celeba")
    if config.dataset == "celeba":
        first, second = config.stages
        learns = config[second].steps > 0  # compact=nmf does not
        papers.in_paper(config, **{first: dict(steps=200 * EPOCH), second: dict(steps=20 * EPOCH * learns)})
    return config.lock()

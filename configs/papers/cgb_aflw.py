"""CGB on AFLW (Awan et al., tables 1 and 3), and the in-house baseline of the paper.

    uld prepare --dataset=aflw_r_cgb --src=AFLW --data_dir=DATA
    uld train --config=configs/papers/cgb_aflw.py --config.data_dir=DATA --config.weights.fan=FAN \
        --config.weights.vgg16=VGG16 --workdir=runs/cgb_aflw
    uld evaluate --workdir=runs/cgb_aflw

Expected: 5.91 forward, 6.39 backward with K = 10 (aflw_5_awan_code)
Expected: 7.03 forward, 8.84 backward for the baseline, --config.cgb.bottleneck=fixed (aflw_5_awan_code)

Starts from the MPII network, not from a run on CelebA. The decay is the published script's; the paper has none. The
crop, 70 % more than the box of the annotated points, is the published code's, and annotation in itself. The script
measures epoch 100 of 145.
"""

from uld_jax.configs import cgb, papers


def get_config(arg=None):
    """The config for `arg`, as configs/cgb.py takes it."""
    config = papers.config_of(cgb, arg, dataset="aflw_r_cgb")
    papers.published_rates(config, 1e-4, epochs=30, decay=0.1)
    return config.lock()

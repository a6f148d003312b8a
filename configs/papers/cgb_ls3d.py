"""CGB on LS3D (Awan et al., table 2), and the in-house baseline of the paper.

    uld prepare --dataset=ls3d_cgb --src=LS3D --data_dir=DATA
    uld train --config=configs/papers/cgb_ls3d.py --config.data_dir=DATA --config.weights.fan=FAN \
        --config.weights.vgg16=VGG16 --workdir=runs/cgb_ls3d
    uld evaluate --workdir=runs/cgb_ls3d

Expected: 5.21 forward, 4.69 backward with K = 10 (ls3d_68_awan_code)
Expected: 5.38 forward, 7.06 backward for the baseline, --config.cgb.bottleneck=fixed (ls3d_68_awan_code)

Rate and decay are those of the published script; the paper has 1e-4 and no decay. The crop, 16 % more than the box of
the annotated points, is the published code's, and so are fits on 11,970 images and tests on 870, the first ones in the
order of a file system there, and of names here.
"""

from uld_jax.configs import cgb, papers


def get_config(arg=None):
    """The config for `arg`, as configs/cgb.py takes it."""
    config = papers.config_of(cgb, arg, dataset="ls3d_cgb")
    papers.published_rates(config, 1e-5, epochs=80, decay=0.1)
    return config.lock()

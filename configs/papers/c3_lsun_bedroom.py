"""C3 on bedrooms of LSUN (Xu et al., 2020): pictures, of which the paper gives no number.

    uld prepare --dataset=lsun_bedroom --src=LSUN --data_dir=DATA
    uld train --config=configs/papers/c3_lsun_bedroom.py --config.data_dir=DATA --config.weights.resnet50=RESNET50 \
        --config.weights.vgg16=VGG16 --workdir=runs/c3_lsun_bedroom

No number: the sheets are in runs/c3_lsun_bedroom/pictures. Settings are those of CelebA, as in the paper; the number of
photos, 200,000, and the steps, those of 200 epochs of CelebA, are ours.
"""

from uld_jax.configs import c3, papers


def get_config(arg=None):
    """The config for `arg`, as configs/c3.py takes it."""
    return papers.config_of(c3, arg, dataset="lsun_bedroom").lock()

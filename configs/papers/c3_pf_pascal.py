"""C3 on PF-Pascal (Xu et al., 2020, table 3): keypoints that the flow carries to another photo.

    uld prepare --dataset=pf_pascal --src=PF_PASCAL --data_dir=DATA
    uld train --config=configs/papers/c3_pf_pascal.py --config.data_dir=DATA --config.weights.resnet50=RESNET50 \
        --workdir=runs/c3_pf_pascal
    uld align --workdir=runs/c3_pf_pascal

Expected: 78.5 PCK at 0.1, the flow alone (pf_pascal_ncnet)
Expected: 80.1 PCK at 0.1, with landmarks, c3_pf_pascal.py:task=both (pf_pascal_ncnet)

The paper does not describe its training with landmarks; configs/c3.py says what task=both does, which also takes
--config.weights.vgg16=VGG16.
"""

from uld_jax.configs import c3, papers


def get_config(arg=None):
    """The config for `arg`, as configs/c3.py takes it."""
    return papers.config_of(c3, arg, dataset="pf_pascal", task="alignment").lock()

"""CGB on shoes, UT-Zappos50K (Awan et al., table 4), and the in-house baseline of the paper.

    uld prepare --dataset=shoes --src=ZAPPOS --data_dir=DATA
    uld train --config=configs/papers/cgb_shoes.py --config.data_dir=DATA --config.weights.fan=FAN \
        --config.weights.vgg16=VGG16 --workdir=runs/cgb_shoes
    uld evaluate --workdir=runs/cgb_shoes --config.eval.stability_images=0

Expected: 2.19 px, stability with K = 10 (shoes+turned_15_px_128)
Expected: 2.83 px for the baseline, --config.cgb.bottleneck=fixed (shoes+turned_15_px_128)

Shoes have no annotated points, and so no errors. The paper does not tell its turns: these are random, in pixels of a
view of 128.

Rate and decay are defaults of the published script, whose code shows whole photos, without their aspect. Its split is
of an unsorted list, ours of the sorted one.
"""

from uld_jax.configs import cgb, papers


def get_config(arg=None):
    """The config for `arg`, as configs/cgb.py takes it."""
    config = papers.config_of(cgb, arg, dataset="shoes")
    papers.published_rates(config, 1e-5, epochs=30, decay=0.1)
    return config.lock()

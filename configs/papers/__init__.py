"""One config for each data set on which a paper reports its method: its data, its view of them and its own settings.

The docstring of each says which table it repeats, the number to expect with the id of its protocol, and the commands:
`uld prepare` for each data set, then one training and one measurement. DATA is the folder of all prepared data sets;
FAN, VGG16 and other capitals are folders of converted weights (docs/weights.md). Arguments after the colon are those of
the method's config. `preset=small` and `tiny` keep their own sizes: settings of a paper are for the preset `paper`.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from uld_jax.config import update


class Shown(NamedTuple):
    """What the networks see of the images of a data set.

    Attributes:
      fit: `data.fit`.
      side: `data.frame_size` of the preset `paper` in pixels; 0 for the method's own.
      zoom: central fraction of the frame; 0 for the method's own.
    """

    fit: str
    side: int = 0
    zoom: float = 0.0


# A data set that is stored in the crop of a paper is shown whole, pixel by pixel: the method's own config would fit it
# into a larger frame and show the middle of that. CGB cuts each training view out of the turned photo; here a turned
# view repeats the border of the stored crop.
_AROUND_POINTS = ("celeba_cgb", "mafl_cgb", "mafl_saic", "aflw_r_cgb", "aflw_r_saic", "ls3d_cgb", "cats_cgb")
SHOWN = {name: Shown("stretch", 128, 1.0) for name in ("celeba_imm", "mafl_imm", "aflw_r_imm")}
SHOWN |= {name: Shown("stretch", 128, 1.0) for name in _AROUND_POINTS}
SHOWN |= {
    "shoes": Shown("stretch", 128, 1.0),  # whole photos without their aspect (CGB, published code)
    "ls3d_mallis": Shown("stretch", 256, 1.0),
    # The published code of Mallis et al. enlarges the crops of 450 pixels by 1.4 around their middle.
    "human36m": Shown("stretch", 450, 1 / 1.4),
    # LEAD leaves the crop open; that of ContrastLandmarks is as wide as the photo too, and 10 pixels lower.
    "celeba": Shown("crop"),
    "lsun_car": Shown("stretch", 128, 1.0),  # squares already
    "lsun_bedroom": Shown("stretch", 128, 1.0),
    # Mallis et al. crop CelebA to boxes of faces, and publish these as a pickle, which is not read; the middle of an
    # aligned photo stands in for the crop (ours).
    "celeba_mallis": Shown("crop", 0, 1.0),
    "mafl": Shown("crop", 0, 1.0),
    "aflw_r": Shown("stretch", 0, 1.0),  # cut to the face; Mallis et al. take their crops without their aspect
    # Faces are thought to fill about half of the pictures, and the crop of Mallis et al. is a little more than the face
    # (ours; no picture was at hand to measure it).
    "ls3d": Shown("stretch", 450, 0.6),
    "cats": Shown("pad", 0, 1.0),
    "bbc_pose": Shown("pad", 0, 1.0),
}


def config_of(method, arg: str | None, **usual) -> ConfigDict:
    """Return the config of a method, unlocked, with the paper's view of its data set.

    Args:
      method: module of the method's config.
      arg: arguments after the colon, see `common.parse`.
      **usual: the paper's arguments, which `arg` may replace.
    """
    given = [*(f"{key}={value}" for key, value in usual.items()), arg]
    config = method.get_config(",".join(filter(None, given))).unlock()
    if shown := SHOWN.get(config.dataset):
        config.data.fit = shown.fit
        if shown.side and config.preset == "paper":
            config.data.frame_size = shown.side
        for name in config.stages:
            if shown.zoom and "view" in config[name]:
                config[name].view.zoom = shown.zoom
    return config


def in_paper(config: ConfigDict, **stages) -> None:
    """Set keys of stages, {stage: {key: value}}, in the preset `paper` alone."""
    if config.preset == "paper":
        for name, values in stages.items():
            update(config[name], **values)


EPOCH = 2500  # steps (CGB, published code)


def published_rates(config: ConfigDict, rate: float, epochs: int, decay: float) -> None:
    """Set the learning rate of both networks of CGB, and its decay after so many epochs (`training_script.sh`)."""
    # The stage `cgb` shares these keys.
    in_paper(config, warmup=dict(detector_rate=rate, generator_rate=rate, decay_every=epochs * EPOCH, decay=decay))

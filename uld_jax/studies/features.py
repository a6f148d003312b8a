"""Maps of a stage's frozen backbone, computed once for many runs with the same backbone: `uld features`.

A stage with a hyper-parameter `cache` reads the maps for its passes over the training images from the resulting folder.
Prediction, and hence evaluation, always computes features, because its images may come from anywhere.

For a backbone in two steps (`backbones.TwoStep`), the folder may instead hold the latents between the steps. Latents
are small and valid for all settings of the second step; passes then compute only that step.
"""

from collections.abc import Callable

from uld_jax import config as config_lib
from uld_jax.config import Config
from uld_jax.data.feature_cache import Description, write
from uld_jax.data.open import eval_batch, open_split
from uld_jax.engine import cache
from uld_jax.errors import UserError


def main(
    config: Config,
    out: str,
    mesh,
    *,
    stage: str = "",
    split: str = "train",
    what: str = "maps",
    dtype: str = "float16",
    batch_size: int = 0,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Description, str]:
    """Write the maps of one split's images to the folder `out`, or the maps that are missing there.

    Args:
      config: config of the runs.
      out: a local folder, see `data.feature_cache.write`.
      mesh: the devices.
      stage: name of the stage whose backbone is used; by default the first stage that has one.
      split: name of the split whose images are used.
      what: `maps`, or the `latents` of a backbone in two steps.
      dtype: type of the maps on disk.
      batch_size: number of images at a time, over all devices together; 0 for the config's `eval.batch_size`.
      report: function called with the numbers of images done and to be done.

    Returns:
      `Description` of the folder, and the name of the stage.

    Raises:
      UserError: no such stage, no backbone, no latents, or any error in data, weights or folder.
    """
    names = [stage] if stage else list(config.stages)
    built = [config_lib.stage(config, name) for name in names]
    config_lib.check_weights_are_read([(config, [config_lib.stage(config, name) for name in config.stages])])
    looking = [one for one in built if cache.looks_through_one(one)]
    if not looking:
        which = f"the stage {stage} does not look" if stage else f"none of the stages {', '.join(names)} looks"
        raise UserError(f"{which} through a frozen backbone; name one that does by --stage, or give another config")
    backbone = cache.whole_or_latents(cache.of_stage(looking[0]), what, "--what asks for")
    frozen = backbone.load()
    source = open_split(config, split)
    batch_size = batch_size or eval_batch(config, mesh)
    return write(source, backbone, frozen, out, mesh, batch_size, dtype, report=report), looking[0].name

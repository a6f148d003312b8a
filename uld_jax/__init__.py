"""uld_jax: unsupervised landmark discovery in JAX.

    import uld_jax
    detector = uld_jax.load("runs/mine")
    found = detector.predict(images)          # [N,H,W,3] uint8, or a list of images of any sizes

Heavy imports happen at the first use of a name, so that `import uld_jax` is quick. It configures nothing but a flag of
the compiler, see `compiler.py`; import it before the first computation.
"""

from uld_jax.compiler import set_flags
from uld_jax.version import __version__

__all__ = ["__version__", "load", "train"]

set_flags()


def load(workdir, *, mesh=None):
    """Load the detector of a finished run, `WORKDIR[:stage]`. Raises `UserError` if there is none."""
    from uld_jax.detector import Detector

    return Detector.load(workdir, mesh=mesh)


def train(config, workdir, *, mesh=None):
    """Train a config (an ml_collections.ConfigDict, or `FILE_OR_NAME:arguments`) and return its detector."""
    from uld_jax import config as config_lib
    from uld_jax.engine import loop

    config = config_lib.load(config) if isinstance(config, str) else config
    loop.run(config, workdir, mesh=mesh)
    return load(workdir, mesh=mesh)

"""The toy method's config."""

from uld_jax.configs import common


def get_config(arg=None):
    """Any preset is `tiny`."""
    arg = common.parse(arg)
    config = common.base(arg)
    common.tiny(config)
    config.stages = ("colours",)
    config.colours = common.stage("tests.toy.method.Colours", steps=40)
    return config.lock()

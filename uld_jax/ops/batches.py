"""Apply a function of one image to a batch of them, in the order that suits the device."""

import jax

from uld_jax import devices


def each(function, *batches):
    """Apply `function` of one image's arrays to batches of them: pytrees of [B,...], to a pytree of [B,...].

    It is `jax.vmap(function)`. A CPU takes one image after the other, where one stays in the cache: XLA fuses the batch
    into what reads it, and would draw the noise of an image again for each layer that uses the image. On several
    devices, as tests make them of one CPU, the batch is split and stays `vmap`'s.

    >>> import jax.numpy as jnp
    >>> each(lambda a, b: a.sum() * b, jnp.ones((2, 3)), jnp.array([1.0, 2.0])).tolist()
    [3.0, 6.0]
    """
    whole = jax.vmap(function)
    if devices.count() > 1:
        return whole(*batches)
    in_turn = lambda *batches: jax.lax.map(lambda one: function(*one), batches)
    return jax.lax.platform_dependent(*batches, cpu=in_turn, default=whole)

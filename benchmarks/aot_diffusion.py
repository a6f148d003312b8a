"""Pieces of D-ULD's step on Stable Diffusion 1.5, compiled for devices that are absent: the compiler's estimate.

python -m benchmarks.aot_diffusion --topology=v5e:2x2 --only="autoencoder, block"     a TPU slice; needs libtpu
python -m benchmarks.aot_diffusion --topology=h100:1                                  needs JAX's CUDA plugin

Nothing is computed: weights, views and maps are shapes, the batch is split over all devices. Cycles are counted as in
`benchmarks/aot_clusters.py`; the kernels of attention note none. The whole networks take half an hour on two cores.
"""

import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import absent, aot_clusters
from uld_jax import sharding
from uld_jax.models import duld_net
from uld_jax.models.stable_diffusion import unet, vae

WIDTHS, PROMPT = (320, 640, 1280, 1280), (77, 768)  # of Stable Diffusion 1.5
HALF = dict(dtype=jnp.bfloat16, precision="default")


def pieces(mesh, batch: int) -> dict:
    """Name each piece, with its function and its arguments as shapes on the mesh, for `batch` views of 512 pixels."""
    split, whole = sharding.split(mesh), sharding.replicated(mesh)

    def shape(*sizes, dtype=jnp.bfloat16, on=split):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=on)

    def module(network, *given, take=lambda found: found):
        """A network's application, with shapes of its parameters."""
        plain = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given]
        params = jax.eval_shape(network.init, jax.random.key(0), *plain)
        params = jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype, on=whole), params)
        return lambda params, *given: take(network.apply(params, *given)), (params, *given)

    def heads(taps):
        """The gradient of the trained heads on these taps."""
        net = duld_net.DuldNet(grid=64, projection=384, width=256, depth=1, descriptor_size=256)
        maps = {f"up{b}.{i}": shape(batch, 8 << b, 8 << b, WIDTHS[3 - b], dtype=jnp.float32) for b, i in taps}
        names, one = ("aggregator", "detector", "descriptor"), {k: (1, *x.shape[1:]) for k, x in maps.items()}
        one = {k: jax.ShapeDtypeStruct(sizes, jnp.float32) for k, sizes in one.items()}
        params = jax.eval_shape(lambda m: net.initialize(jax.random.key(0), names, m), one)
        params = jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype, on=whole), params)

        def loss(params, maps):
            psi = net.psi(params, maps)
            return jnp.mean(psi.logits**2) + jnp.mean(psi.descriptors**2)

        return jax.grad(loss), (params, maps)

    prompt, images = shape(*PROMPT, dtype=jnp.float32, on=whole), shape(batch, 512, 512, 3, dtype=jnp.float32)
    latents, step = shape(batch, 64, 64, 4, dtype=jnp.float32), shape(dtype=jnp.float32, on=whole)
    taps = unet.all_taps()
    block = unet.ResnetBlock(128, 1e-6, **HALF)
    whole_unet = unet.UNet(taps=taps, whole=False, **HALF)
    return {
        "autoencoder, block": module(block, shape(batch, 512, 512, 128), take=lambda found: found.sum),
        "autoencoder": module(vae.Encoder(**HALF), images, take=lambda found: found.mean),
        "UNet, transformer": module(
            unet.Transformer(8, **HALF), shape(batch, 64, 64, 320), shape(1, *PROMPT, dtype=jnp.float32, on=whole)
        ),
        "UNet": module(whole_unet, latents, step, prompt, take=lambda found: found.taps),
        "heads, two taps": heads(((1, 1), (3, 1))),
        "heads": heads(taps),
    }


def benchmark(topology: str, batch: int, only=(), hlo: str = "") -> Iterator[dict]:
    """Iterate over rows of the table, one for each piece, as each is compiled.

    Args:
      topology: of the devices, see `plan/topology.py`.
      batch: views of all devices together; D-ULD's batch of 12 pairs has 24.
      only: names of pieces; all if empty.
      hlo: a folder for the compiled texts, or nothing.
    """
    for one in absent.compile_each(topology, lambda mesh: pieces(mesh, batch), only, hlo):
        yield {
            "piece": one.name,
            "topology": topology,
            "batch": batch,
            "compile s": round(one.seconds, 1),
            "temporaries MiB": one.temporaries,
            "estimate ms": one.milliseconds(aot_clusters.counted(one.text)["cycles"]),
        }


def main(argv=None) -> int:
    """Run the command line."""
    parser = absent.parser(__doc__, "v5e:2x2", "pieces")
    parser.add_argument("--batch", type=int, default=24, help="views of 512 x 512 pixels of all devices together")
    args = parser.parse_args(argv)
    return absent.run(lambda only: benchmark(args.topology, args.batch, only, args.hlo), args)


if __name__ == "__main__":
    sys.exit(main())

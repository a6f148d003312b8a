"""Timings of a round of pseudo-supervision, compared with the training between two rounds.

python -m benchmarks.round                                     CGB, preset small, the clustering of the paper
python -m benchmarks.round --preset=paper --calls=3 --config.cgb.clustering=kmeans
python -m benchmarks.round --name=self_training --images=3000  stage 1: a pass over the images, and its clustering

The ring holds as many descriptors as training gathers between two rounds (8,000 in the preset `paper`), with distances
like those of landmarks. A round is clustering, its quality and the new centroids; descriptors are gathered during
training, so a round has no other cost. The target is a share under 1 %.

A round of self-training sees every image: `pass s` is detecting and describing, on `--images` images, and `cluster s`
is k-means, the assignment of each image and the new table of labels.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from benchmarks import harness, step
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.data.open import open_data
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState, compile_step


def ring(aux, gathered: int, k: int):
    """Fill the ring of `aux` with `gathered` steps of descriptors about 3 k directions."""
    shape = aux.ring.descriptors.shape
    a, b, c = jax.random.split(jax.random.key(0), 3)
    kind = jax.random.randint(a, shape[:2], 0, 3 * k)
    z = jax.random.normal(b, (3 * k, shape[2]))[kind] + 0.5 * jax.random.normal(c, shape)
    return aux._replace(ring=aux.ring._replace(descriptors=z, count=jnp.int32(gathered)))


def benchmark(preset: str, calls: int, changes=()) -> dict:
    """Measure the seconds of a step and of a round, and the round's share of the training up to the next one."""
    # The cost of a step depends on its losses, so they are those of the usual preset, not of `init=scratch`.
    usual = config_lib.load(f"cgb:dataset=synthetic,preset={preset}").cgb.perceptual
    config = step.load("cgb", preset, [f"--config.cgb.perceptual={usual}", *changes])
    config.data.rows = (config.batch_size, config.batch_size)
    mesh = sharding.make_mesh()
    reader, state = open_data(config, mesh).train_reader, None
    for name in config.stages:
        spec = config_lib.stage(config, name)
        reader = reader.of_batch(spec.batch_size)
        frozen = sharding.put_replicated(mesh, spec.method.frozen())
        state = FirstState(spec.method, reader, mesh, frozen, jax.random.key(0)).state(state)
    method = spec.method
    gathered = min(method.ring_size, -(-method.round_every // method.ring_every))
    state = sharding.put_replicated(mesh, state.replace(aux=ring(state.aux, gathered, config.k)))
    with jax.set_mesh(mesh):
        refresh = jax.jit(method.refresh, out_shardings=sharding.replicated(mesh))
        key = sharding.put_key(mesh, jax.random.key(1))
        a_round = harness.measure(refresh, state, frozen, None, key, calls=calls)
        found = int(refresh(state, frozen, None, key).aux.found)
    advance = compile_step(method, reader, mesh, 1)
    payload = next(reader.payloads(0, seed=0))
    a_step = harness.measure(
        advance, state, frozen, reader.store, payload, sharding.put_key(mesh, jax.random.key(2)),
        calls=calls, donate_first=True,
    )  # fmt: skip
    between = method.round_every * a_step.median
    return {
        "preset": preset,
        "clustering": method.clustering,
        "descriptors": gathered * state.aux.ring.descriptors.shape[1],
        "clusters": found,
        "round s": a_round.median,
        "step s": a_step.median,
        "steps between": method.round_every,
        "share %": 100 * a_round.median / between,
    }


def with_pass(name: str, preset: str, images: int, calls: int, changes=()) -> dict:
    """Measure the first stage with steps and rounds, whose round collects a bank from `images` images."""
    config = step.load(name, preset, changes)
    config.data.rows = (images, config.batch_size)
    mesh = sharding.make_mesh()
    reader, state = open_data(config, mesh).train_reader, None
    for stage in config.stages:
        spec = config_lib.stage(config, stage)
        method, reader = spec.method, reader.of_batch(spec.batch_size)
        frozen = sharding.put_replicated(mesh, method.frozen())
        state = FirstState(method, reader, mesh, frozen, jax.random.key(0)).state(state)
        rounds = Rounds(method, reader, mesh)
        if config[stage].steps:
            break
        state = rounds.run(state, frozen, jax.random.key(1), method.round_at(0))
    advance = compile_step(method, reader, mesh, 1)
    payload, key = next(reader.payloads(0, seed=0)), sharding.put_key(mesh, jax.random.key(2))
    for _ in range(20):  # so that the network detects something
        state, _ = advance(state, frozen, reader.store, payload, key)
    bank = jax.block_until_ready(rounds.collect(state, frozen, key))
    begin = time.perf_counter()
    jax.block_until_ready(rounds.collect(state, frozen, key))
    a_pass = time.perf_counter() - begin
    with jax.set_mesh(mesh):
        refresh = jax.jit(method.refresh, out_shardings=sharding.replicated(mesh))
        cluster = harness.measure(refresh, state, frozen, bank, sharding.put_key(mesh, jax.random.key(3)), calls=calls)
    a_step = harness.measure(advance, state, frozen, reader.store, payload, key, calls=calls, donate_first=True)
    return {
        "name": name,
        "preset": preset,
        "images": images,
        "descriptors": int(bank.values.mask.sum()),
        "pass s": a_pass,
        "cluster s": cluster.median,
        "step s": a_step.median,
        "steps between": method.round_every,
        "share %": 100 * (a_pass + cluster.median) / (method.round_every * a_step.median),
    }


def main(argv=None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cgb", choices=("cgb", "self_training"))
    parser.add_argument("--images", type=int, default=1000, help="of a round of self_training")
    parser.add_argument("--preset", default="small", choices=("paper", "small", "tiny"))
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--json", default="", help="file to write the row to")
    args, changes = parser.parse_known_args(argv)
    if args.name == "cgb":
        row = benchmark(args.preset, args.calls, changes)
    else:
        row = with_pass(args.name, args.preset, args.images, args.calls, changes)
    harness.report([row], args.json)


if __name__ == "__main__":
    main()

"""Memory of a pass over many images, from the compiled programs alone, without computing or reading images.

python -m benchmarks.bank                                         stage 1 of self-training, 162,000 images, one device
python -m benchmarks.bank --config=self_training:variant=extended,preset=paper --images=300000
python -m benchmarks.bank --config=duld:preset=paper --stage=duld --config.duld.descriptor_size=128

A row is a program: `write` puts a batch into the bank, and `refresh` makes labels of the bank. If a stage forms its
clusters from a sample (`Clustering`), `form` does so from a bank of these images, `locate` places all images,
batch after batch, and `settle` makes the labels. `GiB` is the peak memory of a program: arguments, such as the bank
and the label tables of the state, results, and temporaries; `bank GiB` is the bank's part. Images are streamed: a
resident data set needs its memory in addition.
"""

import argparse
import dataclasses

import jax
import numpy as np

from benchmarks import harness
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.engine.rounds import Rounds
from uld_jax.method import Clustering, Start

GIB = 2**30


@dataclasses.dataclass
class Images:
    """A substitute for a reader of many images, with only the shapes of batches."""

    rows: int
    batch_size: int
    frame_size: int
    store: dict = dataclasses.field(default_factory=dict)

    def ordered(self, batch_size=None, rows=None):
        del batch_size, rows
        shape = self.batch_size, self.frame_size, self.frame_size, 3
        image, index = jax.ShapeDtypeStruct(shape, np.uint8), jax.ShapeDtypeStruct(shape[:1], np.int32)
        yield {"image": image, "index": index}

    def passes(self, batch_size=None, rows=None) -> int:
        return -(-(self.rows if rows is None else len(rows)) // (batch_size or self.batch_size))

    def fetch(self, store, payload):
        del store
        return payload


def programs(rounds: Rounds, state, frozen) -> dict[str, tuple]:
    """Jitted programs of a pass, each with the shapes of its arguments, and those of the bank among them."""
    method, reader = rounds._method, rounds._reader
    key, number = jax.random.key(0), jax.ShapeDtypeStruct((), np.int32)
    rows = rounds._sample(state, frozen, key)
    seen = reader.store, next(reader.ordered()), {}
    write = jax.jit(rounds._observe_into, donate_argnums=0)
    bank = table(rounds._observe, (state, frozen, key, *seen), reader.passes(rows=rows))
    found = {"write": (write, (bank, state, frozen, key, *seen, number), bank)}
    if rows is None or not isinstance(method, Clustering):
        return found | {"refresh": (jax.jit(method.refresh), (state, frozen, bank, key), bank)}
    found["form"] = jax.jit(method.form), (state, frozen, bank, key), bank
    clusters = jax.eval_shape(method.form, state, frozen, bank, key)
    given = state, frozen, key, clusters, *seen
    placed = table(rounds._locate, given, reader.passes())
    found["locate"] = jax.jit(rounds._locate_into, donate_argnums=0), (placed, *given, number), placed
    return found | {"settle": (jax.jit(method.settle), (state, clusters, placed), placed)}


def table(observe, given, passes: int):
    """Shapes [B,T,...] of the results of `observe` on T batches."""
    whole = lambda s: jax.ShapeDtypeStruct((s.shape[0], passes, *s.shape[1:]), s.dtype)
    return jax.tree.map(whole, jax.eval_shape(observe, *given))


def first_state(config, names, images: Images):
    """The method of the last of these stages, and the shapes of its frozen weights and first state."""
    state, payload = None, next(images.ordered())
    for name in names:
        method = config_lib.stage(config, name).method
        purpose = "train" if name == names[-1] else "shapes"
        frozen = jax.eval_shape(lambda method=method, purpose=purpose: method.frozen(purpose))

        def init(key, batch, frozen, previous, method=method):
            return method.init(key, batch, frozen, Start(previous, images.rows, shapes_only=True))

        state = jax.eval_shape(init, jax.random.key(0), payload, frozen, state)
    return method, frozen, state


def benchmark(config, stage: str, images: int) -> list[dict]:
    """Make a row for each program of a pass of `stage`."""
    reader = Images(images, config_lib.stage(config, stage).batch_size, config.data.frame_size)
    names = config.stages[: config.stages.index(stage) + 1]
    method, frozen, state = first_state(config, names, reader)
    mesh, rows = sharding.make_mesh(jax.devices()[:1]), []
    for name, (program, given, bank) in programs(Rounds(method, reader, mesh), state, frozen).items():
        found = program.lower(*given).compile().memory_analysis()
        size = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        rows.append(
            {
                "stage": stage,
                "images": images,
                "program": name,
                "bank GiB": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(bank)) / GIB,
                "between GiB": found.temp_size_in_bytes / GIB,
                "GiB": (size - found.alias_size_in_bytes) / GIB,
            }
        )
    return rows


def main(argv=None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="self_training:dataset=folder,preset=paper")
    parser.add_argument("--stage", default="", help="the first one with rounds in training by default")
    parser.add_argument("--images", type=int, default=162_000)
    parser.add_argument("--json", default="", help="file to write the rows to")
    args, changes = parser.parse_known_args(argv)
    config = config_lib.parse_flags(["bank", f"--config={config_lib.resolve(args.config)}", *changes])
    stage = args.stage or next(name for name in config.stages if config[name].steps)
    harness.report(benchmark(config, stage, args.images), args.json)


if __name__ == "__main__":
    main()

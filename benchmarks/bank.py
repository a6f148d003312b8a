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

import jax

from benchmarks import harness
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.data.absent import AbsentStream
from uld_jax.engine.rounds import Rounds
from uld_jax.method import Round, Start

GIB = 2**30


# The place of the bank among the arguments of each program.
BANK = {"write": 0, "refresh": 2, "form": 2, "locate": 0, "settle": 2}


def first_state(config, names, reader: AbsentStream):
    """The method of the last of these stages, and the shapes of its frozen weights and first state."""
    state, payload = None, next(reader.ordered())
    for name in names:
        method = config_lib.stage(config, name).method
        purpose = "train" if name == names[-1] else "shapes"
        frozen = jax.eval_shape(lambda method=method, purpose=purpose: method.frozen(purpose))

        def init(key, batch, frozen, previous, method=method):
            return method.init(key, batch, frozen, Start(previous, reader.rows, shapes_only=True))

        state = jax.eval_shape(init, jax.random.key(0), payload, frozen, state)
    return method, frozen, state


def benchmark(config, stage: str, images: int) -> list[dict]:
    """Make a row for each program of a pass of `stage`."""
    mesh, rows = sharding.make_mesh(jax.devices()[:1]), []
    reader = AbsentStream(images, config.data.frame_size, mesh, config_lib.stage(config, stage).batch_size)
    names = config.stages[: config.stages.index(stage) + 1]
    method, frozen, state = first_state(config, names, reader)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    for name, (program, _) in Rounds(method, reader, mesh).programs(state, frozen, key, Round(passes=1)).items():
        found, bank = program.trace().lower().compile().memory_analysis(), program.arguments[BANK[name]]
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

"""Images a second that the readers deliver, decoding included, beside the images a second that training consumes.

python -m benchmarks.input                                         photos of CelebA's size, and the stages of zeroshot
python -m benchmarks.input --photo=1024x768 --workers=4            larger photos; also with four decoding processes
python -m benchmarks.input --data_dir=my_photos --method=lead      your own photos

Every row reads random batches in the order of training, and waits until each is on the device:

  one thread   decoding into the frame, image by image, without a reader
  stream       `data.reader=stream` from a folder, from the same photos as `uld prepare` writes them, and from crops, as
               official data sets are written (`data/builders`): the middle 80 % of a photo, stretched to 128 x 128
  resident     `data.reader=resident`: the images are in device memory, and a batch is gathered there

`ratio` is the rate of a reader, divided by the rate of the fastest stage of `--method` in its preset `small`.
"""

import argparse
import pathlib
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from benchmarks import harness, step
from uld_jax import data, sharding
from uld_jax.data.builders import official, prepared


def write_photos(folder, count: int, size: tuple[int, int]) -> None:
    """Write JPEG files of a size (height, width) with smooth areas, edges and noise, as photos have."""
    rng = np.random.default_rng(0)
    folder = pathlib.Path(folder)
    for i in range(count):
        coarse = rng.integers(0, 255, (7, 6, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.jpg", quality=90)


def cropped(source, root) -> official.Official:
    """Return the photos of a source as an official data set of crops."""
    middle = lambda size: official.Crop.of((0.1 * size[1], 0.1 * size[0], 0.9 * size[1], 0.9 * size[0]), (128, 128))
    records = [official.Record(file=name, place=name, crop=middle) for name in source.names]
    dataset = official.Dataset("crops", "photos", lambda files, name: {"train": records}, {"train": len(records)})
    return official.Official(dataset, official.Files(root), records, splits=("train",), frame_size=source.frame_size)


def rate(reader, seconds: float) -> float:
    """Images a second of a reader's batches, once the first ones have filled its buffers."""
    fetch = jax.jit(reader.fetch)
    batches = reader.payloads(0, seed=0)
    try:
        for _ in range(3):
            jax.block_until_ready(fetch(reader.store, next(batches)))
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            jax.block_until_ready(fetch(reader.store, next(batches)))
            count += 1
        return count * reader.batch_size / (time.perf_counter() - begin)
    finally:
        batches.close()


def benchmark(root, photos, *, frame_size: int, batch_size: int, workers: int, seconds: float) -> list[dict]:
    """Make a row for every way to read the photos; `root` is a folder to write to."""
    mesh = sharding.make_mesh()
    source = data.open_source("folder", "train", data_dir=photos, frame_size=frame_size)
    prepared.prepare("photos", {"train": source}, root)
    prepared.prepare("crops", {"train": cropped(source, photos)}, root)
    opened = {
        "folder": source,
        **{n: data.open_source(n, "train", data_dir=root, frame_size=frame_size) for n in ("photos", "crops")},
    }
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        source.image(count % len(source))
        count += 1
    rows = [{"reader": "one thread", "files": "folder", "images/s": count / (time.perf_counter() - begin)}]
    for kind, number in (("stream", 0), *([("stream", workers)] if workers else []), ("resident", 0)):
        for files, one in opened.items():
            if kind == "resident" and files != "folder":
                continue  # the same images in the same memory
            reader = data.make_reader(one, mesh, batch_size, kind=kind, workers=number)
            name = f"{kind}, {number} processes" if number else kind
            rows.append({"reader": name, "files": files, "images/s": rate(reader, seconds)})
    return rows


def consumed(method: str, calls: int) -> tuple[str, float]:
    """The fastest stage of a method in its preset `small`, and its images a second."""
    rows = [step.benchmark(n, s, "small", 0, "float32", calls) for n, s in step.stages(method, "small")]
    fastest = max(rows, key=lambda row: row["images/s"])
    return f"{fastest['method']}, {fastest['stage']}", fastest["images/s"]


def main(argv=None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="", help="a folder of photos; by default photos are made up")
    parser.add_argument("--images", type=int, default=1000, help="number of photos to make up")
    parser.add_argument("--photo", default="178x218", help="their size, WIDTHxHEIGHT; that of CelebA by default")
    parser.add_argument("--frame_size", type=int, default=80, help="that of the presets `small` by default")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="also measure this number of decoding processes")
    parser.add_argument("--seconds", type=float, default=5.0, help="time of each measurement")
    parser.add_argument("--method", default="zeroshot", help="config whose stages consume; empty for none")
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--json", default="", help="file to write the rows to")
    args = parser.parse_args(argv)
    width, height = (int(side) for side in args.photo.split("x"))
    sizes = dict(frame_size=args.frame_size, batch_size=args.batch_size)
    with tempfile.TemporaryDirectory() as root:
        photos = args.data_dir
        if not photos:
            photos = pathlib.Path(root) / "made_up"
            photos.mkdir()
            write_photos(photos, args.images, (height, width))
        rows = benchmark(root, photos, workers=args.workers, seconds=args.seconds, **sizes)
    if args.method:
        fastest, eaten = consumed(args.method, args.calls)
        print(f"{fastest} consumes {eaten:.4g} images/s")
        rows = [row | {"ratio": row["images/s"] / eaten} for row in rows]
    harness.report(rows, args.json)


if __name__ == "__main__":
    main()

"""A small PF-Pascal in its folders and lists, and a stage that learns from pairs and carries points nowhere."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw
from uld_jax.configs import common

from tests import tiny
from uld_jax.method import Prediction, Stage, TrainState

FOLDER = "PF-dataset-PASCAL/JPEGImages"
CLASSES = {1: "aeroplane", 8: "cat", 12: "dog"}
EACH = 4  # images of a category
# Pairs of images of a category by their numbers in it. The first of the test is in the training list; the third only in
# the other order.
TRAIN = [(number, a, b) for number in CLASSES for a, b in ((0, 1), (1, 2))]
TEST = [(1, 0, 1), (1, 2, 3), (8, 1, 0), (12, 3, 2)]
HEADER = "source_image,target_image,class"


def name_of(number: int, image: int) -> str:
    return f"{FOLDER}/2008_{number:03d}{image:03d}.jpg"


def size_of(number: int, image: int) -> tuple[int, int]:
    """Height and width of the file, which are never equal."""
    return 40 + 6 * image, 60 - 4 * image + number


def points_of(number: int, image: int) -> np.ndarray:
    """Keypoints [K,2] in pixels of the file from 0; their number is the category's."""
    rng = np.random.default_rng([number, image])
    count = 4 + list(CLASSES).index(number)
    at = np.random.default_rng(number).uniform(0.15, 0.85, (count, 2)) + rng.uniform(-0.15, 0.15, (count, 2))
    return at * size_of(number, image)[::-1]


def cells(points, fill: int = 0) -> list[str]:
    """The columns X and Y of keypoints, counted from 1, with `fill` slots of -1 behind them."""
    return [";".join([*(f"{v + 1:.6f}" for v in points[:, axis]), *["-1"] * fill]) for axis in range(2)]


def with_points(number: int, a: int, b: int, fill: int = 0) -> str:
    found = [*cells(points_of(number, a), fill), *cells(points_of(number, b), fill)]
    return ",".join([name_of(number, a), name_of(number, b), str(number), *found])


def write(folder):
    """Write photos and lists; return the folder."""
    (folder / FOLDER).mkdir(parents=True)
    (folder / "image_pairs").mkdir()
    for number in CLASSES:
        for image in range(EACH):
            height, width = size_of(number, image)
            drawn = Image.new("RGB", (width, height), (20 * number, 90, 200 - 10 * number))
            pen = ImageDraw.Draw(drawn)
            for x, y in points_of(number, image):
                pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 255, 40 * image))
            drawn.save(folder / name_of(number, image), quality=95)
    train = [f"{name_of(n, a)},{name_of(n, b)},{n},{flip}" for flip in (0, 1) for n, a, b in TRAIN]
    val = [f"{name_of(n, 2)},{name_of(n, 3)},{n},0" for n in CLASSES]
    test = [with_points(*row, fill=3 * (row == TEST[0])) for row in TEST]
    for split, more, lines in (("train", ",flip", train), ("val", ",flip", val), ("test", ",XA,YA,XB,YB", test)):
        (folder / f"image_pairs/{split}_pairs.csv").write_text("\n".join([HEADER + more, *lines]))  # no last newline
    return folder


class Kept(NamedTuple):
    """What the steps saw, mixed so that their order matters."""

    seen: jnp.ndarray


@dataclasses.dataclass(frozen=True)
class Pairwise(Stage):
    """A stage whose steps look at row numbers and categories alone."""

    k: int
    frame_size: int
    named: bool = True

    needs_partner = True
    partner_by = ("category", "pairs")

    def step_tables(self):
        return {"categories": ()} if self.named else {}

    def init(self, rng, batch, frozen, start):
        return TrainState(jnp.int32(0), aux=Kept(jnp.zeros(())))

    def train_step(self, state, frozen, batch, rng):
        assert ("categories" in batch) == ("categories2" in batch) == self.named
        mean = lambda x: jnp.mean(x.astype(jnp.float32))
        of = [mean(batch["index"] * (jnp.arange(len(batch["index"])) + 1)), mean(batch["index2"] ** 2)]
        seen = 0.7 * state.aux.seen + of[0] + 0.1 * of[1]
        same = mean(batch["categories"] == batch["categories2"]) if self.named else jnp.float32(0)
        itself = mean(batch["index"] == batch["index2"])
        return state.replace(aux=Kept(seen)), {"loss": seen, "same": same, "itself": itself}

    def predict(self, state, frozen, images):
        place = jnp.arange(self.k) * (self.frame_size / self.k)
        xy = jnp.stack([place, place], -1) + images[:, :1, 0, :2] / 64
        return Prediction(xy.astype(jnp.float32), jnp.ones(xy.shape[:2], jnp.float32))

    def carry(self, state, frozen, images_a, images_b, points_b):
        return points_b


def config(folder, steps: int = 4, **overrides):
    """A run of that stage on a folder that `write` made."""
    found = tiny.config("toy", dataset="pf_pascal", data_dir=str(folder))
    with found.unlocked():
        found.stages = ("pairwise",)
        found.pairwise = common.stage("tests.pascal.Pairwise", steps=steps)
        found.batch_size, found.log_every, found.eval_every, found.save_every = 4, 1, 0, 0
        found.data.partner, found.data.partner_by = True, "pairs"
        for key, value in overrides.items():
            *path, last = key.split("__")
            part = found
            for one in path:
                part = part[one]
            part[last] = value
    return found

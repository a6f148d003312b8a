"""The data set: rows from a seed, rendered once; and its export as a folder of files."""

import functools
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from uld_jax import files
from uld_jax.data import objects
from uld_jax.data.specs import DatasetSpec, Source, fingerprint_of
from uld_jax.data.synthetic.head import LANDMARKS, MIRROR, make_world
from uld_jax.data.synthetic.renderer import annotation, head_mask, picture
from uld_jax.data.synthetic.scene import POSE, sample_scene
from uld_jax.errors import UserError

SPLITS = {"train": 2000, "test": 500}  # rows by default
VERSION = 1  # part of the fingerprint: raise it whenever the same seed would give other pictures
SPEC = DatasetSpec("synthetic", len(LANDMARKS), "box", mirror=MIRROR, landmark_names=LANDMARKS, splits=tuple(SPLITS))


def row_keys(seed: int, split: str, rows):
    """Make random keys [B] of the examples `rows` [B], each a function of seed, split and its own row number alone."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), list(SPLITS).index(split))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


@jax.jit
def _prepare(keys, pose, size):
    """Compute scene, world, landmarks, visible and angles of each scene, each with a leading axis [B]."""

    def one(key):
        scene = sample_scene(key, **pose)
        world = make_world(scene)
        return scene, world, *annotation(scene, world, size), jnp.stack([scene.yaw, scene.pitch, scene.roll])

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnames="size")
def _pictures(scenes, worlds, *, size):
    """Render images [B, size, size, 3] uint8."""
    return jax.vmap(lambda scene, world: picture(scene, world, size))(scenes, worlds)


@functools.partial(jax.jit, static_argnames="size")
def _masks(scenes, worlds, *, size):
    """Render the masks of the heads, [B, size, size] bool."""
    return jax.vmap(lambda scene, world: head_mask(scene, world, size))(scenes, worlds)


@functools.lru_cache(maxsize=8)
def _programs(chunk: int, size: int):
    """Compile `_prepare` and `_pictures` for `chunk` scenes, as two programs so that two cores compile in parallel."""
    keys = row_keys(0, "train", np.zeros(chunk, np.uint32))
    first = _prepare.lower(keys, {name: np.float32(0) for name in POSE}, np.float32(size))
    scenes, worlds, *_ = first.out_info
    # the first has a thousand small operations and takes a thousandth of the run time, so optimising it does not pay
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    with ThreadPoolExecutor(1) as pool:
        draw = pool.submit(_pictures.lower(scenes, worlds, size=size).compile)
        return first.compile(compiler_options=quick), draw.result()


class Synthetic(Source):
    """One split of the built-in data set; see `specs.Source`.

    Pictures are rendered once, at the first use of an image, landmark or column, and kept in memory. Row i depends on
    seed, split and i alone, so a larger number of rows leaves the first rows unchanged. `columns` has yaw, pitch and
    roll in degrees. `mask` is the visible region of the head, with its hair and without neck and clothes; masks are
    rendered at the first use of a mask.

    Args:
      split: `train` or `test`.
      rows: number of images; by default 2,000 for train and 500 for test.
      seed: random seed of the heads.
      frame_size: F, side of the images in pixels.
      **pose: `yaw`, `pitch`, `roll`, `shift`, `size` of `sample_scene`.

    Raises:
      UserError: an unknown split or option, or sizes that are not positive.

    >>> source = Synthetic("test", rows=2, frame_size=16)
    >>> len(source), source.names[1], source.image(0).shape, source.spec.protocol
    (2, 'test/000001.png', (16, 16, 3), 'synthetic_20_box')
    """

    def __init__(self, split: str = "train", rows: int | None = None, seed: int = 0, frame_size: int = 80, **pose):
        if split not in SPLITS:
            raise UserError(f"the data set synthetic has no split {split!r}; use one of {', '.join(SPLITS)}")
        rows = SPLITS[split] if rows is None else int(rows)
        for name, value in (("data.rows", rows), ("data.frame_size", frame_size)):
            if value < 1:
                raise UserError(f"{name} is {value}; use a number above 0")
        unknown = sorted(set(pose) - set(POSE))
        if unknown:
            raise UserError(
                f"the data set synthetic has no option {unknown[0]!r}; its options are rows, seed, {', '.join(POSE)}"
            )
        self.spec, self.split, self.seed, self.frame_size = SPEC, split, seed, frame_size
        self.names = [f"{split}/{row:06d}.png" for row in range(rows)]
        self.frame_maps = np.tile(np.array([1.0, 1.0, 0.0, 0.0]), (rows, 1))
        self.file_sizes = np.full((rows, 2), frame_size, np.int32)
        self._pose = {name: float(pose.get(name, default)) for name, default in POSE.items()}
        self.fingerprint = fingerprint_of("synthetic", VERSION, split, rows, seed, frame_size, self._pose)
        self._rendered, self._masks, self._lock = None, None, threading.Lock()

    def _all(self):
        """Return images [N,F,F,3] uint8, landmarks [N,20,2] float32, visible [N,20] bool, angles [N,3] float32."""
        with self._lock:
            if self._rendered is None:
                self._rendered = self._render()
            return self._rendered

    def _prepared(self):
        """Return the results of `_prepare` for all rows, in chunks, and the program that draws them."""
        # Chunks have one size, so that there is one program: small to fit a CPU's cache, large for accelerators.
        chunk = 16 if jax.default_backend() == "cpu" else 64
        keys = row_keys(self.seed, self.split, np.arange(-(-len(self) // chunk) * chunk, dtype=np.uint32))
        pose, size = {name: np.float32(value) for name, value in self._pose.items()}, np.float32(self.frame_size)
        prepare, draw = _programs(chunk, self.frame_size)
        return [prepare(k, pose, size) for k in keys.reshape(-1, chunk)], draw

    def _each(self, prepared, draw):
        """Draw scenes and worlds by a program, [N,...]."""
        # Two chunks at a time, because a single chunk does not keep several cores busy.
        with ThreadPoolExecutor(2) as pool:
            return np.concatenate(list(pool.map(lambda p: np.asarray(draw(*p[:2])), prepared)))[: len(self)]

    def _render(self):
        prepared, draw = self._prepared()
        landmarks, visible, angles = (
            np.concatenate(a)[: len(self)] for a in zip(*(p[2:] for p in prepared), strict=True)
        )
        return self._each(prepared, draw), landmarks, visible, angles

    def mask(self, row: int) -> np.ndarray:
        with self._lock:
            if self._masks is None:
                self._masks = self._each(self._prepared()[0], functools.partial(_masks, size=self.frame_size))
        return self._masks[row]

    def image(self, row: int) -> np.ndarray:
        return self._all()[0][row]

    def images(self, rows: Iterable[int] | None = None, out: np.ndarray | None = None) -> np.ndarray:
        rows = np.asarray(range(len(self)) if rows is None else list(rows), np.int64)
        if out is None:
            return self._all()[0][rows]
        out[...] = self._all()[0][rows]
        return out

    @property
    def landmarks(self) -> np.ndarray:
        return self._all()[1]

    @property
    def visible(self) -> np.ndarray:
        return self._all()[2]

    @property
    def columns(self) -> dict[str, list[str]]:
        angles = self._all()[3]
        return {name: [f"{a:.3f}" for a in angles[:, i]] for i, name in enumerate(("yaw", "pitch", "roll"))}

    def __getstate__(self):
        # a worker process gets the pictures, so that it need not start JAX
        self._all()
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())


def export(data_dir, *, rows: dict[str, int] | None = None, seed: int = 0, frame_size: int = 80, **pose) -> None:
    """Write the data set as a folder that `dataset=folder` reads: PNG files, train.csv and test.csv.

    The csv columns are file, yaw, pitch, roll (degrees), x0, y0, ..., x19, y19 (pixels), visible0, ..., visible19
    (0 or 1; hidden points have coordinates too) and the head's box, box_x0, box_y0, box_x1, box_y1.

    Args:
      data_dir: folder to write, local or gs://; it is made if missing.
      rows: number of images of each split, `{"train": 2000, "test": 500}` by default; a split left out is not written.
      seed, frame_size, **pose: as in `Synthetic`.
    """
    root = epath.Path(data_dir)
    count = len(LANDMARKS)
    header = ["file", "yaw", "pitch", "roll", *(f"{axis}{i}" for i in range(count) for axis in "xy")]
    header += [f"visible{i}" for i in range(count)] + list(objects.BOX)
    for split, number in (SPLITS if rows is None else rows).items():
        source = Synthetic(split, number, seed, frame_size, **pose)
        (root / split).mkdir(parents=True, exist_ok=True)
        for row, name in enumerate(source.names):
            files.write(root / name, source.encoded(row))
        angles = zip(*source.columns.values(), strict=True)
        every = zip(source.names, angles, source.landmarks, source.visible, objects.boxes(source), strict=True)
        table = (
            [name, *turn, *(f"{v:.3f}" for v in xy.ravel()), *seen.astype(int), *map(float, box)]
            for name, turn, xy, seen, box in every
        )
        files.write(root / f"{split}.csv", files.csv_text([header, *table]))  # last, when the split is complete

import dataclasses
import functools
import json
import pickle
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax import sharding
from uld_jax.data import feature_cache
from uld_jax.data.feature_cache import FeatureCache
from uld_jax.data.specs import Source, fingerprint_of
from uld_jax.errors import UserError

ROWS, SHARD = 21, 3  # images, and images in a shard


class Noise(Source):
    """A source without files, whose every image is another."""

    def __init__(self, rows=ROWS, seed=0):
        self.names, self.frame_size, self.seed = [f"{i}.png" for i in range(rows)], 8, seed
        self.fingerprint = fingerprint_of(rows, seed)

    def image(self, row):
        return np.random.default_rng([self.seed, row]).integers(0, 256, (8, 8, 3)).astype(np.uint8)


class Spec(NamedTuple):
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Two maps of different shapes."""

    power: int = 1

    @property
    def spec(self):
        return Spec(f"stub {self.power}")

    def features(self, frozen, images, rng=None):
        fine = (images.astype(jnp.float32) / 255) ** self.power @ frozen["mix"]
        # A map may be of no use where there is nothing to see, as in the padding of the last batch.
        seen = jnp.where(jnp.any(images > 0, (1, 2, 3)), 1, jnp.nan)[:, None, None, None]
        return {"fine": fine * seen, "coarse": fine[:, ::4, ::2, :2] - 1}


class Huge(Backbone):
    """One of its maps is beyond half precision."""

    def features(self, frozen, images, rng=None):
        maps = super().features(frozen, images)
        return {"fine": maps["fine"], "coarse": maps["coarse"] * 1e6}


FROZEN = {"mix": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)}
IMAGE_BYTES = (8 * 8 * 5 + 2 * 4 * 2) * 2  # in half precision


def write(folder, source=None, backbone=Backbone(), frozen=FROZEN, batch_size=8, mesh=None, **options):
    """Calls of `report` beside what was written."""
    calls = []
    options = {"report": lambda *call: calls.append(call), "shard_bytes": SHARD * IMAGE_BYTES + 1} | options
    source = Noise() if source is None else source
    mesh = sharding.make_mesh(jax.devices()[:1]) if mesh is None else mesh
    return feature_cache.write(source, backbone, frozen, folder, mesh, batch_size, **options), calls


def expected(rows, dtype="float16"):
    maps = Backbone().features(FROZEN, jnp.asarray(Noise().images(rows)))
    return {name: np.asarray(m).astype(feature_cache.DTYPES[dtype]) for name, m in maps.items()}


def equal(found, rows, dtype="float16"):
    for name, right in expected(rows, dtype).items():
        assert found[name].dtype == right.dtype
        # A batch of another size may round its products otherwise.
        np.testing.assert_allclose(
            np.float32(found[name]), np.float32(right), atol=2e-3 if dtype != "bfloat16" else 0.02
        )


def shards(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "cache.json")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    write(folder)
    return folder


def test_maps_come_back_by_row(written):
    description, calls = write(written)
    assert calls == []  # nothing was missing
    assert description.taps == (("coarse", (2, 4, 2)), ("fine", (8, 8, 5)))
    assert description.image_bytes == IMAGE_BYTES
    assert shards(written) == [f"features-{i:05d}-of-00007.array_record" for i in range(7)]
    cache = FeatureCache(written)
    assert len(cache) == ROWS
    assert cache.description == description
    for rows in (range(ROWS), [20, 3, 3, 0, 11], np.array([7], np.int32)):
        equal(cache.read(rows), rows)
    assert cache.read([])["coarse"].shape == (0, 2, 4, 2)
    one, two = (FeatureCache(written).read([row])["fine"] for row in (0, 1))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).read([1])["fine"], two)
    cache.check(Noise(), Backbone(), FROZEN)
    for row in (-1, ROWS):
        with pytest.raises(UserError, match=rf"has no row {row}; its rows are 0 to 20"):
            cache.read([0, row])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_types(tmp_path, dtype):
    write(tmp_path, dtype=dtype)
    equal(FeatureCache(tmp_path).read([4, 1]), [4, 1], dtype)


def killed(folder, batch_size=8, after=9):
    """Run in a process of its own, which kills itself after so many images."""

    def report(done, of):
        if done >= after:
            signal.raise_signal(signal.SIGKILL)

    assert len(jax.devices()) == 8
    write(folder, mesh=sharding.make_mesh(), batch_size=batch_size, report=report)


def test_a_killed_writer_goes_on_with_the_next_shard(tmp_path):
    program = (
        f"import pathlib; from tests.data import feature_cache_test as t; t.killed(pathlib.Path({str(tmp_path)!r}))"
    )
    done = tiny.run("-c", program, devices=8, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = [f"features-{i:05d}-of-00007.array_record" for i in range(7)]
    assert shards(tmp_path) == [*names[:5], f"{names[5]}.part"]  # after 16 images, of which the last is in shard 5
    with pytest.raises(UserError, match="has 5 of 7 shards; run the same `uld features` again"):
        FeatureCache(tmp_path)
    # A shard that lost its end is written again too, and a whole one is left alone.
    damaged = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes(damaged[: len(damaged) // 2])
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in names[:5]}
    _, calls = write(tmp_path, batch_size=4)
    assert calls == [(4, 9), (8, 9), (9, 9)]
    kept = [name for name in times if (tmp_path / name).stat().st_mtime_ns == times[name]]
    assert kept == [names[0], *names[2:5]]
    assert shards(tmp_path) == names
    equal(FeatureCache(tmp_path).read(range(ROWS)), range(ROWS))


def test_an_error_leaves_whole_shards_alone(tmp_path):
    def stop(done, of):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, batch_size=4, report=stop)
    assert len(shards(tmp_path)) == 2
    _, calls = write(tmp_path, batch_size=4, shard_bytes=10**9)  # the shards that are there say how large they are
    assert calls[-1] == (15, 15)
    assert len(shards(tmp_path)) == 7


def test_other_maps_are_refused(written, tmp_path):
    scaled = {"mix": FROZEN["mix"] * 2}
    refuse = functools.partial(pytest.raises, UserError)
    for what, args in {
        "of another backbone or other settings": (Noise(), Backbone(power=2), FROZEN),
        "of other weights": (Noise(), Backbone(), scaled),
        "of other images": (Noise(seed=1), Backbone(), FROZEN),
    }.items():
        with refuse(match=rf"holds features {what} \(.*, not .*\); give another folder, or delete that one") as error:
            write(written, *args)
        assert "\n" not in str(error.value)
        with refuse(match=rf"holds features {what} .*; make a new one by `uld features`"):
            FeatureCache(written).check(*args)
    with refuse(match=r"of another type \(float16, not float32\)"):
        write(written, dtype="float32")
    with refuse(match="the type of the features is 'int8'; use one of float16, bfloat16, float32"):
        write(tmp_path / "new", dtype="int8")
    with refuse(match=r"^0\.png: the map coarse is not finite as float16; use a wider type"):
        write(tmp_path / "big", backbone=Huge())
    assert shards(tmp_path / "big") == []
    with refuse(match="batch_size 9 does not divide over 8 devices"):
        write(tmp_path / "new", batch_size=9, mesh=type("Mesh", (), {"size": 8})())
    with refuse(match="in a bucket"):
        write("gs://bucket/features")
    (tmp_path / "photo.jpg").touch()
    with refuse(match="holds something else than features"):
        write(tmp_path)
    for folder in (tmp_path, tmp_path / "absent"):
        with refuse(match="is no folder of features; make it by `uld features"):
            FeatureCache(folder)
    assert not (tmp_path / "absent").exists()
    assert not (tmp_path / "new").exists()


def test_the_description_is_whole_or_not_there(tmp_path, written):
    (tmp_path / "cache.json.part").write_text("{")
    _, calls = write(tmp_path)
    assert calls[-1] == (ROWS, ROWS)
    assert json.loads((tmp_path / "cache.json").read_text()) == json.loads((written / "cache.json").read_text())

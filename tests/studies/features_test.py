"""Features on disk, made by a command and read by runs."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax import convert, sharding
from uld_jax.backbones.gradient import GradientHistograms
from uld_jax.backbones.stable_diffusion import StableDiffusion
from uld_jax.data.feature_cache import FeatureCache
from uld_jax.data.open import open_data, open_split
from uld_jax.engine import cache as cache_lib
from uld_jax.engine import loop, runs
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState
from uld_jax.errors import UserError
from uld_jax.studies import features

SPEC = f"--config={tiny.ROOT}/configs/zeroshot.py:dataset=synthetic,k=4,preset=tiny"
ALONE = {"stages": ("zeroshot",)}


def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "gradient"
    assert features.main(tiny.config(), str(folder), mesh(), dtype="float32")[1] == "zeroshot"
    return folder


def zeroshot(workdir, **overrides):
    return loop.run(tiny.config(**ALONE, **overrides), workdir, mesh=mesh())


def test_a_run_reads_its_passes_from_the_cache(written, tmp_path, monkeypatch):
    read, rows = FeatureCache.read, []
    monkeypatch.setattr(FeatureCache, "read", lambda self, some: rows.extend(some) or read(self, some))
    found = zeroshot(tmp_path / "run", **{"zeroshot.cache": str(written)})
    assert [int(row) for row in rows] == [*range(48)] * 2  # cluster, then place
    labels = found.model.state.aux.labels.xy
    # Landmarks are the same where features are computed, which needs no cache.
    monkeypatch.delattr(FeatureCache, "__init__")
    finished = runs.load(str(tmp_path / "run"))
    images = open_split(tiny.config(), "train").images(range(4))
    np.testing.assert_allclose(finished.model.method.predict(found.model.state, {}, images).xy, labels[:4], atol=0.01)
    monkeypatch.undo()
    # The folder may move, but not go, between a run and its resumption.
    (tmp_path / "moved").symlink_to(written)
    again = zeroshot(tmp_path / "run", **{"zeroshot.cache": str(tmp_path / "moved")})
    np.testing.assert_array_equal(again.model.state.aux.labels.xy, labels)
    with pytest.raises(UserError, match=r"holds a run with zeroshot\.cache="):
        zeroshot(tmp_path / "run")


def test_maps_are_described_in_any_order():
    """A dict that comes into a program is sorted, one that is made there is not."""
    method = config_lib.stage(tiny.config(), "zeroshot").method
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3)).astype(np.uint8)
    maps = GradientHistograms().features({}, images)
    expected = method._describe({}, images)
    for given in (maps, dict(reversed(maps.items()))):
        np.testing.assert_allclose(method._describe({}, None, given), expected, atol=1e-6)
    half = {name: m.astype(np.float16) for name, m in maps.items()}
    found = method._describe({}, None, half)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_command(uld, tmp_path):
    out = tmp_path / "features"
    code, said, err = uld("features", SPEC, f"--out={out}", "--split=test", "--batch_size=6")
    assert code == 0, err
    assert said.splitlines() == [
        "scale0  16 x 20 x 20 x 128",
        "scale1  16 x 20 x 20 x 128",
        f"written to {out}, 3.3 MB; use it with --config.zeroshot.cache={out}",
    ]
    assert err.splitlines()[-3:] == ["features 6/16", "features 12/16", "features 16/16"]
    config = tiny.config()
    source = open_split(config, "test")
    cache = FeatureCache(out)
    cache.check(source, GradientHistograms(), {})
    right = GradientHistograms().features({}, source.images([3, 9]))
    for name, maps in cache.read([3, 9]).items():
        np.testing.assert_allclose(np.float32(maps), right[name], atol=1e-3)
    code, _, err = uld("features", SPEC, f"--out={out}")
    assert code == 1
    assert "holds features of other images" in err


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """A function that makes configs which look through a tiny Stable Diffusion."""
    from tests.models.stable_diffusion import reference  # skips where PyTorch or diffusers is missing

    folder = tmp_path_factory.mktemp("sd")
    convert.convert("stable_diffusion", str(reference.write(folder / "published")), str(folder / "converted"))

    def make(name, stage, **changes):
        kwargs = {"taps": ((1, 1), (2, 0)), "image_size": 48} | changes
        kwargs = {f"{stage}.{key if key == 'cache' else 'backbone_kwargs.' + key}": kwargs[key] for key in kwargs}
        kwargs |= {"weights.stable_diffusion": str(folder / "converted"), "data.rows": (16, 8)}
        kwargs |= {"bootstrap.zoom": 1.0, "bootstrap.image_size": 40, "bootstrap.grid": 20} if name == "duld" else {}
        return tiny.config(name, more=",backbone=stable_diffusion.StableDiffusion", **kwargs)

    return make


@pytest.fixture(scope="module")
def latents(diffusion, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "sd"
    found, _ = features.main(diffusion("zeroshot", "zeroshot"), str(folder), mesh(), what="latents", dtype="float32")
    assert (found.what, found.taps, found.rows) == ("latents", (("latents", (12, 12, 4)),), 16)
    assert found.image_bytes == 12 * 12 * 4 * 4
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("zeroshot", "zeroshot"), ("duld", "bootstrap")])
def test_a_pass_through_latents_equals_one_without(diffusion, latents, monkeypatch, name, stage):
    """They were written for one stage, and serve another's settings too."""
    banks = []
    for changes in ({}, {"cache": str(latents)}):
        config = diffusion(
            name, stage, **changes | ({} if name == "zeroshot" else {"mode": "noise", "timesteps": (9,)})
        )
        method, data = config_lib.stage(config, stage).method, open_data(config, mesh())
        frozen = method.frozen()
        cache = cache_lib.opened(config_lib.stage(config, stage), data.train, frozen)
        state = FirstState(method, data.train_reader, mesh(), frozen, jax.random.key(0)).state(None)
        if changes:
            monkeypatch.delattr(StableDiffusion, "encode")  # nothing is encoded again
        banks.append(Rounds(method, data.train_reader, mesh(), cache=cache).collect(state, frozen, jax.random.key(1)))
    plain, cached = jax.device_get(banks)
    described = plain.values.descriptors if name == "zeroshot" else plain.values.described[plain.values.mask]
    assert np.prod(described.shape[:-1]) > 30
    assert np.abs(described).max() > 0.1
    for field, x in plain.values._asdict().items():
        if x is not None:
            near = 0 if x.dtype == bool else 1e-2 if field in ("xy", "cells") else 1e-4
            np.testing.assert_allclose(getattr(cached.values, field), x, atol=near)


def test_latents_of_anything_else_are_refused(diffusion, latents, tmp_path):
    def opened(config, stage="zeroshot"):
        built = config_lib.stage(config, stage)
        return cache_lib.opened(built, open_split(config, "train"), built.method.frozen())

    asked = lambda **changes: diffusion("zeroshot", "zeroshot", cache=str(latents), **changes)
    assert len(opened(asked(timesteps=(5, 7), taps=()))) == 16
    with pytest.raises(UserError, match="holds features of another backbone or other settings"):
        opened(asked(image_size=64))
    with pytest.raises(UserError, match="sd holds latents, and the backbone gradient has none; use its maps"):
        opened(tiny.config(**{"zeroshot.cache": str(latents), "data.rows": (16, 8)}))
    with pytest.raises(UserError, match=r"holds features of another kind \(latents, not maps\); give another folder"):
        features.main(asked(), str(latents), mesh())
    with pytest.raises(
        UserError, match=r"^--what asks for latents, and the backbone gradient has none; .* --what=maps"
    ):
        features.main(tiny.config(), str(tmp_path / "new"), mesh(), what="latents")
    assert not (tmp_path / "new").exists()


def test_bad_input_is_one_sentence_before_any_compute(uld, written, tmp_path):
    def refused(*args):
        code, _, err = uld(*args)
        assert code == 1
        assert len(err.strip().splitlines()) == 1, err
        assert not (tmp_path / "run").exists()
        return err

    train = ("train", SPEC, f"--workdir={tmp_path / 'run'}")
    assert "holds features of another backbone or other settings" in refused(
        *train, f"--config.zeroshot.cache={written}", "--config.zeroshot.backbone_kwargs.bins=6"
    )
    assert "holds features of other images" in refused(
        *train, f"--config.zeroshot.cache={written}", "--config.data.rows=(32, 16)"
    )
    assert "is no folder of features; make it by `uld features" in refused(
        *train, f"--config.zeroshot.cache={tmp_path}"
    )
    make = ("features", SPEC, f"--out={tmp_path / 'run'}")
    assert "the stage detector does not look through a frozen backbone; name one that does by --stage" in refused(
        *make, "--stage=detector"
    )
    assert "no stage 'last'" in refused(*make, "--stage=last")
    assert "--dtype" in refused(*make, "--dtype=int8")
    assert "none of the stages imm looks" in refused("features", "--config=imm:preset=tiny", *make[2:])
    assert "--out is empty" in refused("features", SPEC, "--out=")


@pytest.mark.slow
def test_two_processes_and_eight_devices_write_and_read_the_same(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"

    def commands(folder):
        options = (SPEC, "--dtype=float32", "--batch_size=8", f"--out={folder / 'features'}")
        yield ["-m", "uld_jax", "features", *options]
        stages = ('--config.stages=("zeroshot",)', f"--config.zeroshot.cache={folder / 'features'}")
        yield ["-m", "uld_jax", "train", SPEC, f"--workdir={folder / 'run'}", *stages]

    for command in commands(tmp_path / "two"):
        several = [sys.executable, *command, f"--coordinator={address}", "--num_processes=2"]
        with tiny.alone():
            processes = [
                subprocess.Popen(
                    [*several, f"--process_id={i}"],
                    env=tiny.environment(),
                    cwd=tiny.ROOT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for i in range(2)
            ]
            outputs = [p.communicate(timeout=300)[0] for p in processes]
        assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    for command in commands(tmp_path / "eight"):
        tiny.run(*command, devices=8)
    features.main(tiny.config(), str(tmp_path / "one"), mesh(), dtype="float32")
    one, two, eight = (FeatureCache(tmp_path / name) for name in ("one", "two/features", "eight/features"))
    for name, maps in one.read(range(48)).items():
        for other in (two, eight):
            # Histograms are square roots, which make much of how a sum near 0 was rounded.
            np.testing.assert_allclose(other.read(range(48))[name] ** 2, maps**2, atol=1e-6)
    numbers = [json.loads((tmp_path / n / "run/eval/test/metrics.json").read_text()) for n in ("two", "eight")]
    assert abs(numbers[0]["forward_nme"] - numbers[1]["forward_nme"]) < 0.05

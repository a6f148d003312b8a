"""Stable Diffusion as a backbone: modes and timesteps against diffusers, and a run from a folder to landmarks."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.models.stable_diffusion import reference
from uld_jax import backbones, convert, weights
from uld_jax.backbones import stable_diffusion
from uld_jax.backbones.stable_diffusion import StableDiffusion
from uld_jax.errors import UserError
from uld_jax.models.stable_diffusion import schedule

torch, diffusers = reference.torch, reference.diffusers

TAPS, NAMES = ((0, 1), (2, 0)), ("up0.1", "up2.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Version 2.1, whose network predicts velocity."""
    path = tmp_path_factory.mktemp("sd")
    reference.write(path / "published", "2.1", reference.make_unet("2.1"), reference.make_vae())
    convert.convert("stable_diffusion", str(path / "published"), str(path / "converted"))
    return path


@pytest.fixture(scope="module")
def twins(folder):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "published/unet").eval()
    return unet, diffusers.AutoencoderKL.from_pretrained(folder / "published/vae").eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


def make(folder, **options):
    return StableDiffusion(**dict(folder=str(folder / "converted"), taps=TAPS, image_size=0) | options)


@pytest.fixture(scope="module")
def frozen(folder):
    return make(folder).load()


@pytest.fixture(scope="module")
def latents(twins, images):
    mean, _ = reference.run_vae(twins[1], images.astype(np.float32) / 127.5 - 1)
    return mean * np.float32(0.18215)


def close(found, step, expected):
    for name in NAMES:
        assert reference.error(found[f"t{step}.{name}"], expected[name]) <= 2 * reference.TOLERANCE


def ask(twins, frozen, x, step):
    return reference.run_unet(twins[0], x, np.full(len(x), step), frozen["empty_prompt"])


def test_the_clean_latent(folder, frozen, twins, images, latents):
    backbone = make(folder)
    found = jax.jit(backbone.features)(frozen, images)
    close(found, -1, ask(twins, frozen, latents, -1)[0])
    assert reference.error(jax.jit(backbone.encode)(frozen, images), latents) <= reference.TOLERANCE
    for tap in backbone.spec.taps:
        assert found[tap.name].shape == (2, 32 // tap.stride, 32 // tap.stride, tap.channels)
        assert found[tap.name].dtype == jnp.float32
    assert {tap.name for tap in backbone.spec.taps} == set(found)


def test_timesteps_are_one_batch_and_equal_each_alone(folder, latents):
    for mode in ("clean", "noise"):
        both = make(folder, mode=mode, timesteps=(60, -1))
        frozen = both.prepare(both.load())
        found = jax.jit(both.describe)(frozen, latents)
        assert set(found) == {f"t{step}.{name}" for step in (60, -1) for name in NAMES}
        for step in (60, -1):
            alone = make(folder, mode=mode, timesteps=(step,))
            expected = jax.jit(alone.describe)(alone.prepare(alone.load()), latents)
            for name, tap in expected.items():
                assert reference.error(found[name], tap) <= 2e-5, (mode, name)
        # The program holds the network once.
        text = str(jax.make_jaxpr(both.describe)(frozen, latents))
        once = str(jax.make_jaxpr(alone.describe)(alone.prepare(alone.load()), latents))
        assert text.count("conv_general_dilated[") == once.count("conv_general_dilated[")


def test_weights_are_prepared_for_the_timesteps_of_the_backbone(folder, frozen, latents):
    backbone = make(folder, timesteps=(60,))
    with pytest.raises(UserError, match="prepared for timesteps -1, not 60; prepare them by the backbone"):
        jax.eval_shape(backbone.describe, make(folder).prepare(frozen), latents)
    # Weights as they are loaded serve any backbone, and give the same maps.
    ready = backbone.prepare(frozen)
    found, expected = (jax.jit(backbone.describe)(given, latents) for given in (ready, frozen))
    for name, tap in expected.items():
        assert reference.error(found[name], tap) <= 1e-5
    fewer, all_of_them = (sum(leaf.nbytes for leaf in jax.tree.leaves(given["unet"])) for given in (ready, frozen))
    assert fewer < 0.9 * all_of_them
    assert jax.tree.structure(backbones.prepared(backbone, frozen)) == jax.tree.structure(ready)


@pytest.mark.slow
def test_noise_is_the_same_for_an_image_in_any_batch(folder, twins, latents):
    backbone = make(folder, mode="noise", timesteps=(60, 0), seed=3)
    frozen = backbone.prepare(backbone.load())
    describe = jax.jit(backbone.describe)
    found = describe(frozen, latents)
    noise = np.asarray(jax.random.normal(jax.random.key(3), latents.shape[1:]))
    for step in (60, 0):
        alpha = schedule.alphas_cumprod()[step]
        close(found, step, ask(twins, frozen, alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise, step)[0])
    assert set(found) == {f"t{step}.{name}" for step in (60, 0) for name in NAMES}
    turned = describe(frozen, latents[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[::-1], atol=1e-4), found, turned)
    # One key for all, or a key each.
    same, keys = describe(frozen, latents, jax.random.key(3)), jax.random.split(jax.random.key(3), 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), same, found)  # a program of its own
    each, other = describe(frozen, latents, keys), describe(frozen, latents[::-1], keys[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[::-1], atol=1e-4), each, other)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(each.values(), found.values(), strict=True))


@pytest.mark.slow
def test_inversion(folder, twins, latents):
    backbone = make(folder, mode="inversion", timesteps=(500, -1), inversion_steps=4)  # -1, 0, 250, 500
    frozen = backbone.prepare(backbone.load())
    found = jax.jit(backbone.describe)(frozen, latents)
    scheduler = diffusers.DDIMInverseScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(4)
    # In float64: what float32 adds from step to step differs between processors, and is ours alone to answer for.
    exact = copy.deepcopy(twins[0]).double(), twins[1]
    frozen = frozen | {"empty_prompt": np.asarray(frozen["empty_prompt"], np.float64)}
    x = latents.astype(np.float64)
    for here, there in zip((-1, 0, 250, 500), (0, 250, 500, 750), strict=True):
        taps, output = ask(exact, frozen, x, here)
        if here in backbone.timesteps:
            close(found, here, taps)
        x = scheduler.step(torch.tensor(output), there, torch.tensor(x)).prev_sample.numpy()


def test_a_path_walked_in_a_scan_is_the_one_walked_step_by_step():
    def visit(x, here, there, final):
        del final
        return x + 10 * there, {"a": x * here, "b": x[:1] - here}

    here, there, x = [-1, 0, 5, 7], [0, 5, 7, 9], jnp.arange(3.0)
    for kept in ([3, 1], [0, 1, 2, 3], [2]):
        each, once = (
            stable_diffusion._walk(visit, x, here, there, kept, unrolled=unrolled) for unrolled in (True, False)
        )
        jax.tree.map(np.testing.assert_array_equal, each, once)
        assert len(each) == len(kept)
    np.testing.assert_array_equal(each[0]["a"], 5 * (x + 50))


def test_images_are_resized(folder, frozen, images):
    network = dataclasses.replace(make(folder), image_size=64)
    shapes = lambda height, width: (
        jax.eval_shape(network.encode, frozen, jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)).shape
    )
    assert shapes(40, 40) == (1, 16, 16, 4)
    assert shapes(20, 40) == (1, 8, 16, 4)
    assert shapes(300, 20) == (1, 16, 4, 4)
    # As PyTorch and Pillow do it where the image grows.
    with torch.no_grad():
        x = torch.tensor(images.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)
        x = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear", align_corners=False)
    larger = jax.image.resize(images.astype(np.float32) / 127.5 - 1, (2, 64, 64, 3), "bilinear", antialias=True)
    np.testing.assert_allclose(larger, x.numpy().transpose(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("size", [(10, 12), (15, 24), (5, 6), (20, 6), (7, 12)])
def test_whole_multiples_are_blends_of_neighbours(size):
    x = np.random.default_rng(sum(size)).normal(size=(2, 5, 6, 3)).astype(np.float32)
    expected = jax.image.resize(x, (2, *size, 3), "bilinear", antialias=True)
    found, text = (
        stable_diffusion._resized(x, size),
        str(jax.make_jaxpr(lambda x: stable_diffusion._resized(x, size))(x)),
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert ("dot_general" in text) == (size == (7, 12))


def test_fingerprints_tell_settings_and_weights_apart(folder, tmp_path):
    first = make(folder)
    changes = [dict(), dict(timesteps=(261,)), dict(mode="noise"), dict(taps=()), dict(image_size=64), dict(seed=1)]
    changes += [dict(compute="bfloat16"), dict(inversion_steps=20)]
    prints = {dataclasses.replace(first, **change).spec.fingerprint for change in changes}
    assert len(prints) == len(changes)
    assert dataclasses.replace(first, compute="float32").spec == first.spec  # which `auto` is on CPU
    other = weights.read_source(folder / "converted", "stable_diffusion") | dict(sha256="other")
    weights.save(tmp_path / "other", "stable_diffusion", {"a": np.ones(1)}, other)
    assert dataclasses.replace(first, folder=str(tmp_path / "other")).spec.fingerprint not in prints
    assert len(make(folder, taps=(), timesteps=[0, 5]).spec.taps) == 12
    assert make(folder, timesteps=[0, 5], taps=[[0, 1]]) == make(folder, timesteps=(0, 5), taps=((0, 1),))


@pytest.mark.slow
def test_half_precision(folder, frozen, images):
    exact = jax.jit(make(folder).features)(frozen, images)
    half = make(folder, compute="bfloat16")
    rough = jax.jit(half.features)(half.prepare(half.load()), images)
    for name, tap in exact.items():
        assert rough[name].dtype == jnp.float32
        assert 1e-5 < reference.error(rough[name], tap) < 0.1


def test_bad_input_is_named(folder, frozen, images):
    for options, words in (
        (dict(mode="ddim"), "mode of StableDiffusion is 'ddim'; use one of clean, noise, inversion"),
        (dict(compute="int8"), "compute of StableDiffusion is 'int8'"),
        (dict(attention="flash"), "attention of StableDiffusion is 'flash'"),
        (dict(timesteps=()), "timesteps of StableDiffusion are"),
        (dict(timesteps=(-2,)), "use -1 or more"),
        (dict(timesteps=(5, 5)), "each once"),
        (dict(image_size=-1), "image_size of StableDiffusion is -1"),
    ):
        with pytest.raises(UserError, match=words):
            make(folder, **options)
    for options, words in (
        (dict(timesteps=(1000,)), "use -1 to 999"),
        (dict(timesteps=(261,), mode="inversion"), "timestep 261 .* 50 inversion steps; use -1, 0, 20, ... 960"),
        (dict(taps=((9, 9),)), r"no tap \(9, 9\)"),
    ):
        with pytest.raises(UserError, match=words):
            jax.eval_shape(make(folder, **options).features, frozen, images)
    with pytest.raises(UserError, match=r"config\.weights\.stable_diffusion is empty"):
        StableDiffusion().load()


@pytest.mark.slow
def test_a_run_by_the_command_line_alone(folder, tmp_path, uld_says):
    weights_folder = tmp_path / "weights"
    said = uld_says("convert", "--kind=stable_diffusion", f"--src={folder}/published", f"--dst={weights_folder}")
    assert f"--config.weights.stable_diffusion={weights_folder}" in said
    uld_says(
        "train",
        f"--config={tiny.ROOT}/configs/zeroshot.py:dataset=synthetic,k=3,preset=tiny,"
        "backbone=stable_diffusion.StableDiffusion",
        "--config.zeroshot.backbone_kwargs.image_size=64",  # of 512 pixels it takes gigabytes
        f"--config.weights.stable_diffusion={weights_folder}",
        '--config.stages=("zeroshot",)',
        "--config.data.rows=(16,8)",
        "--config.eval_every=0",
        f"--workdir={tmp_path}/run",
    )
    assert (tmp_path / "run/eval/test/metrics.json").exists()
    assert (tmp_path / "run/contact_sheet.png").exists()

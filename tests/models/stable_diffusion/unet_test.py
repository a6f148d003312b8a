"""The UNet against diffusers, with random weights; what each known trap would cost."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.stable_diffusion import reference
from uld_jax.convert import stable_diffusion as converter
from uld_jax.errors import UserError
from uld_jax.models.stable_diffusion import unet

TIMESTEPS = np.array([-1, 261, 960])


def converted(network, version="1.5", **config):
    """Its parameters, by way of the converter."""
    entries = {name: value.numpy() for name, value in network.state_dict().items()}
    settings = dict(network.config)
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return converter._unet(entries, settings, settings["cross_attention_dim"], "unet")


@pytest.fixture(scope="module", params=reference.VERSIONS)
def case(request):
    """Parameters, latents, prompt, and what diffusers computes: taps and output."""
    twin = reference.make_unet(request.param)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8, 12, 4)).astype(np.float32)
    prompt = rng.normal(size=(77, reference.PROMPT)).astype(np.float32)
    return request.param, converted(twin), x, prompt, reference.run_unet(twin, x, TIMESTEPS, prompt)


def run(params, x, prompt, **options):
    network = unet.of(params, taps=unet.all_taps(3, 1), **options)
    return jax.jit(network.apply)({"params": params}, x, TIMESTEPS, prompt)


def worst(found, expected):
    taps, output = expected
    assert list(found.taps) == list(taps)
    return max(
        reference.error(found.output, output), *(reference.error(found.taps[name], tap) for name, tap in taps.items())
    )


def test_examples():
    result = doctest.testmod(unet)
    assert result.attempted >= 7
    assert result.failed == 0


def test_every_tap_and_the_output_equal_diffusers(case):
    _, params, x, prompt, expected = case
    assert worst(run(params, x, prompt), expected) <= reference.TOLERANCE


# What tools get wrong, and the part in which it shows.
TRAPS = {
    "GELU by tanh": (unet.nn, "gelu", lambda y, approximate: jax.nn.gelu(y, approximate=True)),
    "gate first": (unet.jnp, "split", lambda y, *args: jnp.array_split(y, *args)[::-1]),
    "heads": (unet, "attend", lambda *parts: _other_heads(*parts)),
    "transformer epsilon": (unet, "_TRANSFORMER", 1e-5),
    "layer epsilon": (unet, "_LAYER", 1e-6),
    "residual epsilon": (unet, "_RESNET", 1e-6),
    "sines first": (unet, "time_features", lambda t, size: jnp.roll(_sinusoids(t, size), size // 2, -1)),
}
_attend, _sinusoids = unet.attend, unet.time_features


def _other_heads(query, key, value, *more):
    """Twice as many, of half the size."""
    cut = lambda x: x.reshape(*x.shape[:2], 2 * x.shape[2], -1)
    return _attend(cut(query), cut(key), cut(value), *more).reshape(query.shape)


@pytest.fixture(scope="module")
def parts():
    """name: (expected, found), of a transformer, a residual block and the time embedding, on small inputs."""
    torch = reference.torch
    twin = reference.make_unet("2.1")
    # Small maps, and smaller ones inside the transformer: there the epsilons are seen.
    with torch.no_grad():
        for value in twin.mid_block.attentions[0].proj_in.parameters():
            value.mul_(0.1)
    params, rng = converted(twin), np.random.default_rng(0)
    x = 0.1 * rng.normal(size=(2, 4, 4, 64)).astype(np.float32)
    prompt = rng.normal(size=(77, reference.PROMPT)).astype(np.float32)
    time = rng.normal(size=(2, 128)).astype(np.float32)
    with torch.no_grad():
        steps = torch.tensor(TIMESTEPS)
        embedded = twin.time_embedding(twin.time_proj(steps)).numpy()
        image = torch.tensor(x.transpose(0, 3, 1, 2).copy())
        seen = torch.tensor(np.stack([prompt] * 2))
        attended = twin.mid_block.attentions[0](image, encoder_hidden_states=seen).sample
        # Their block applies the SiLU to the time itself; for ours it is done once, before all blocks.
        added = twin.mid_block.resnets[0](image, torch.tensor(time))
    attended, added = (y.numpy().transpose(0, 2, 3, 1) for y in (attended, added))

    def run(name):
        if name == "time":
            network = unet.TimeEmbedding(128)
            return network.apply({"params": params["time_embedding"]}, jnp.asarray(TIMESTEPS), 32)
        if name == "resnet":
            network = unet.ResnetBlock(64, unet._RESNET)
            return network.apply({"params": params["mid_block_resnets_0"]}, x, jax.nn.silu(time)).sum
        network = unet.Transformer(4)
        return network.apply({"params": params["mid_block_attentions_0"]}, x, prompt[None])

    # What is added to the input, where there is any.
    origin = {"time": 0, "resnet": x, "transformer": x}
    expected = {"time": embedded, "resnet": added, "transformer": attended}
    return lambda name: reference.error(np.asarray(run(name)) - origin[name], expected[name] - origin[name])


@pytest.mark.parametrize("name", ["time", "resnet", "transformer"])
def test_parts_equal_diffusers(parts, name):
    assert parts(name) <= reference.TOLERANCE


@pytest.mark.parametrize("trap", TRAPS)
def test_the_tolerance_is_small_enough_to_see_every_trap(parts, monkeypatch, trap):
    where, what, wrong = TRAPS[trap]
    monkeypatch.setattr(where, what, wrong)
    part = {"sines first": "time", "residual epsilon": "resnet"}.get(trap, "transformer")
    assert parts(part) > 2 * reference.TOLERANCE


def test_without_the_output_nothing_behind_the_last_tap_is_needed(case):
    _, params, x, prompt, (expected, _) = case
    needed = {name: value for name, value in params.items() if not name.startswith(("up_blocks_2", "conv_"))}
    needed |= {"conv_in": params["conv_in"]}
    network = unet.of(params, taps=((0, 1), (1, 0)), whole=False)
    found = jax.jit(network.apply)({"params": needed}, x, TIMESTEPS, prompt)
    assert found.output is None
    assert list(found.taps) == ["up0.1", "up1.0"]
    for name, tap in found.taps.items():
        assert reference.error(tap, expected[name]) <= reference.TOLERANCE


def paths(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_what_is_the_same_for_all_images_is_computed_before(case):
    _, params, x, prompt, expected = case
    embedded = jax.jit(unet.embed)(params, jnp.asarray(TIMESTEPS, jnp.float32), prompt)
    ready = unet.prepare(params, (), whole=True, dtype=jnp.float32)
    network = unet.of(ready, taps=unet.all_taps(3, 1))
    seen = jax.jit(lambda p, x, e: network.apply({"params": p}, x, embedded=e))
    assert worst(seen(ready, x, embedded), expected) <= reference.TOLERANCE
    # Two images at three timesteps each: those of an image are neighbours.
    both = seen(ready, np.concatenate([x, x[::-1]]), embedded)
    turned = jax.jit(network.apply)({"params": params}, x[::-1], TIMESTEPS, prompt)
    np.testing.assert_allclose(both.output[3:], turned.output, atol=1e-4)

    def products(run, *given):
        return str(jax.make_jaxpr(run)(*given)).count("dot_general[")

    whole = products(lambda p: network.apply({"params": p}, x, TIMESTEPS, prompt), params)
    residuals, transformers = len(embedded.shifts), len(embedded.prompts)
    assert (residuals, transformers) == (3 + 2 + 6, 2 + 1 + 4)
    less = whole - products(lambda p: network.apply({"params": p}, x, embedded=embedded), ready)
    assert less == 2 + residuals + 2 * transformers  # two layers of the timestep; keys and values


def test_one_timestep_of_all_images_is_embedded_once(case):
    _, params, x, prompt, _ = case
    network = unet.of(params, taps=((0, 0),), whole=False)
    text = str(jax.make_jaxpr(lambda p: network.apply({"params": p}, x, jnp.float32(261), prompt))(params))
    assert "f32[1,128] = dot_general" in text
    assert "f32[3,128] = dot_general" not in text


def test_only_what_is_needed_is_kept_and_computed(case):
    _, params, x, prompt, _ = case
    embedded = jax.eval_shape(unet.embed, params, jnp.zeros(1), prompt)
    flops = []
    for taps in (((0, 1),), ((0, 1), (1, 0)), ((2, 1),)):
        network = unet.of(params, taps=taps, whole=False)
        made = jax.eval_shape(network.init, jax.random.key(0), x, jnp.float32(0), prompt)["params"]
        used = {path for path in paths(made) if "time_emb" not in path}
        used -= {path for path in used if "attn2" in path and ("to_k" in path or "to_v" in path)}
        ready = unet.prepare(params, taps, whole=False, dtype=jnp.float32)
        assert paths(ready) == used
        run = jax.jit(lambda p, x, e, network=network: network.apply({"params": p}, x, embedded=e).taps)
        flops.append(run.lower(ready, x, embedded).cost_analysis()["flops"])
    assert flops[0] < flops[1] < flops[2]


def test_rounded_parameters_give_the_same_maps(case):
    _, params, x, prompt, _ = case
    taps = ((0, 1), (2, 0))
    options = dict(dtype=jnp.bfloat16, precision="default")
    steps = jnp.asarray(TIMESTEPS, jnp.float32)
    embedded = jax.jit(lambda p: unet.embed(p, steps, prompt, **options))(params)
    ready = unet.prepare(params, taps, whole=False, dtype=jnp.bfloat16)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(ready)}
    assert kinds == {"bfloat16", "float32"}  # normalisations stay
    network = unet.of(params, taps=taps, whole=False, **options)
    given = jax.jit(network.apply)({"params": params}, x, TIMESTEPS, prompt).taps
    found = jax.jit(lambda p, e: network.apply({"params": p}, x, embedded=e).taps)(ready, embedded)
    for name, tap in found.items():
        assert tap.dtype == jnp.bfloat16
        error = reference.error(tap.astype(jnp.float32), np.asarray(given[name], np.float32))
        assert error < 0.01, (name, error)


def test_half_precision_stays_near_and_ends_in_float32(case):
    _, params, x, prompt, expected = case
    found = run(params, x, prompt, dtype=jnp.bfloat16, precision="default")
    assert found.output.dtype == jnp.float32
    assert found.taps["up0.0"].dtype == jnp.bfloat16
    assert 1e-4 < worst(jax.tree.map(lambda y: y.astype(jnp.float32), found), expected) < 0.1


def test_the_published_sizes():
    for version, count in (("1.5", 859_520_964), ("2.1", 865_910_724)):
        config = reference.FULL[version]
        heads = config["attention_head_dim"]
        network = unet.UNet(heads=(heads,) * 4 if version == "1.5" else tuple(heads), attention="xla")
        prompt = jnp.zeros((77, config["cross_attention_dim"]))
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.float32(0), prompt)
        leaves = jax.tree.leaves(shapes)
        assert (len(leaves), sum(leaf.size for leaf in leaves)) == (686, count)
        assert unet.of(shapes["params"], attention="xla") == network


def test_bad_input_is_named():
    with pytest.raises(UserError, match="multiples of 8"):
        unet.UNet().init(jax.random.key(0), jnp.zeros((1, 8, 12, 4)), jnp.float32(0), jnp.zeros((77, 8)))
    with pytest.raises(UserError, match=r"no tap \(4, 0\)"):
        unet.UNet(taps=((4, 0),)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.float32(0), jnp.zeros((77, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("version", reference.VERSIONS)
def test_the_published_networks_equal_diffusers(version):
    twin = reference.make_unet(**reference.FULL[version])
    params = converted(twin)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 32, 32, 4)).astype(np.float32)
    prompt = rng.normal(size=(77, reference.FULL[version]["cross_attention_dim"])).astype(np.float32)
    network = unet.of(params, taps=unet.all_taps())
    apply = jax.jit(network.apply)
    for timestep in (-1, 261):
        taps, output = reference.run_unet(twin, x, np.array([timestep]), prompt)
        found = apply({"params": params}, x, np.array([timestep]), prompt)
        errors = {name: reference.error(found.taps[name], tap) for name, tap in taps.items()}
        errors["output"] = reference.error(found.output, output)
        print(version, timestep, {name: f"{value:.1e}" for name, value in errors.items()})
        assert len(taps) == 12
        assert max(errors.values()) <= reference.TOLERANCE, errors

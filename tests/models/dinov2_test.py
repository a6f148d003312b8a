"""DINOv2 against transformers, with random weights."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import twins
from uld_jax.convert import dinov2 as converter
from uld_jax.errors import UserError
from uld_jax.models import dinov2
from uld_jax.models.dinov2 import Dinov2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=70, patch_size=14)
SMALL = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
UP, DOWN = (98, 84), (42, 56)  # sides of images that need more and fewer cells than were learned


def make_twin(registers=0, seed=0, **config):
    """A network of transformers in which every number is random, and none so small that its error would hide.

    Only the embeddings are small, so that the epsilon of the first normalisation matters.
    """
    config = TINY | config
    torch.manual_seed(seed)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **config)
        twin = transformers.Dinov2WithRegistersModel(config)
    else:
        twin = transformers.Dinov2Model(transformers.Dinov2Config(**config))
    with torch.no_grad():
        for name, value in twin.named_parameters():
            if value.ndim == 1:
                value.normal_(float(name.endswith(("weight", "lambda1"))), 0.3)
            else:
                fan_in = 1 if value.ndim == 3 else value[0].numel()
                value.normal_(0, (0.1 if name.startswith("embeddings") else 1) / fan_in**0.5)
    return twin.eval()


def entries(twin):
    return {key: value.numpy() for key, value in twin.state_dict().items()}


def convert(twin):
    return converter.convert(entries(twin), where="twin", heads=twin.config.num_attention_heads)


def expected(twin, x):
    """Patch tokens [B,h,w,C] after every block and the last normalisation, of normalised images [B,H,W,3]."""
    special = 1 + getattr(twin.config, "num_register_tokens", 0)
    with torch.no_grad():
        hidden = twin(twins.to_torch(x), output_hidden_states=True).hidden_states[1:]
        hidden = [twin.layernorm(h)[:, special:].numpy() for h in hidden]
    return [h.reshape(len(x), x.shape[1] // 14, x.shape[2] // 14, -1) for h in hidden]


def images(sides, count=2):
    return np.random.default_rng(1).normal(size=(count, *sides, 3)).astype(np.float32)


def found(params, x, **options):
    options = {"taps": tuple(range(dinov2.depth(params)))} | options
    return [np.asarray(m) for m in jax.jit(dinov2.of(params, **options).apply)({"params": params}, x)]


def distance(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def test_examples():
    result = doctest.testmod(dinov2)
    assert result.attempted >= 9
    assert result.failed == 0


@pytest.mark.parametrize("registers", [0, 4])
def test_equals_transformers(registers):
    twin = make_twin(registers)
    params = convert(twin)
    network = dinov2.of(params)
    assert (network.heads, network.grid, network.registers, network.taps) == (3, 5, registers, (2,))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images(UP))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    for sides in (UP, DOWN, (70, 70)):
        x = images(sides)
        for ours, theirs in zip(found(params, x), expected(twin, x), strict=True):
            twins.close(ours, theirs, 1e-5)


def test_every_trap_would_be_seen():
    """What an implementation may get wrong moves the result by far more than the tolerance of the test above."""
    params, x = convert(make_twin(4)), images(UP)
    right = found(params, x)[-1]

    def change(edit):
        return found(jax.tree.map_with_path(lambda path, leaf: edit(jax.tree_util.keystr(path), leaf), params), x)[-1]

    wrong = {
        "LayerScale left out": change(lambda name, leaf: np.ones_like(leaf) if "scale1" in name else leaf),
        "register tokens left out": change(lambda name, leaf: leaf[:0] if "register" in name else leaf),
        "class token left out": change(lambda name, leaf: leaf * 0 if "cls" in name else leaf),
        "heads in another order": change(lambda name, leaf: leaf[:, ::-1] if "query']['kernel" in name else leaf),
    }
    twin = make_twin(4, hidden_act="gelu_pytorch_tanh")
    wrong["GELU by tanh"] = expected(twin, x)[-1]
    twin = make_twin(4, layer_norm_eps=1e-5)
    wrong["epsilon of 1e-5"] = expected(twin, x)[-1]
    for trap, result in wrong.items():
        assert distance(result, right) > 2e-5, trap
    # The class token and the registers are before the patches, not after them.
    with torch.no_grad():
        tokens = make_twin(4)(twins.to_torch(x)).last_hidden_state.numpy()
    assert tokens.shape[1] == 5 + right.shape[1] * right.shape[2]
    assert distance(tokens[:, :-5].reshape(right.shape), right) > 0.1


@pytest.mark.parametrize("antialias", [False, True])
def test_positions_are_interpolated_as_in_torch(antialias):
    table = np.random.default_rng(0).normal(size=(7, 7, 3)).astype(np.float32)
    for size in ((12, 9), (4, 3), (7, 5), (1, 30)):
        theirs = torch.nn.functional.interpolate(
            twins.to_torch(table[None]), size=size, mode="bicubic", antialias=antialias
        )
        ours = dinov2.interpolate(jnp.asarray(table), size, antialias=antialias)
        twins.close(np.asarray(ours), twins.to_numpy(theirs)[0], 2e-6)
        # The other kernel, and JAX's own cubic, are something else.
        other = dinov2.interpolate(jnp.asarray(table), size, antialias=not antialias)
        assert distance(np.asarray(other), np.asarray(ours)) > 1e-3
        if not antialias:
            assert distance(np.asarray(jax.image.resize(table, (*size, 3), "cubic", antialias=False)), ours) > 1e-3
    same = dinov2.interpolate(jnp.asarray(table), (7, 7), 0.1, antialias)
    np.testing.assert_array_equal(same, table)


def test_the_offset_of_the_original_code():
    """There the scale factor is given, and of a number of cells 0.1 larger than there will be."""
    table = np.random.default_rng(0).normal(size=(7, 7, 3)).astype(np.float32)
    for size in ((12, 9), (4, 3)):
        scale = tuple((side + 0.1) / 7 for side in size)
        theirs = torch.nn.functional.interpolate(twins.to_torch(table[None]), scale_factor=scale, mode="bicubic")
        ours = dinov2.interpolate(jnp.asarray(table), size, 0.1)
        twins.close(np.asarray(ours), twins.to_numpy(theirs)[0], 3e-6)
    x, params = images(UP), convert(make_twin())
    assert distance(found(params, x, offset=0.1)[-1], found(params, x)[-1]) > 1e-3


def test_bfloat16_and_fewer_blocks():
    params, x = convert(make_twin(4)), images(UP)
    right = found(params, x)
    (first,) = found(params, x, taps=(0,))
    np.testing.assert_allclose(first, right[0], atol=1e-6)
    rough = found(params, x, dtype=jnp.bfloat16)
    assert rough[-1].dtype == jnp.bfloat16
    assert 1e-4 < distance(np.float32(rough[-1]), right[-1]) < 0.1


def test_bad_input_is_named():
    network = Dinov2(width=24, heads=3, hidden=96, grid=5, taps=(0,))
    for shape in ((1, 30, 28, 3), (1, 28, 28, 1), (1, 0, 28, 3)):
        with pytest.raises(UserError, match="sides are multiples of 14"):
            jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_equals_transformers_at_full_size(registers):
    twin = make_twin(registers, **SMALL)
    params = convert(twin)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_056_192 + registers * 384
    for sides in ((518, 518), (448, 448)):
        x = images(sides, count=1)
        for ours, theirs in zip(found(params, x), expected(twin, x), strict=True):
            twins.close(ours, theirs, 1e-5)

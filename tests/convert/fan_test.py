import jax
import numpy as np
import pytest

from tests.models import fan_test as reference
from uld_jax.convert import fan
from uld_jax.errors import UserError
from uld_jax.models.fan import FAN

torch = pytest.importorskip("torch")

SMALL = dict(width=16, depth=1)


@pytest.fixture(scope="module")
def twin():
    """A narrow network in PyTorch with random statistics and affine parameters."""
    twin = reference.torch_twin(landmarks=5, downsample=4, norm="batch", **SMALL).eval()
    rng = np.random.default_rng(1)
    state = twin.state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            state[key] = torch.tensor(rng.uniform(0.5, 2, value.shape), dtype=torch.float32)
        elif value.ndim == 1:
            state[key] = torch.tensor(rng.normal(float(key.endswith("weight")), 0.2, value.shape), dtype=torch.float32)
    twin.load_state_dict(state)
    return twin


@pytest.fixture
def entries(twin):
    return {key: value.numpy() for key, value in twin.state_dict().items()}


def convert(entries, **options):
    return fan.convert(entries, where="fan.pth", **SMALL | options)


def refusal(entries, **options):
    with pytest.raises(UserError) as error:
        convert(entries, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def equal(a, b, rtol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), a, b)


def logits(variables, images):
    network = FAN(5, **SMALL)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda v, x: network.apply(v, x, train=False).logits)(variables, images))


def test_the_converted_network_computes_what_the_original_does(twin, entries):
    images = np.random.default_rng(2).uniform(size=(2, 16, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = twin(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    found = logits(convert(entries), images)
    assert found.shape == (2, 4, 8, 5)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_variables_are_those_of_the_network(twin, entries):
    variables = convert(entries)
    equal(variables, reference.to_flax(twin.state_dict()))
    shapes = reference.initial(FAN(5, **SMALL), 32)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    parallel = {f"module.{key}": value for key, value in entries.items()}
    equal(convert(parallel), variables)
    counted = {key: value for key, value in entries.items() if not key.endswith("num_batches_tracked")}
    assert len(counted) < len(entries)
    equal(convert(counted), variables)


def test_the_number_of_landmarks_is_read(entries):
    entries |= {"l_0.weight": np.ones((3, 16, 1, 1)), "l_0.bias": np.arange(3.0)}
    head = convert(entries)["params"]["l_0"]
    assert head["kernel"].shape == (1, 1, 16, 3)
    np.testing.assert_array_equal(head["bias"], [0, 1, 2])
    entries["l_0.bias"] = np.ones(4)
    assert "'l_0.bias' has shape (4,), not (3,)" in refusal(entries)


def test_entries_that_do_not_fit_are_named(entries):
    def without(*keys):
        return {key: value for key, value in entries.items() if key not in keys}

    assert "'l_0.weight' is missing" in refusal(without("l_0.weight"))
    missing = refusal(without("m0.b1_1.conv2.weight", "bn_end0.running_var", "conv2.downsample.0.bias"))
    assert "(and 2 more) is missing" in missing
    assert "used by nothing" in refusal(entries | {"rp_ex.weight": np.ones(3)})
    wide = refusal(entries | {"conv_last0.weight": np.ones((32, 16, 1, 1))})
    assert "'conv_last0.weight' has shape (32, 16, 1, 1), not (16, 16, 1, 1)" in wide
    assert "not finite" in refusal(entries | {"bn1.running_var": np.full(4, np.inf)})
    half_prefixed = entries | {"module.conv1.weight": entries["conv1.weight"]}
    assert "'module.conv1.weight' is used by nothing" in refusal(half_prefixed)
    assert "(and " in refusal(entries, depth=2)  # a network of another depth, and so are most other files
    assert "missing" in refusal({"state": np.ones(3)})


def test_face_alignments_name_of_the_head_is_known(entries):
    renamed = {key.replace("l_0.", "l0."): value for key, value in entries.items()}
    assert set(renamed) != set(entries)
    equal(convert(renamed), convert(entries))
    both = entries | {"l0.bias": np.ones(5)}
    assert "'l0.bias' is used by nothing" in refusal(both)


def test_a_network_of_four_hourglasses_is_told(entries):
    """Named as face-alignment does: stack i has m, top_m_, conv_last, bn_end and l, and all but the last bl and al."""
    stacked = {key.replace("l_0.", "l0."): value for key, value in entries.items()}
    for i in range(1, 4):
        for key, value in entries.items():
            if key.startswith(("m0.", "top_m_0", "conv_last0", "bn_end0", "l_0")):
                stacked[key.replace("l_0.", "l0.").replace("0", str(i), 1)] = value
        stacked |= {f"{name}{i - 1}.weight": np.ones((16, 16, 1, 1)) for name in ("bl", "al")}
    assert "l3.weight" in stacked
    assert "m3.b1_1.conv1.weight" in stacked
    assert "fan.pth is a FAN of 4 hourglasses, one after the other (m0 to m3)" in refusal(stacked)
    assert "of 4 hourglasses" in refusal({f"module.{key}": value for key, value in stacked.items()})


@pytest.fixture
def incremental(entries):
    """An incremental checkpoint, its core, and the plain checkpoint that it amounts to."""
    rng = np.random.default_rng(3)
    inner = [key for key, value in entries.items() if value.ndim == 4 and value.shape[2] == 3]
    assert len(inner) == 3 * (3 + 4 + 1)  # three convolutions in each of: the stem's blocks, one level, top_m_0
    core = dict(entries)
    core |= {"l_0.weight": np.ones((16, 16, 1, 1)), "l_0.bias": np.ones(16)}  # of a network for other points
    adapted, plain = dict(entries), dict(entries)
    for key in inner:
        mixing = np.eye(len(core[key])) + rng.normal(0, 0.3, (len(core[key]), len(core[key])))
        adapted.pop(key)
        adapted[key.removesuffix("weight") + "W"] = mixing.astype(np.float32)
        plain[key] = np.einsum("op,pihw->oihw", mixing, core[key]).astype(np.float32)
    return adapted, core, plain


def test_incremental_checkpoints_adapt_their_core(incremental):
    adapted, core, plain = incremental
    expected = convert(plain)
    equal(convert(adapted, core=core), expected, rtol=1e-5)
    several = {f"module.{key}": value for key, value in adapted.items()}
    equal(convert(several, core=core), expected, rtol=1e-5)
    equal(convert(adapted, core={f"module.{key}": value for key, value in core.items()}), expected, rtol=1e-5)


def test_incremental_checkpoints_without_their_core(incremental):
    adapted, core, plain = incremental
    assert "--core=FILE" in refusal(adapted)
    assert "leave --core out" in refusal(plain, core=core)
    assert "'core:conv2.conv1.weight' is missing" in refusal(
        adapted, core={key: value for key, value in core.items() if key != "conv2.conv1.weight"}
    )
    assert "has shape" in refusal(adapted, core=core | {"m0.b1_1.conv2.weight": np.ones((4, 8, 1, 1))})
    kept = adapted | {"conv2.conv1.weight": core["conv2.conv1.weight"]}
    assert "'conv2.conv1.weight' is used by nothing" in refusal(kept, core=core)
    adapted.pop("conv2.conv2.W")
    assert "'conv2.conv2.W' is missing" in refusal(adapted, core=core)

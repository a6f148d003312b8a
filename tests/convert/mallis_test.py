"""Files laid out as both published code bases of Mallis et al. write them."""

import collections
import doctest
import fractions
import json
import os
import zipfile

import jax
import numpy as np
import pytest

from tests.models import fan_test as reference
from uld_jax import __main__ as cli
from uld_jax import weights
from uld_jax.convert import files, mallis
from uld_jax.errors import UserError
from uld_jax.models import fan

torch = pytest.importorskip("torch")

SMALL = dict(width=16, depth=1)
IMAGES = np.random.default_rng(2).uniform(size=(2, 16, 32, 3)).astype(np.float32)
RNG = np.random.default_rng(3)
CENTROID = RNG.normal(size=(7, 16)).astype(np.float32)


def test_examples():
    result = doctest.testmod(mallis)
    assert result.attempted >= 1
    assert result.failed == 0


def twin_of(channels):
    return reference.randomized(reference.correspondence_twin(channels, downsample=4, **SMALL), seed=channels)


@pytest.fixture(scope="module")
def first():
    return twin_of(16)


@pytest.fixture(scope="module")
def second():
    return twin_of(5)


def trainer(twin, schedule=False):
    """What both codes save besides: the state of RMSprop after a step, and of its schedule."""
    for parameter in twin.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.RMSprop(twin.parameters(), lr=0.0, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    optimizer.step()
    found = {"optimizer": optimizer.state_dict(), "iteration": 20_001}
    return found | ({"schedualer": scheduler.state_dict()} if schedule else {})


def parallel(state):
    return collections.OrderedDict((f"module.{key}", value) for key, value in state.items())


ACTIVE, FLIPS = np.array([0, 3, 4]), np.array([1, 0, 2, 4, 4])


def layouts(first, second):
    """Of both codes, the second prefixed: (file, what is converted besides the parameters)."""
    one, two = first.state_dict(), second.state_dict()
    return {
        "first paper, stage 1": ({"state_dict": one, **trainer(first), "centroid": CENTROID}, {"centroids": CENTROID}),
        "first paper, before any clustering": ({"state_dict": one, **trainer(first), "centroid": None}, {}),
        "first paper, stage 2": (
            {"state_dict": two, **trainer(second, True), "active_channels": ACTIVE},
            {"active": np.array([1, 0, 0, 1, 1])},
        ),
        "extended, stage 1": (
            {"state_dict": parallel(one), **trainer(first), "centroid": CENTROID.astype(np.float64)},
            {"centroids": CENTROID},
        ),
        "extended, stage 2": (
            {"state_dict": parallel(two), **trainer(second, True), "flipppingCorrespondance": FLIPS},
            {"flips": FLIPS},
        ),
        "bare, stage 1": (one, {}),
        "bare, stage 2": (parallel(two), {}),
    }


NAMES = [
    *("first paper, stage 1", "first paper, before any clustering", "first paper, stage 2"),
    *("extended, stage 1", "extended, stage 2", "bare, stage 1", "bare, stage 2"),
]


def read(path):
    return files.read(str(path), beside=mallis.BESIDE)


def converted(path, **options):
    return mallis.convert(read(path), where=path.name, **SMALL | options)


def refusal(path, **options):
    with pytest.raises(UserError) as error:
        converted(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def named(old: bool, path):
    """The file as NumPy before or since version 2 has it; the pickle names NumPy's own modules."""
    with zipfile.ZipFile(path) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    before, after = (b"numpy._core", b"numpy.core")[:: 1 if old else -1]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts:
            archive.writestr(name, content.replace(before, after) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("name", NAMES)
def test_every_layout(tmp_path, first, second, name):
    content, more = layouts(first, second)[name]
    path = tmp_path / "a.pth"
    torch.save(content, path)
    stage = int("stage 2" in name) + 1
    for old in (True, False):
        named(old, path)
        found = converted(path)
        assert mallis.facts(found) == {"stage": stage}
        params = found.pop("params")
        assert set(found) == set(more)
        for key, value in more.items():
            assert found[key].dtype == np.float32
            np.testing.assert_array_equal(found[key], value)
    expected = reference.to_flax({k: v for k, v in (first, second)[stage - 1].state_dict().items() if ".b4_" not in k})
    expected = expected["params"]
    if stage == 2:
        names = dict(top_m_1="top_m_0", conv_last1="conv_last0", bn_end1="bn_end0", l1="l_0")
        kept = {key: tree for key, tree in expected.items() if key not in ("top_m_0", "conv_last0", "bn_end0", "l0")}
        expected = {names.get(key, key): tree for key, tree in kept.items()}
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_both_stages_compute_what_the_originals_do(tmp_path, first, second):
    images = torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        logits, descriptors = (x.numpy() for x in first(images))
        heatmaps = second(images)[1].numpy()
    params = []
    for name in ("extended, stage 1", "first paper, stage 2"):
        torch.save(layouts(first, second)[name][0], tmp_path / "a.pth")
        params.append(converted(tmp_path / "a.pth")["params"])
    with jax.default_matmul_precision("highest"):
        one = jax.jit(fan.CorrespondenceFAN(16, **SMALL).apply)({"params": params[0]}, IMAGES)
        network = fan.FAN(5, **SMALL, norm="group")
        two = jax.jit(lambda p: network.apply({"params": p}, IMAGES, train=False).logits)(params[1])
    pairs = (
        (one.logits, logits),
        (one.descriptors, descriptors.transpose(0, 2, 3, 1)),
        (two, heatmaps.transpose(0, 2, 3, 1)),
    )
    for found, expected in pairs:
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("channels", "numbers"), [(256, 8_396_545), (10, 8_333_323), (30, 8_338_463), (100, 8_356_453), (250, 8_395_003)]
)
def test_sizes_are_those_of_the_published_networks(channels, numbers):
    with torch.device("meta"):
        state = reference.correspondence_twin(channels, width=256, depth=4, downsample=4).state_dict()
    assert len(state) == 220
    assert sum(value.numel() for value in state.values()) == numbers
    unused = [key for key in state if ".b4_" in key]
    assert len(unused) == 36
    assert sum(state[key].numel() for key in unused) == 1_625_600


def test_uld_convert_of_the_published_size(tmp_path, capsys, monkeypatch):
    state = reference.correspondence_twin(100, width=256, depth=4, downsample=4).state_dict()
    src, dst = tmp_path / "CelebASecondStepEpoch31.pth", tmp_path / "mallis"
    active = np.arange(0, 100, 3)
    torch.save({"state_dict": state, "optimizer": {}, "iteration": 9, "active_channels": active}, src)
    monkeypatch.setattr("sys.argv", ["uld", "convert", "--kind=mallis", f"--src={src}", f"--dst={dst}"])
    assert cli.main() == 0
    assert f"--config.weights.mallis={dst}" in capsys.readouterr().out
    found = weights.load(dst, "mallis")
    shapes = reference.initial(fan.FAN(100, norm="group"), 256)["params"]
    assert jax.tree.map(np.shape, found["params"]) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    np.testing.assert_array_equal(np.flatnonzero(found["active"]), active)
    source = json.loads((dst / "source.json").read_text())
    assert (source["kind"], source["stage"], source["file"]) == ("mallis", 2, src.name)
    assert cli.main() == 0  # again: the same folder


def test_entries_that_do_not_fit_are_named(tmp_path, first, second):
    path = tmp_path / "a.pth"

    def refused(twin, state=None, without=(), **beside):
        kept = {key: value for key, value in twin.state_dict().items() if key not in without}
        torch.save({"state_dict": kept | (state or {})} | beside, path)
        return refusal(path)

    assert "'top_m_1.bn2.bias' is missing" in refused(first, without=["top_m_1.bn2.bias"])
    assert "'conv_last0.bias' (and 1 more) is missing" in refused(first, without=["l0.weight", "conv_last0.bias"])
    assert "'m1.b1_1.bn1.weight' is used by nothing" in refused(first, state={"m1.b1_1.bn1.weight": torch.ones(3)})
    assert "'bn1.running_mean' is used by nothing" in refused(second, state={"bn1.running_mean": torch.ones(4)})
    assert "'l1.bias' has shape (4,), not (5,)" in refused(second, state={"l1.bias": torch.ones(4)})
    assert "'module.conv1.bias' is used by nothing" in refused(first, state={"module.conv1.bias": torch.ones(4)})
    assert "not finite" in refused(first, state={"l1.bias": torch.full((16,), np.nan)})
    # A detector is not looked at in stage 2, where nothing trained it.
    torch.save({k: v for k, v in second.state_dict().items() if not k.startswith(("top_m_0", "l0"))}, path)
    converted(path)
    torch.save(first.state_dict(), path)
    assert "(and " in refusal(path, depth=2)
    assert "'epoch' beside 'state_dict' is used by nothing" in refused(first, epoch=3)
    assert "'epoch' (and 1 more) beside" in refused(first, epoch=3, loss=torch.ones(1))


def test_arrays_that_do_not_fit_are_named(tmp_path, first, second):
    path = tmp_path / "a.pth"

    def refused(twin, **beside):
        torch.save({"state_dict": twin.state_dict()} | beside, path)
        return refusal(path)

    assert "'centroid' has shape (7, 15), not (M, 16)" in refused(first, centroid=CENTROID[:, 1:])
    assert "'centroid' holds numbers that are not finite" in refused(first, centroid=CENTROID * np.nan)
    assert "'centroid' is of stage 1, but the file is of stage 2" in refused(second, centroid=CENTROID)
    assert "names a channel that 'l1.weight' with its 5 does not have" in refused(second, active_channels=ACTIVE + 1)
    assert "not a list of channel numbers" in refused(second, active_channels=ACTIVE.astype(np.float32))
    assert "has 4 landmarks, but 'l1.weight' 5" in refused(second, flipppingCorrespondance=FLIPS[:4])
    assert "no array of numbers but a Python list" in refused(second, active_channels=[0, 1])
    # A tensor does as well as an array. As many channels as a descriptor has are of stage 2 if such a list says so.
    torch.save({"state_dict": first.state_dict(), "active_channels": torch.arange(3)}, path)
    found = converted(path)
    assert mallis.facts(found) == {"stage": 2}
    assert found["active"].sum() == 3


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_other_python_objects_are_refused_by_name(tmp_path, first, zipped):
    trap, path = tmp_path / "sprung", tmp_path / "a.pth"

    def refused(**beside):
        content = {"state_dict": first.state_dict(), "centroid": CENTROID} | beside
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return refusal(path)

    for place in ("centroid", "optimizer", "iteration", "more"):
        assert "(the first: posix.mkdir)" in refused(**{place: Trap(trap)})
        assert not trap.exists()
    assert "(the first: fractions.Fraction)" in refused(iteration=fractions.Fraction(1, 2))
    # Of NumPy, what a plain array of numbers needs and no more.
    assert ".scalar)" in refused(iteration=np.float32(1))
    assert "(the first: numpy.dtypes.ObjectDType)" in refused(centroid=np.array([None, {}], object))
    assert "(the first: numpy.dtypes.StrDType)" in refused(centroid=np.array(["a"]))
    assert "(the first: collections.deque)" in refused(iteration=collections.deque())
    torch.save({"a": torch.ones(1), "b": Trap(trap)}, path)
    torch.load(path, weights_only=False)
    assert trap.exists(), "the trap must work"


def test_numpy_is_allowed_for_as_long_as_the_file_is_read(tmp_path, first):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": first.state_dict(), "centroid": CENTROID}, path)
    assert "centroid" in read(path)
    allowed = torch.serialization.get_safe_globals()  # of (object, name) or objects, in any order
    assert not {np.ndarray, np.dtype} & {one[0] if isinstance(one, tuple) else one for one in allowed}
    with pytest.raises(UserError, match=r"\(the first: numpy\._core\.multiarray\._reconstruct\)"):
        files.read(str(path))

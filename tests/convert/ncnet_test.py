"""NC-Net's converter against its network in PyTorch, whose 4-D convolution is written out from the definition."""

import argparse
import doctest
import functools
import itertools

import jax
import numpy as np
import pytest

from tests.convert.checks import equal, refusal
from tests.models import resnet_test, twins
from uld_jax import convert as converter
from uld_jax import weights
from uld_jax.convert import files, ncnet, resnet
from uld_jax.errors import UserError
from uld_jax.models import neigh_consensus
from uld_jax.models.resnet import IMAGENET, ResNet
from uld_jax.ops import correlation

torch = pytest.importorskip("torch")

DEPTH, WIDTH = 18, 4  # of the ResNet in tests that do not say another
FEATURES = "FeatureExtraction.model"


def convolve(x, weight, bias):
    """[B,I,h,w,h',w'] by a kernel stored as [k,O,I,k,k,k], one tap at a time, with zeros around."""
    side = len(weight)
    padded = torch.nn.functional.pad(x, [side // 2] * 8)
    out = bias.reshape(1, -1, 1, 1, 1, 1)
    for p, q, r, s in itertools.product(range(side), repeat=4):
        part = padded[(..., *(slice(t, t + n) for t, n in zip((p, q, r, s), x.shape[2:], strict=True)))]
        out = out + torch.einsum("oi,bihwyx->bohwyx", weight[p, :, :, q, r, s], part)
    return out


class Twin(torch.nn.Module):
    """The published network: features, cosines, mutual matches, the symmetric consensus, mutual matches."""

    def __init__(self, kernel, channels, depth=DEPTH):
        super().__init__()
        torch.manual_seed(3)
        whole = resnet_test.torch_twin(depth, WIDTH)
        twins.randomize(whole, np.random.default_rng(3))
        children = [whole.conv1, whole.bn1, torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1)]
        children += [whole.layer1, whole.layer2, whole.layer3]
        self.FeatureExtraction = torch.nn.Module()
        self.FeatureExtraction.model = torch.nn.Sequential(*children)
        self.NeighConsensus = torch.nn.Module()
        self.NeighConsensus.conv = torch.nn.ModuleList()
        for before, after in zip((1, *channels), channels):
            layer = torch.nn.Module()
            layer.weight = torch.nn.Parameter(torch.randn(kernel, after, before, *[kernel] * 3) / (kernel**2 * before))
            layer.bias = torch.nn.Parameter(torch.rand(after) / 10)
            self.NeighConsensus.conv.extend([layer, torch.nn.ReLU()])

    def features(self, images):
        f = self.FeatureExtraction.model(images)
        return f / torch.sqrt((f**2).sum(1, keepdim=True) + 1e-6)

    def consensus(self, c):
        def run(x):
            for layer in self.NeighConsensus.conv[::2]:
                x = torch.relu(convolve(x, layer.weight, layer.bias))
            return x

        return (run(c[:, None]) + run(c.permute(0, 3, 4, 1, 2)[:, None]).permute(0, 1, 4, 5, 2, 3))[:, 0]

    @staticmethod
    def mutual(c):
        over_a, over_b = (c.amax(axes, keepdim=True) + 1e-5 for axes in ((1, 2), (3, 4)))
        return c**3 / (over_a * over_b)

    def forward(self, a, b):
        c = torch.einsum("bchw,bcyx->bhwyx", self.features(a), self.features(b))
        return self.mutual(self.consensus(self.mutual(c)))


@pytest.fixture(scope="module")
def twin():
    return Twin(3, (2, 3, 1)).eval()


def entries_of(twin):
    return {key: value.detach().numpy() for key, value in twin.state_dict().items()}


def checkpoint(twin):
    """As NC-Net's trainer saves it, its losses in NumPy's types."""
    adam = torch.optim.Adam(twin.NeighConsensus.parameters(), lr=5e-4)
    sum(x.sum() for x in twin.NeighConsensus.parameters()).backward()
    adam.step()
    losses = np.linspace(-0.1, -0.2, 5)
    options = dict(ncons_kernel_sizes=[3, 3, 3], ncons_channels=[2, 3, 1], lr=5e-4, dataset_image_path="datasets/a")
    return {
        "epoch": 5,
        "args": argparse.Namespace(**options),
        "state_dict": twin.state_dict(),
        "best_test_loss": losses[4],
        "optimizer": adam.state_dict(),
        "train_loss": losses,
        "test_loss": losses,
    }


def convert(entries, depth=DEPTH):
    return ncnet.convert(entries, where="ncnet.pth.tar", depth=depth, width=WIDTH)


@pytest.mark.parametrize("depth", [DEPTH, pytest.param(101, marks=pytest.mark.slow)])
def test_the_imported_network_equals_torch(depth):
    twin = Twin(3, (2, 3, 1), depth).eval()
    found = convert(entries_of(twin), depth)
    images = [
        resnet_test.images(2, *sides, seed=seed).astype(np.float32) for seed, sides in ((1, (80, 96)), (2, (64, 80)))
    ]
    encoder, net = ResNet(depth, WIDTH, last=3), neigh_consensus.of(found["consensus"]["params"])

    @jax.jit
    def ours(found, a, b):
        a, b = (encoder.apply(found["features"], x, train=False)["layer3"] for x in (a, b))
        c = correlation.mutual_matching(correlation.correlate(a, b))
        return correlation.mutual_matching(net.apply(found["consensus"], c))

    with torch.no_grad():
        expected = twin(*map(twins.to_torch, images)).numpy()
    got = np.asarray(ours(found, *images))
    assert got.shape == (2, 5, 6, 4, 5)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    assert expected.min() < 0.1 * expected.max()


@pytest.mark.parametrize(("kernel", "channels"), [(3, (4, 3, 1)), (5, (2, 1))])
def test_the_imported_consensus_equals_torch(kernel, channels):
    """On random numbers of either sign."""
    twin = Twin(kernel, channels)
    found = convert(entries_of(twin))["consensus"]
    c = np.random.default_rng(4).normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
    net = neigh_consensus.of(found["params"])
    assert net == neigh_consensus.NeighConsensus(channels, kernel, "full")
    shapes = jax.eval_shape(net.init, jax.random.key(0), c)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, shapes)
    with torch.no_grad():
        expected = twin.consensus(torch.tensor(c)).numpy()
    twins.close(np.asarray(jax.jit(net.apply)(found, c)), expected, 1e-5)
    assert expected.max() > 0.1


def test_a_file_as_its_trainer_saves_it(tmp_path, monkeypatch, twin):
    narrow = functools.partial(ncnet.convert, depth=DEPTH, width=WIDTH)
    monkeypatch.setitem(converter.KINDS, "ncnet", converter.KINDS["ncnet"]._replace(convert=narrow))
    src, dst = tmp_path / "best_ncnet.pth.tar", tmp_path / "ncnet"
    saved = checkpoint(Twin(3, (2, 3, 1)))
    torch.save(saved, src)
    source = converter.convert("ncnet", str(src), str(dst))
    state = {key: value.numpy() for key, value in saved["state_dict"].items()}
    trained = [value.size for key, value in state.items() if "running" not in key and "num_batches" not in key]
    assert (source["entries"], source["parameters"]) == (len(state), sum(trained))
    assert source["taken_for"] == "NC-Net with 3 layers of 2, 3, 1 channels and kernels of 3^4"
    assert (source["kernel"], source["channels"]) == (3, [2, 3, 1])
    assert source["normalization"] == {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])}
    found = weights.load(dst, "ncnet")
    equal(found, convert(state))
    assert {name: set(part) for name, part in found.items()} == {
        "features": {"params", "batch_stats"},
        "consensus": {"params"},
    }
    # PyTorch's older format, and a bare state dict.
    for content in (saved, saved["state_dict"]):
        torch.save(content, src, _use_new_zipfile_serialization=False)
        entries = files.read(str(src), trainer=True)
        assert set(entries) == set(state)
        jax.tree.map(np.testing.assert_array_equal, entries, state)
    # Other kinds do not take the trainer's objects.
    torch.save(saved, src)
    with pytest.raises(UserError, match=r"holds Python objects, which are not unpickled"):
        converter.convert("resnet101", str(src), str(tmp_path / "other"))


def test_features_are_those_of_torchvision(twin):
    numbers = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3"}
    named = {}
    for key, value in twin.FeatureExtraction.model.state_dict().items():
        number, rest = key.split(".", 1)
        named[f"{numbers[number]}.{rest}"] = value
    equal(convert(entries_of(twin))["features"], twins.to_flax(named))


def test_older_files(twin):
    entries = entries_of(twin)
    old = {key.replace(FEATURES, "FeatureExtraction.vgg"): value for key, value in entries.items()}
    old = {key: value for key, value in old.items() if not key.endswith("num_batches_tracked")}
    equal(convert(old), convert(entries))


def test_the_published_layout():
    """Names and shapes of the published size, without numbers."""
    with torch.device("meta"):
        whole = resnet_test.torch_twin(101).state_dict()
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6}
    wanted = {}
    for key, value in whole.items():
        child, rest = key.split(".", 1)
        if child in numbers and not rest.endswith("num_batches_tracked"):
            wanted[f"{FEATURES}.{numbers[child]}.{rest}"] = tuple(value.shape)
    made = [ncnet._of_features(rule, FEATURES) for rule in resnet.rules_of(101, last=3)]
    assert {key: shape for rule in made for key, shape in rule.sources.items()} == wanted
    assert len(made) == len(wanted) == 94 * 5  # 1 + 3 (3 + 4 + 23) convolutions, and 3 that change the channels


def test_examples():
    found = doctest.testmod(ncnet)
    assert (found.attempted, found.failed) == (4, 0)


def test_entries_that_do_not_fit_are_named(twin):
    entries = entries_of(twin)

    def without(*keys):
        return {key: value for key, value in entries.items() if key not in keys}

    first = f"{FEATURES}.0.weight"
    assert f"'{first}' is missing" in refusal(convert, without(first))
    assert "'NeighConsensus.conv.2.weight' is missing" in refusal(convert, without("NeighConsensus.conv.2.weight"))
    assert "'NeighConsensus.conv.4.bias' is missing" in refusal(convert, without("NeighConsensus.conv.4.bias"))
    assert "'NeighConsensus.conv.0.weight' (and 5 more) is missing" in refusal(
        convert, {key: value for key, value in entries.items() if key.startswith("Feature")}
    )
    more = {f"{FEATURES}.7.0.conv1.weight": np.ones((WIDTH * 8, WIDTH * 64, 1, 1))}
    assert f"'{FEATURES}.7.0.conv1.weight' is used by nothing" in refusal(convert, entries | more)
    weight = "NeighConsensus.conv.2.weight"
    flat = refusal(convert, entries | {weight: np.ones((3, 2, 3, 3))})
    assert "'NeighConsensus.conv.2.weight' has shape (3, 2, 3, 3), not (k,O,I,k,k,k)" in flat
    assert (
        "the consensus has kernels of 3x3x3x3, 3x5x5x5, 3x3x3x3; give a file whose kernels have one odd side"
        in refusal(convert, entries | {weight: np.ones((3, 3, 2, 5, 5, 5))})
    )
    last = {"NeighConsensus.conv.4.weight": np.ones((3, 2, 3, 3, 3, 3)), "NeighConsensus.conv.4.bias": np.ones(2)}
    assert "the consensus ends with 2 channels, not 1" in refusal(convert, entries | last)
    assert "'conv1.weight' (and " in refusal(
        convert, {"conv1.weight": np.ones((4, 3, 7, 7)), "fc.weight": np.ones((2, 2))}
    )

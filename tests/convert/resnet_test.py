import argparse
import json
import pathlib

import jax
import numpy as np
import pytest

from tests.convert.checks import equal
from tests.models import resnet_test as reference
from tests.models import twins
from uld_jax import convert as converter
from uld_jax import weights
from uld_jax.convert import files, resnet
from uld_jax.errors import UserError
from uld_jax.models.resnet import CELEBA, IMAGENET, ResNet

torch = pytest.importorskip("torch")

WIDTH = 4


@pytest.fixture(scope="module", params=[18, 50])
def twin(request):
    """A narrow network in PyTorch with random statistics and affine parameters, named as in torchvision."""
    torch.manual_seed(request.param)
    twin = reference.torch_twin(request.param, WIDTH, classes=7).eval()
    twins.randomize(twin, np.random.default_rng(request.param))
    twin.depth = request.param
    return twin


def state_of(twin):
    return {key: value.clone() for key, value in twin.state_dict().items()}


def entries_of(state):
    return {key: value.numpy() for key, value in state.items()}


def convert(entries, depth, width=WIDTH):
    return resnet.convert(entries, where="resnet.pth", depth=depth, width=width)


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def expected(twin):
    return twins.to_flax({key: value for key, value in twin.state_dict().items() if not key.startswith("fc.")})


def read(tmp_path, content, zipped=True):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    return files.read(str(tmp_path / "a.pth"), nested=resnet.NESTED, text=resnet.DATASET)


def test_torchvision(tmp_path, twin):
    state = state_of(twin)
    assert len(state) == {50: 320, 18: 122}[twin.depth]
    equal(convert(read(tmp_path, state), twin.depth), expected(twin))
    old = {key: value for key, value in entries_of(state).items() if not key.endswith("num_batches_tracked")}
    equal(convert(old, twin.depth), expected(twin))
    assert resnet.facts(old) == {
        "taken_for": f"torchvision's network, a ResNet-{twin.depth}",
        "normalization": {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])},
    }
    parallel = read(tmp_path, {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3})
    equal(convert(parallel, twin.depth), expected(twin))
    assert resnet.facts(parallel)["taken_for"] == f"torchvision's network behind 'module.', a ResNet-{twin.depth}"


def moco(state, mlp):
    """As MoCo saves it: both encoders, and the queue; version 2 has two layers in place of `fc`."""
    found = {}
    for key, value in state.items():
        if mlp and key.startswith("fc."):
            found[f"module.encoder_q.fc.0.{key[3:]}"] = value + 1
            key = key.replace("fc.", "fc.2.")
        found |= {f"module.encoder_q.{key}": value, f"module.encoder_k.{key}": value + 1}
    return found | {"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}


@pytest.mark.parametrize("mlp", [False, True], ids=["v1", "v2"])
def test_moco(tmp_path, twin, mlp):
    checkpoint = {"epoch": 200, "arch": "resnet", "state_dict": moco(state_of(twin), mlp), "optimizer": {"state": {}}}
    entries = read(tmp_path, checkpoint)
    equal(convert(entries, twin.depth), expected(twin))
    facts = resnet.facts(entries)
    assert facts["taken_for"] == f"MoCo's query encoder, a ResNet-{twin.depth}"
    assert facts["normalization"]["mean"] == list(IMAGENET[0])


def contrast_landmark(state, **options):
    """As ContrastLandmark's `train_moco.py` and CMC's `train_moco_ins.py` save it."""
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.03, momentum=0.9)
    return {
        "opt": argparse.Namespace(learning_rate=0.03, lr_decay_epochs=[120, 160], resume=None, cosine=True, **options),
        "model": {f"encoder.module.{key}": value for key, value in state.items()},
        "model_ema": {f"encoder.module.{key}": value + 1 for key, value in state.items()},
        "contrast": {"params": torch.ones(5), "memory": torch.ones(8, 4)},
        "optimizer": optimizer.state_dict(),
        "epoch": 800,
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_contrast_landmark(tmp_path, twin, zipped):
    entries = read(tmp_path, contrast_landmark(state_of(twin), dataset="CelebA", model="resnet50"), zipped)
    assert str(entries.pop("opt.dataset")) == "CelebA"
    assert {entry.dtype.kind for entry in entries.values()} == {"f", "i"}
    equal(convert(entries, twin.depth), expected(twin))


@pytest.mark.parametrize(
    ("options", "publisher", "normalization"),
    [
        (dict(dataset="CelebA"), "ContrastLandmark's query encoder of CelebA", CELEBA),
        (dict(dataset="InatAve"), "ContrastLandmark's query encoder of InatAve", IMAGENET),
        (dict(dataset="imagenet100"), "CMC's query encoder of imagenet100", IMAGENET),
        (dict(dataset=3), "ContrastLandmark's query encoder, taken to be of CelebA", CELEBA),
    ],
)
def test_the_normalisation_follows_from_the_images(tmp_path, options, publisher, normalization):
    state = {"conv1.weight": torch.ones(WIDTH, 3, 7, 7)}
    found = resnet.facts(read(tmp_path, contrast_landmark(state, **options)))
    assert found["taken_for"] == publisher
    assert found["normalization"] == {"mean": list(normalization[0]), "std": list(normalization[1])}


@pytest.fixture(scope="module")
def model():
    """A narrow network of transformers, with its classifier."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_sizes=[16, 32, 64, 128], embedding_size=WIDTH, num_labels=7)
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).eval()
    twins.randomize(model, np.random.default_rng(3))
    return model


def test_transformers(tmp_path, model):
    whole, part = entries_of(model.state_dict()), entries_of(model.resnet.state_dict())
    assert "resnet.encoder.stages.3.layers.2.layer.2.convolution.weight" in whole
    assert "classifier.1.weight" in whole
    variables = convert(whole, 50)
    equal(convert(part, 50), variables)
    for entries in (whole, part):
        assert resnet.facts(entries)["taken_for"] == "transformers' network, a ResNet-50"
    x = reference.images(1, 46, 65).astype(np.float32)
    network = ResNet(50, WIDTH)
    found = jax.jit(lambda v, x: network.apply(v, x, train=False)["layer4"])(variables, x)
    with torch.no_grad():
        theirs = twins.to_numpy(model.resnet(twins.to_torch(x)).last_hidden_state)
    assert reference.relative(np.asarray(found), theirs) < 1e-5


def test_transformers_of_depth_18():
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_sizes=[4, 8, 16, 32], depths=[2, 2, 2, 2], embedding_size=WIDTH, layer_type="basic")
    model = transformers.ResNetModel(transformers.ResNetConfig(**sizes))
    twins.randomize(model, np.random.default_rng(4))
    entries = entries_of(model.state_dict())
    variables = convert(entries, 18)
    block = "encoder.stages.2.layers.0"
    np.testing.assert_array_equal(
        variables["params"]["layer3_0"]["downsample_0"]["kernel"],
        entries[f"{block}.shortcut.convolution.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["layer3_0"]["bn2"]["var"], entries[f"{block}.layer.1.normalization.running_var"]
    )


def test_folders_of_transformers(tmp_path, model, monkeypatch):
    monkeypatch.setattr(resnet, "_shapes", lambda depth, width, last, shapes=resnet._shapes: shapes(depth, WIDTH, last))
    src, dst = tmp_path / "resnet-50", tmp_path / "dst"
    model.save_pretrained(src)
    source = converter.convert("resnet50", str(src), str(dst))
    assert source["taken_for"] == "transformers' network, a ResNet-50"
    equal(weights.load(dst, "resnet50"), convert(entries_of(model.state_dict()), 50))
    good = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(good | {"downsample_in_bottleneck": True}))
    said = refusal(converter.convert, "resnet50", str(src), str(dst))
    assert "says downsample_in_bottleneck=True, and --kind=resnet50 takes False; give ResNet-50" in said


def test_entries_that_do_not_fit_are_named(twin):
    entries = entries_of(state_of(twin))

    def without(*keys):
        return {key: value for key, value in entries.items() if key not in keys}

    said = lambda entries: refusal(convert, entries, twin.depth)
    assert "'layer2.0.downsample.1.running_var' is missing" in said(without("layer2.0.downsample.1.running_var"))
    assert "'bn1.bias' (and 1 more) is missing" in said(without("bn1.bias", "layer4.1.bn2.weight"))
    assert "'head.weight' is used by nothing" in said(entries | {"head.weight": np.ones(3)})
    wide = said(entries | {"layer1.0.conv1.weight": np.ones((8, 4, 1, 1))})
    assert "'layer1.0.conv1.weight' has shape (8, 4, 1, 1), not (4, 4, " in wide
    assert "not finite" in said(entries | {"bn1.running_var": np.full(WIDTH, np.inf)})
    assert "'a' is used by nothing" in said({"a": np.ones(3)})
    # Of the six entries of a convolution and its normalisation, `num_batches_tracked` may be missing.
    assert f"(and {len(without('fc.weight', 'fc.bias')) * 5 // 6 - 1} more) is missing" in said({"a": np.ones(3)})
    both = entries | {f"teacher.{key}": value for key, value in entries.items()}
    assert "holds several networks, '*' and 'teacher.*'; save one of them alone" in said(both)


def test_another_depth_is_told(twin):
    entries, other = entries_of(state_of(twin)), 68 - twin.depth
    said = refusal(convert, entries, other)
    expected = (
        f"is a ResNet-{twin.depth}, and --kind=resnet{other} takes a ResNet-{other}; use --kind=resnet{twin.depth}"
    )
    assert expected in said
    deep, deepest = (
        {f"module.{key}": value for key, value in entries_of(reference.torch_twin(depth, WIDTH).state_dict()).items()}
        for depth in (101, 152)
    )
    assert "is a ResNet-101" in refusal(convert, deep, other)
    assert "use --kind=resnet101" in refusal(convert, deep, other)
    assert "is a ResNet-152" in refusal(convert, deepest, other)
    assert f"give a ResNet-{other}" in refusal(convert, deepest, other)


def test_resnet101(tmp_path):
    twin = reference.torch_twin(101, WIDTH, classes=7)
    twins.randomize(twin, np.random.default_rng(101))
    state = state_of(twin)
    assert len(state) == 626
    entries = read(tmp_path, state)
    equal(convert(entries, 101), expected(twin))
    assert resnet.facts(entries)["taken_for"] == "torchvision's network, a ResNet-101"


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("place", ["beside", "within"])
def test_no_other_class_than_a_namespace_is_made(tmp_path, place):
    trap, state = tmp_path / "sprung", {"conv1.weight": torch.ones(WIDTH, 3, 7, 7)}
    options = {"hook": Trap(trap)} if place == "within" else {}
    content = contrast_landmark(state, dataset="CelebA", **options)
    content |= {"amp": Trap(trap)} if place == "beside" else {}
    said = refusal(read, tmp_path, content)
    assert "a.pth holds Python objects, which are not unpickled because they may run any code" in said
    assert "(the first: getattr)" in said
    assert not trap.exists()
    # Other kinds take no Namespace either.
    torch.save(contrast_landmark(state), tmp_path / "a.pth")
    assert "(the first: argparse.Namespace)" in refusal(files.read, str(tmp_path / "a.pth"), nested=resnet.NESTED)


def test_the_command_tells_what_the_file_was_taken_for(tmp_path, uld):
    """A file of the published size, kept small by repeating one number, which a PyTorch file stores once."""
    with torch.device("meta"):
        shapes = reference.torch_twin(50, classes=128).state_dict()
    assert len(shapes) == 320
    state = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in shapes.items()}
    torch.save(contrast_landmark(state, dataset="CelebA"), tmp_path / "moco_CelebA.pth")
    code, out, err = uld(
        "convert", "--kind=resnet50", f"--src={tmp_path / 'moco_CelebA.pth'}", f"--dst={tmp_path / 'dst'}"
    )
    assert code == 0, err
    first, second, third = out.splitlines()
    assert first == (
        "taken for ContrastLandmark's query encoder of CelebA, a ResNet-50; its images have mean (0.5084, 0.4224, "
        "0.3769), standard deviation (0.2599, 0.2371, 0.2323)"
    )
    assert second.startswith("320 entries, 23508032 parameters; licence: ")
    assert "--config.weights.resnet50=" in third
    source = weights.read_source(tmp_path / "dst", "resnet50")
    assert source["normalization"] == {"mean": [0.5084, 0.4224, 0.3769], "std": [0.2599, 0.2371, 0.2323]}
    assert source["taken_for"] == "ContrastLandmark's query encoder of CelebA, a ResNet-50"

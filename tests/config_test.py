"""Configs from files and names to stages, and the sentences that refuse what is misspelt."""

import dataclasses
import importlib
import json
import pathlib

import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax import legacy
from uld_jax.errors import UserError
from uld_jax.methods import (
    cgb,
    duld,
    duld_stage,
    heatmap_detector,
    self_training,
    self_training_common,
    self_training_extended,
    shared,
    zeroshot,
)

SPEC = "zeroshot:dataset=synthetic,k=5,preset=tiny"


def test_a_config_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    assert config_lib.resolve("zeroshot:k=3").endswith("/zeroshot.py:k=3")
    path = tmp_path / "mine.py"
    path.write_text(
        "from uld_jax.configs import zeroshot\n\n\n"
        "def get_config(arg=None):\n"
        "    config = zeroshot.get_config(arg)\n"
        "    config.seed = 77\n"
        "    return config\n"
    )
    assert config_lib.resolve(f"{path}:a=1") == f"{path}:a=1"
    for name in ("papers/cgb_mafl", "papers/cgb_mafl.py", "configs/papers/cgb_mafl.py"):
        assert config_lib.resolve(f"{name}:k=3").endswith("/papers/cgb_mafl.py:k=3")
    assert config_lib.load(f"{path}:k=3,preset=tiny").seed == 77
    monkeypatch.chdir(tmp_path)  # a file here goes before the one that ships with the package
    assert config_lib.resolve("configs/zeroshot.py:k=3") == config_lib.resolve("zeroshot:k=3")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "zeroshot.py").write_text(path.read_text().replace("77", "78"))
    assert config_lib.load("configs/zeroshot.py:preset=tiny").seed == 78
    assert config_lib.load("zeroshot:preset=tiny").seed == 0


def test_what_ships_is_what_the_checkout_has():
    below = lambda root: sorted(str(path.relative_to(root)) for path in root.rglob("*.py"))
    assert below(config_lib.folder()) == below(tiny.ROOT / "configs")
    names = config_lib.shipped()
    assert names[: len(tiny.SHIPPED)] == tiny.SHIPPED
    assert "papers/lead_celeba" in names
    assert not {"common", "__init__", "papers/__init__"} & {*names}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nothing", "there is no config 'nothing'; use a path or one of .*zeroshot, papers/c3_aflw, .*, papers/cgb_"),
        ("cgb_mafl", "there is no config 'cgb_mafl'"),
        ("papers/common", "there is no config 'papers/common'"),
        ("common", "there is no config 'common'"),
        ("zeroshot:colour=3", "'colour=3' is not understood"),
        ("zeroshot:k", "'k' is not understood"),
        ("zeroshot:k=many", "'many' is not a number"),
        ("zeroshot:k=0", "k is 0; use 1 or more"),
        ("zeroshot:preset=huge", "preset is 'huge'; use one of paper, small, tiny"),
    ],
)
def test_a_bad_argument_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        config_lib.load(spec)


def test_overrides_reach_any_depth():
    config = config_lib.load(
        SPEC, **{"seed": 4, "detector.steps": 7, "zeroshot.backbone_kwargs.bins": 6, "data.rows": (3, 2)}
    )
    assert (config.seed, config.detector.steps, config.zeroshot.backbone_kwargs.bins) == (4, 7, 6)
    assert config.data.rows == (3, 2)
    assert config.is_locked
    assert config_lib.stage(config, "detector").steps == config_lib.stage(config, "detector").method.steps == 7
    assert dict(config_lib.stage(config, "zeroshot").method.backbone_kwargs)["bins"] == 6


@pytest.mark.parametrize("key", ["sead", "detector.wdith", "detectr.width", "data.rows.first"])
def test_an_unknown_override_is_refused(key):
    with pytest.raises(UserError, match=f"config has no key '{key}'; its keys are "):
        config_lib.load(SPEC, **{key: 1})


def test_stages_are_built_with_what_they_share():
    config = config_lib.load(SPEC, dtype="bfloat16", accumulate_steps=2)
    first, second = (config_lib.stage(config, name) for name in config.stages)
    assert (first.name, first.steps, type(first.method)) == ("zeroshot", 0, zeroshot.ZeroShot)
    assert (second.name, second.steps, type(second.method)) == ("detector", 40, heatmap_detector.HeatmapDetector)
    assert first.method.k == second.method.k == 5
    assert first.method.frame_size == second.method.frame_size == config.data.frame_size
    assert (second.method.dtype, second.method.accumulate_steps) == ("bfloat16", 2)
    with config.unlocked():
        config.detector.k = 6  # a stage's own value goes before the shared one
    assert config_lib.stage(config, "detector").method.k == 6


def test_a_stage_sees_its_own_batch_or_the_runs():
    config = config_lib.load(SPEC, **{"detector.batch_size": 12})
    assert [config_lib.stage(config, name).batch_size for name in config.stages] == [config.batch_size, 12]
    with config.unlocked():
        del config.detector["batch_size"]  # a config from before
    assert config_lib.stage(config, "detector").batch_size == config.batch_size
    with pytest.raises(UserError, match=r"config\.detector\.batch_size is -1; use 1 or more, or 0 for"):
        config_lib.stage(config_lib.load(SPEC, **{"detector.batch_size": -1}), "detector")
    config = config_lib.load(SPEC, **{"detector.batch_size": 12, "detector.accumulate_steps": 3})
    assert config_lib.stage(config, "detector").method.accumulate_steps == 3
    for changes, said in (
        ({"accumulate_steps": 2, "detector.batch_size": 9}, r"config\.accumulate_steps is 2, .* batch of 9 of stage"),
        ({"detector.accumulate_steps": 3}, r"config\.detector\.accumulate_steps is 3, .* batch of 8 of stage"),
    ):
        with pytest.raises(UserError, match=said):
            config_lib.stage(config_lib.load(SPEC, **changes), "detector")


def test_methods_can_be_hashed_and_compared():
    """`jax.jit` takes a method's bound functions, so that equal hyper-parameters must be one method."""
    for name in tiny.SHIPPED:
        for stage in tiny.config(name).stages:
            one, two = (config_lib.stage(tiny.config(name), stage).method for _ in range(2))
            assert one == two
            assert hash(one) == hash(two)
    other = config_lib.stage(tiny.config(**{"zeroshot.backbone_kwargs.bins": 5}), "zeroshot").method
    assert other != config_lib.stage(tiny.config(), "zeroshot").method
    hash(other)


def bad(**changes):
    config = config_lib.load(SPEC).copy_and_resolve_references()
    with config.unlocked():
        for key, value in changes.items():
            section, _, field = key.rpartition("__")
            (config[section] if section else config)[field] = value
    return config


def test_a_bad_stage_is_refused():
    with pytest.raises(UserError, match="no stage 'last' in this config; its stages are zeroshot, detector"):
        config_lib.stage(config_lib.load(SPEC), "last")
    with pytest.raises(UserError, match=r"no stage 'third' in this config; its stages are detector, zeroshot$"):
        config_lib.stage(bad(stages=("zeroshot", "third")), "third")
    with pytest.raises(UserError, match=r"config\.detector\.steps is -1; use 0 or more"):
        config_lib.stage(bad(detector__steps=-1), "detector")
    for method in ("zeroshot.Nothing", "nothing.ZeroShot", "ZeroShot"):
        with pytest.raises(UserError, match=rf"config\.detector\.method is '{method}'.*write it as module\.Class"):
            config_lib.stage(bad(detector__method=method), "detector")
    with pytest.raises(UserError, match=r"config\.detector\.wdith is no hyper-parameter .* it has .*\bwidth\b"):
        config_lib.stage(bad(detector__wdith=3), "detector")


# Keys that stages had when both papers of self-training were classes of one file, with a key `variant`.
GONE = {
    "neurips": {
        "stage1": {"background": 128, "apart": 5.7},
        "stage2": {
            "merge_radius": 1.425,
            "loss_over": "labelled",
            "cutout": 0.0,
            "head_rate": 0.0,
            "mirroring": "auto",
        },
    },
    "extended": {
        "stage1": {"memory": "none", "cut": 0.0, "assignment": "nearest", "seeding": "random", "negatives": "within"},
        "stage2": {"merge_radius": 1.425, "loss_over": "all", "clusters": 6, "threshold": 0.2, "merge_from": 5},
    },
}


@pytest.mark.parametrize("variant", GONE)
def test_stages_of_earlier_versions_are_those_of_today(variant):
    config = config_lib.load(f"self_training:preset=tiny,variant={variant}").copy_and_resolve_references()
    old = config.copy_and_resolve_references().unlock()
    for name, kind in (("stage1", "Correspondence"), ("stage2", "Landmarks")):
        flat = config[name].to_dict()  # of a version before there were sections
        for part in [key for key, value in flat.items() if isinstance(value, dict)]:
            flat |= flat.pop(part)
        old[name] = flat | GONE[variant][name] | {"variant": variant, "method": f"self_training.{kind}"}
        assert config_lib.stage(old, name) == config_lib.stage(config, name)
        assert config_lib.stage(config, name).method.__module__.endswith("extended") == (variant == "extended")
    old.stage2.loss_over = "all" if variant == "neurips" else "labelled"
    with pytest.raises(UserError, match=r"config\.stage2\.loss_over is '.*', which only earlier versions have; use "):
        config_lib.stage(old, "stage2")
    old.stage1 = config.stage1.to_dict() | {"variant": "other"}
    with pytest.raises(UserError, match=r"config\.stage1\.variant is no hyper-parameter"):
        config_lib.stage(old, "stage1")


def test_steps_that_a_stage_cannot_take_are_refused():
    with pytest.raises(UserError, match=r"the stage zeroshot has nothing to train; set config\.zeroshot\.steps=0"):
        config_lib.stage(bad(zeroshot__steps=5), "zeroshot")
    for spec, alone, pairs in (("self_training", ("keypoints", "stage2"), "stage1"), ("duld", ("bootstrap",), "duld")):
        config = config_lib.load(f"{spec}:preset=tiny", **{"data.partner": False})
        with pytest.raises(UserError, match=rf"{pairs} learns from pairs of images; set config\.data\.partner=True"):
            config_lib.stage(config, pairs)
        for name in alone:
            config_lib.stage(config, name)


def test_defaults_are_those_of_the_class():
    found = config_lib.defaults("methods", "heatmap_detector.HeatmapDetector").to_dict()
    fields = {f.name: f for f in dataclasses.fields(heatmap_detector.HeatmapDetector)}
    assert set(found) == {n for n in fields if n not in config_lib.SHARED}
    plain = lambda x: dataclasses.asdict(x) if dataclasses.is_dataclass(x) else x
    assert all(found[n] == plain(fields[n].default) for n in found)
    assert "bins" in config_lib.defaults("backbones", "gradient.GradientHistograms")
    with pytest.raises(UserError, match=r"uld_jax\.backbones has no such class"):
        config_lib.defaults("backbones", "gradient.Histograms")


def test_the_folder_of_configs_is_real():
    assert isinstance(config_lib.folder(), pathlib.Path)
    assert (config_lib.folder() / "common.py").is_file()


def test_which_weights_the_stages_look_for():
    """A folder that nothing reads is refused; what reads one depends on how the stages are set."""

    def read(name, more=None, **overrides):
        config = tiny.config(name, more=more, **overrides)
        with config.unlocked():
            config.weights.update(dict.fromkeys(config.weights, "DIR"))
        stages = [config_lib.stage(config, name) for name in config.stages]
        return set(config.weights) - set(config_lib.unread_weights(config, stages))

    assert read("zeroshot") == set()
    assert read("zeroshot", ",backbone=dinov2.Dinov2+r2d2.R2D2") == {"dinov2", "r2d2"}
    assert read("imm") == {"vgg16_colorization"}
    assert read("duld") == {"dhf_aggregator"}
    assert "fan" not in read("cgb")
    assert "fan" in read("cgb", ",init=checkpoint")
    assert "mallis" in read("self_training", **{"stage1.start": "checkpoint"})
    assert "mallis" not in read("self_training")


def test_weights_that_some_of_several_runs_look_for_are_fine():
    def built(**overrides):
        config = tiny.config("self_training", **{"weights.r2d2": "DIR"} | overrides)
        return config, [config_lib.stage(config, name) for name in config.stages]

    corners, r2d2 = built(**{"keypoints.detector": "corners"}), built(**{"keypoints.detector": "r2d2"})
    config_lib.check_weights_are_read([corners, r2d2])
    with pytest.raises(UserError, match=r"config.weights.r2d2=DIR is looked for by none of the stages keypoints"):
        config_lib.check_weights_are_read([corners])


def test_keys_are_set_in_a_config_that_there_is():
    config = config_lib.load(SPEC).unlock()
    config_lib.override(config, ["eval.min_found=0.3", "data.rows=(3,2)", "seed=7"])
    assert (config.eval.min_found, config.data.rows, config.seed) == (0.3, (3, 2), 7)
    for change, why in (
        ("eval.min_fond=1", "no key 'eval.min_fond'; did you mean eval.min_found"),
        ("seed=one", "seed"),
    ):
        with pytest.raises(UserError, match=why):
            config_lib.override(config.copy_and_resolve_references().unlock(), [change])


# Keys of the sections that stages no longer have.
OLD_SECTIONS = {
    "kmeans": {"restarts", "iterations"},
    "contrast": {"descriptor_weight", "squared", "margin", "background", "apart"},
}


def stages_by_class():
    """A config and the name of a stage, for every class of stages."""
    found = {}
    for spec in ("cgb:init=zeroshot", "imm", "duld", "self_training", "self_training:variant=extended"):
        config = config_lib.load(f"{spec}{',' if ':' in spec else ':'}preset=tiny").copy_and_resolve_references()
        found |= {config[name].method: (config, name) for name in config.stages}
    return found


def with_old_keys(path: str, values: dict, sections: bool) -> dict:
    """Keys of a stage as they were when its constants were hyper-parameters; without `sections`, all in one row."""
    if not sections:
        for part in [key for key, value in values.items() if isinstance(value, dict) and key != config_lib.KWARGS]:
            values |= values.pop(part)
        return values | {key.rpartition(".")[2]: value for key, value in legacy.CONSTANTS[path].items()}
    values |= {key: value for key, value in legacy.CONSTANTS[path].items() if "." not in key}
    for key, value in legacy.CONSTANTS[path].items():
        part, _, field = key.rpartition(".")
        if part:
            values[part][field] = value
    if part := legacy.SECTIONS.get(path):
        values[part] = {key: values.pop(key) for key in OLD_SECTIONS[part] & set(values)}
    return values


@pytest.mark.parametrize("sections", [True, False])
@pytest.mark.parametrize("path", sorted(legacy.CONSTANTS))
def test_keys_of_finished_runs_that_are_constants_now(path, sections):
    config, name = stages_by_class()[path]
    now = config_lib.stage(config, name).method
    values = with_old_keys(path, config[name].to_dict(), sections)
    # In a config.json tuples are lists.
    old = config.copy_and_resolve_references().unlock()
    old[name] = json.loads(json.dumps(values))
    assert config_lib.stage(old, name).method == now
    for key, value in legacy.CONSTANTS[path].items():
        section, _, field = key.rpartition(".")
        part = old[name] if field in old[name] else old[name][section or legacy.SECTIONS[path]]
        part[field] = {bool: not value, str: "other", tuple: [1, 2, 3]}.get(type(value), 7)
        said = rf"config\.{name}\.({section}\.)?{field} is .*, which only earlier versions have; use "
        with pytest.raises(UserError, match=said):
            config_lib.stage(old, name)
        part[field] = value


def test_constants_have_the_values_that_finished_runs_may_have():
    """Of each class, its module and the modules that it takes constants from."""
    where = {
        "duld": (duld, duld_stage),
        "self_training": (self_training, self_training_common),
        "self_training_extended": (self_training_extended, self_training, self_training_common),
    }
    seen = set()
    for path, keys in legacy.CONSTANTS.items():
        module = path.partition(".")[0]
        for key, value in keys.items():
            name = key.rpartition(".")[2].upper()
            for one in where.get(module, (importlib.import_module(f"uld_jax.methods.{module}"),)):
                if hasattr(one, name):
                    assert getattr(one, name) == value, (path, key)
                    seen.add((module, name))
                    break
    assert len(seen) > 30
    assert (legacy.CONSTANTS["cgb.CGB"]["beta1"], legacy.CONSTANTS["cgb.CGB"]["beta2"]) == cgb.BETAS
    assert legacy.CONSTANTS["self_training.Landmarks"]["optimizer.l2"] == shared.RMSPROP_L2


def test_a_key_that_is_a_constant_elsewhere_is_unknown():
    config = config_lib.load(SPEC).unlock()
    config.detector.code_margin = 0.8
    with pytest.raises(UserError, match="code_margin is no hyper-parameter"):
        config_lib.stage(config, "detector")


def test_every_config_loads_with_every_data_set_it_names():
    for name in tiny.SHIPPED:
        for preset in ("paper", "small", "tiny"):
            for dataset in ("synthetic", "folder"):
                config = config_lib.load(f"{name}:dataset={dataset},preset={preset}")
                assert [config_lib.stage(config, s).name for s in config.stages] == list(config.stages)
                assert config.is_locked


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("detektor.width", r"no key 'detektor\.width'; did you mean detector\?"),
        ("detector.nett.width", r"no key 'detector\.nett\.width'; did you mean detector\.net"),
        ("detector.widht", r"no key 'detector\.widht'; did you mean detector\.width"),
        ("detector.net.widht", r"no key 'detector\.net\.widht'; did you mean detector\.net\.width\?"),
        ("zeroshot.learning_rate", r"no key 'zeroshot\.learning_rate'; it is a key of detector"),
        ("detector.qqqq", r"no key 'detector\.qqqq'; docs/configs\.md and the stage's class name all keys"),
    ],
)
def test_a_key_that_is_not_there_is_told_what_it_may_mean(key, hint):
    spec = "zeroshot:dataset=synthetic,preset=tiny"
    with pytest.raises(UserError, match=hint):
        config_lib.parse_flags(["uld", f"--config={config_lib.resolve(spec)}", f"--config.{key}=1"])
    config = config_lib.load(spec)
    with config.unlocked(), pytest.raises(UserError, match=hint):
        config_lib.override(config, [f"{key}=1"])


def test_keys_find_their_section_on_the_command_line():
    spec = config_lib.resolve("zeroshot:dataset=synthetic,preset=tiny")
    flags = ["--config.detector.width=24", "--config.detector.net.depth=2", "--config.seed=3"]
    config = config_lib.parse_flags(["uld", f"--config={spec}", *flags])
    assert (config.detector.net.width, config.detector.net.depth, config.seed) == (24, 2, 3)

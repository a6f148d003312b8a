"""The configs of published measurements: they load, and their headers agree with registry, data sets and pages."""

import ast
import contextlib
import io
import json
import re
import shlex
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from uld_jax.configs import papers

from tests import docs_test, tiny
from tests.data.builders import celeba_test, miniature
from uld_jax import __main__
from uld_jax import config as config_lib
from uld_jax.cli.flags import Flags
from uld_jax.data import builders
from uld_jax.evaluation import protocols
from uld_jax.evaluation.dense import protocols as dense
from uld_jax.studies import results

NAMES = [name.removeprefix("papers/") for name in config_lib.shipped() if name.startswith("papers/")]
PAGE = tiny.ROOT / "docs" / "papers.md"
every = pytest.mark.parametrize("name", NAMES)


def header(name):
    return ast.get_docstring(ast.parse((tiny.ROOT / f"configs/papers/{name}.py").read_text()))


def expected(name):
    """(numbers, id) of each line of a header that has numbers to expect."""
    return re.findall(r"^Expected: (.+) \(([\w+]+)\)$", header(name), re.MULTILINE)


def commands(name):
    """The commands of a header, each a list of words without `uld`."""
    return [shlex.split(line)[1:] for line in header(name).splitlines() if line.startswith("    uld ")]


def flags_of(words):
    return dict(word.removeprefix("--").split("=", 1) for word in words[1:])


def measured(name):
    """(command, its flags, its data set) of each measurement of a header."""
    own = config_lib.load(f"papers/{name}").dataset
    for words in commands(name):
        if words[0] in ("evaluate", "dense", "align"):
            flags = flags_of(words)
            yield words[0], flags, flags.get("dataset", own)


def test_every_method_has_some():
    assert all(any(name.startswith(f"{method}_") for name in NAMES) for method in tiny.SHIPPED)


@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
@every
def test_a_config_loads_and_its_stages_are_built(name, preset):
    config = config_lib.load(f"papers/{name}:preset={preset}")
    assert config.is_locked
    assert [config_lib.stage(config, stage).name for stage in config.stages] == list(config.stages)
    other = config_lib.load(f"configs/papers/{name}.py:preset={preset},dataset=folder,k=7")
    assert (other.dataset, other.k) == ("folder", 7)


@every
def test_the_network_sees_the_papers_view(name):
    config = config_lib.load(f"papers/{name}")
    for stage in (config_lib.stage(config, stage).method for stage in config.stages):
        view = getattr(stage, "view", None)
        if view is not None:
            assert view.image_size <= round(view.zoom * config.data.frame_size)  # nothing is enlarged


@pytest.mark.parametrize(("name", "stage"), [("imm_mafl", "imm"), ("cgb_cats", "cgb"), ("c3_mafl", "joint")])
def test_a_stored_crop_is_shown_pixel_by_pixel(name, stage):
    config = config_lib.load(f"papers/{name}")
    method, side = config_lib.stage(config, stage).method, config.data.frame_size
    assert (side, config.data.fit) == (128, "stretch")
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    seen = method.view.geometry(side, 1, "float32").look(jnp.asarray(image))
    np.testing.assert_allclose(seen, image / 255, atol=1e-5)


@every
def test_the_commands_of_a_header_parse(name):
    found = commands(name)
    assert [words[0] for words in found][:2] in (["prepare", "train"], ["prepare", "prepare"])
    for words in found:
        with contextlib.redirect_stderr(io.StringIO()):
            docs_test.parse(words)
    (train,) = (words for words in found if words[0] == "train")
    assert f"--config=configs/papers/{name}.py" in train
    # A measurement is of the run that was trained.
    runs = {flags_of(words)["workdir"] for words in found if "workdir" in flags_of(words)}
    assert len(runs) == 1


@every
def test_the_commands_prepare_all_data_sets(name):
    prepared = {flags_of(words)["dataset"] for words in commands(name) if words[0] == "prepare"}
    config = config_lib.load(f"papers/{name}")
    assert prepared == {config.dataset, *(dataset for _, _, dataset in measured(name))}
    assert prepared <= {*builders.DATASETS}


@every
def test_every_weight_that_a_stage_needs_is_in_the_command(name):
    (train,) = (words for words in commands(name) if words[0] == "train")
    config = config_lib.load(f"papers/{name}")
    given = {key.removeprefix("config.weights.") for key in flags_of(train) if key.startswith("config.weights.")}
    with config.unlocked():
        config.weights.update(dict.fromkeys(config.weights, "DIR"))
    stages = [config_lib.stage(config, stage) for stage in config.stages]
    needed = {*config.weights} - {*config_lib.unread_weights(config, stages)}
    assert given == needed - {"gcn_v", "dhf_aggregator"}  # which ships with the library, and which is supervised


def ids_of(command, flags, dataset, config):
    """Ids of the rows that a measurement has, as the command finds them."""
    rows = [row for row in protocols.ROWS if row.command == command and row.data.name == dataset]
    if command == "evaluate":
        stable = [row.id for row in rows if row.metric == "stability"]
        rows = [row for row in rows if row.errors]
        if flags.get("config.eval.stability_images") == "0":
            return {*stable, *(row.id for row in rows if row.id == flags.get("protocol"))}
    if dataset in builders.DATASETS:
        landmarks = builders.DATASETS[dataset].landmarks or 0
        rows = [row for row in rows if row.data.landmarks == landmarks]
    if command == "evaluate":
        if "protocol" in flags:
            return {row.id for row in rows if row.id == flags["protocol"]}
        auto = (protocols.of_paper(config.eval.paper, *row.data[:3]) for row in rows)
        return {row.id for row in auto if row is not None}
    if command == "align":
        return {row.id for row in rows if row.choices == flags.get("protocol", "pf_pascal_ncnet")}
    epochs = int(flags["epochs"]) if "epochs" in flags else None
    labels, ids = flags.get("labels", "all").split(","), set()
    for row in rows:
        preset = dense.preset(flags.get("protocol", "lead2022"), row.data.landmarks, epochs=epochs)
        data = row.id.partition("+")[0]
        made = {preset.id(data, "matching")} if "matching" in flags["measure"] else set()
        if "regression" in flags["measure"]:
            made |= {preset.id(data, "regression", preset.full)} if "all" in labels else set()
            made |= {preset.id(data, "regression", preset.few, preset.repeats)} if set(labels) - {"all"} else set()
        ids |= {row.id} & made
    return ids


@every
def test_a_header_names_the_protocols_by_which_its_commands_measure(name):
    config = config_lib.load(f"papers/{name}")
    named = {id for _, id in expected(name)} | {*re.findall(r"measures by ([\w+]+)\.", header(name))}
    assert named <= {*protocols.BY_ID}
    assert named == set().union(*(ids_of(*one, config) for one in measured(name)))
    assert named or name in ("c3_lsun_car", "c3_lsun_bedroom")  # there is nothing to measure errors by


@every
def test_a_header_has_a_number_or_says_why_not(name):
    first, *_ = header(name).splitlines()
    assert re.match(r"(IMM|CGB|(Extended s|S)elf-training|ZeroShot|D-ULD.*|C3|LEAD)\b.* \(.*\b(20\d\d|Awan).*\)", first)
    assert expected(name) or re.search(r"^No (number|protocol): ", header(name), re.MULTILINE)
    for numbers, _ in expected(name):
        assert re.search(r"\d+\.\d", numbers)


def rows_of_the_page():
    """(text of the row, the names of its configs) of each row of the page's tables that names some."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("|") and (named := re.findall(r"`papers/(\w+)", line)):
            yield line, named


def test_the_page_has_every_config_with_its_ids():
    found = {name: [] for name in NAMES}
    for line, named in rows_of_the_page():
        for name in named:
            found[name].append(line)
    for name, lines in found.items():
        named = {id for _, id in expected(name)} | {*re.findall(r"measures by ([\w+]+)\.", header(name))}
        assert lines, f"{PAGE.name} lacks papers/{name}"
        for id in named:
            assert f"`{id}`" in "".join(lines), f"{PAGE.name} lacks {id} of {name}"
    ids = re.findall(r"`((?:mafl|aflw|ls3d|cat|w300|human36m|bbc_pose|pf_pascal)_[\w+]*\d[\w+]*)`", PAGE.read_text())
    assert len(ids) > 30
    assert {*ids} <= {*protocols.BY_ID}


def test_headers_have_the_quoted_numbers():
    """Where the tables of quotations have a number, the header has the same."""
    checked = 0
    for table in ("imm", "cgb", "self_training", "duld", "c3", "lead"):
        for row in results.read(f"papers/{table}", tiny.ROOT)["rows"]:
            name = re.search(r"`papers/(\w+)", row["row"][1])[1]
            text = " ".join(numbers for numbers, _ in expected(name))
            for cell in filter(None, row["cells"]):
                for number in results.number(cell["table"], cell["row"], cell["keys"], tiny.ROOT).split(" / "):
                    assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), (name, cell)
                    checked += 1
    assert checked > 30


def test_arguments_and_sizes_are_the_methods_own_in_other_presets():
    assert config_lib.load("papers/cgb_mafl:preset=tiny,init=scratch").stages == ("warmup", "cgb")
    for preset, side in (("tiny", 40), ("small", 80), ("paper", 128)):
        assert config_lib.load(f"papers/cgb_mafl:preset={preset}").data.frame_size == side
    small, own = (config_lib.load(f"{spec}:preset=small") for spec in ("papers/cgb_mafl", "cgb"))
    assert small.cgb.detector_rate == own.cgb.detector_rate
    mine = config_lib.load("papers/duld_ls3d:dataset=ls3d_mallis")
    assert (mine.data.frame_size, mine.duld.view.zoom) == (256, 1.0)  # the view is that of the data set


def test_keys_of_a_method_stay_those_of_its_own_config():
    """Nothing but the view differs where a paper sets nothing."""
    config, own = config_lib.load("papers/duld_aflw"), config_lib.load("duld:dataset=aflw_r")
    with own.unlocked():
        own.data.fit = "stretch"
    assert config.to_dict() == own.to_dict()
    assert papers.SHOWN["aflw_r"] == ("stretch", 0, 1.0)


def test_flags_of_a_paper_are_those_of_its_config():
    flags = Flags()
    flags.config()
    values = flags.parse(["uld", "--config=papers/cgb_mafl:preset=tiny", "--config.cgb.bottleneck=fixed"])
    assert values.config.cgb.bottleneck == "fixed"


def small_celeba(root):
    """Writes the official folder of CelebA and MAFL with 30 images."""
    names, lists = celeba_test.NAMES, {}
    for name in names:
        miniature.picture(root / "img_align_celeba" / name, (218, 178))
    lists["list_eval_partition"] = [f"{name} {part}" for name, part in zip(names, celeba_test.PART, strict=True)]
    points = [[name, *celeba_test.points_of(i).ravel().astype(int)] for i, name in enumerate(names)]
    lists["list_landmarks_align_celeba"] = ["30", "names", *(" ".join(map(str, row)) for row in points)]
    lists |= {"mafl_training": celeba_test.MAFL_TRAIN, "mafl_testing": celeba_test.MAFL_TEST}
    for name, rows in lists.items():
        (root / f"{name}.txt").write_text("\n".join(rows))


@pytest.mark.slow
def test_a_row_is_two_commands_after_the_data_and_another_run_goes_on_from_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_celeba(tmp_path / "CELEBA")
    tiny_size = ["--config.imm.steps=4", "--config.eval.stability_images=8"]

    def run(words):
        words = [w.replace("imm_mafl.py", "imm_mafl.py:preset=tiny") if "--config=" in w else w for w in words]
        words = [w for w in words if "weights" not in w]
        more = {"prepare": ["--allow_partial"], "train": tiny_size}.get(words[0], [])
        monkeypatch.setattr(sys, "argv", ["uld", *words, *more])
        assert __main__.main() == 0, capsys.readouterr().err

    for words in commands("imm_mafl"):
        run(words)
    report = json.loads((tmp_path / "runs/imm_mafl/eval/mafl_imm_DATA_test/metrics.json").read_text())
    assert report["protocol"] == "mafl_5_imm+train_images=9+test_images=3"
    spec = "papers/imm_aflw:preset=tiny,dataset=mafl_imm"
    more = ["--config.data_dir=DATA", "--config.init_from=runs/imm_mafl", "--workdir=runs/more"]
    run(["train", f"--config={spec}", *more])
    assert json.loads((tmp_path / "runs/more/run.json").read_text())["init_from"]["stage"] == "imm"

"""The tables of papers: what is quoted of them, which stages repeat their rows, and in which cells runs stand."""

import contextlib
import doctest
import io
import json
import re

import pytest

from tests import docs_test, tiny
from uld_jax import config as config_lib
from uld_jax import viz
from uld_jax.cli import table as command
from uld_jax.engine import workdir
from uld_jax.errors import UserError
from uld_jax.evaluation import protocols
from uld_jax.studies import paper_rows, paper_runs, paper_table, results
from uld_jax.studies.paper_rows import PAPERS

TABLES = [(paper, name) for paper, one in PAPERS.items() for name in one.tables]
every = pytest.mark.parametrize(("paper", "name"), TABLES)


@every
def test_quoted_numbers_have_a_source_and_a_protocol_or_a_reason(paper, name):
    table = PAPERS[paper].tables[name]
    rows, measured = set(), {name.partition("+")[0] for name in protocols.BY_ID}
    for one in table.quoted:
        quoted = results.quoted(one)
        assert quoted == results.read(one, tiny.ROOT)
        for column in quoted["columns"]:
            assert column["measure"] in paper_rows.MEASURES
            assert column["data"]
        for record in quoted["records"]:
            assert re.search(r"\b(table|tables|figure) \d", record["source"])
            rows.add((one, ", ".join(record["row"])))
            for column in quoted["columns"]:
                protocol = paper_rows.protocol_of(record, column)
                if column["keys"][0] in record["numbers"]:
                    assert record["note"] if protocol is None else protocol in protocols.BY_ID or protocol in PAIRS
    assert measured
    assert {(row.table, row.name) for row in table.rows} <= rows
    assert bool(table.quoted) != bool(table.measures)


PAIRS = ("pf_pascal_ncnet+test+all_pairs",)  # `uld align` writes split and part behind the id


def test_every_table_of_quotations_is_of_a_paper():
    used = {one for paper, name in TABLES for one in PAPERS[paper].tables[name].quoted}
    assert used == {name for name in results.names(tiny.ROOT) if (tiny.ROOT / results.QUOTED / f"{name}.json").exists()}
    assert all(name in command.USAGE for name in PAPERS)
    assert all(next(iter(paper.tables)) == paper_rows.ERRORS for paper in PAPERS.values())


@every
def test_commands_that_measure_a_table_parse(paper, name):
    for words in PAPERS[paper].tables[name].measured:
        with contextlib.redirect_stderr(io.StringIO()):
            docs_test.parse(words.split())


def made(config, row):
    """The config of a paper with the words that make a row; None without its stage."""
    argument, overrides = paper_rows.words_of(row)
    loaded = config_lib.load(f"papers/{config}" + (f":{argument}" if argument else "")).copy_and_resolve_references()
    if row.stage not in loaded.stages:
        return None
    config_lib.override(loaded.unlock(), overrides)
    return loaded.to_dict()


@every
def test_a_config_with_the_words_of_a_row_repeats_that_row_alone(paper, name):
    table = PAPERS[paper].tables[name]
    for row in table.rows:
        every = {config: given for config in table.configs if (given := made(config, row)) is not None}
        assert every
        for config, given in every.items():
            assert paper_rows.repeats(given, row.stage, row), (config, row)
            same = [one for one in table.rows if (one.table, one.stage) == (row.table, row.stage)]
            found = {one.name for one in same if paper_rows.repeats(given, row.stage, one)}
            assert found == {row.name}, (config, row)


CELLS = {"both": "yes, yes", "cycle": "yes, no", "flow": "no, yes", "none": "no, no"}


@pytest.mark.parametrize(
    ("config", "stage", "table", "row"),
    [
        ("imm", "imm", "errors", "IMM"),
        ("cgb:init=zeroshot", "cgb", "errors", "CGB"),
        ("cgb", "warmup", "errors", None),
        ("cgb:init=scratch", "cgb", "errors", None),
        ("cgb:init=scratch", "cgb", "scratch", "CGB"),
        ("self_training", "stage2", "errors", "self-training"),
        ("self_training:variant=extended", "stage2", "errors", "self-training, extended"),
        ("zeroshot", "zeroshot", "errors", "ZeroShot"),
        ("zeroshot", "detector", "errors", None),
        ("duld", "duldpp", "errors", "D-ULD++"),
        ("duld", "duld", "errors", "D-ULD"),
        *((f"c3:cell={cell}", "joint", "ablation", row) for cell, row in CELLS.items()),
    ],
)
def test_stages_of_smaller_runs_repeat_rows_too(config, stage, table, row):
    run = tiny.config(config).to_dict()
    paper = PAPERS[config.partition(":")[0]]
    assert run[run["stages"][-1]]["method"].partition(".")[0] in paper.methods
    repeated = [one.name for one in paper.tables[table].rows if paper_rows.repeats(run, stage, one)]
    assert repeated == [row] * (row is not None)


# Finished runs, made of their files


@pytest.fixture
def finished(tmp_path):
    """Makes the files of a finished run, without training: a config of a paper, and reports by their paths."""

    def make(spec, reports, seed=0, lines=(), overrides=()):
        config = config_lib.load(f"papers/{spec}").copy_and_resolve_references().unlock()
        config.seed = seed
        config_lib.override(config, overrides)
        folder = tmp_path / "runs" / f"{len(list(tmp_path.glob('runs/*')))}"
        workdir.write_json(folder / "config.json", config.to_dict())
        workdir.write_json(folder / "run.json", {"data_fingerprint": "images", "init_from": None})
        steps = sum(config[stage].steps for stage in config.stages)
        text = [json.dumps(line) for line in (*lines, {"step": steps, "done": True})]
        (folder / "metrics.jsonl").write_text("\n".join(text) + "\n")
        for path, report in reports.items():
            workdir.write_json(folder / path, report)
        return folder

    make.root = tmp_path / "runs"
    return make


def table_of(paper, name, folder, **options):
    return paper_table.write(paper, str(folder), name=name, **options)[0]


def ours(record, row):
    """{(measure, K, protocol, part, whether it is a paper's column): mean} of the runs' row of a name."""
    rows = [one for one in record["rows"] if (one["name"], one["of"]) == (row, "runs")]
    assert len(rows) == 1, [one["name"] for one in record["rows"]]
    columns = record["columns"]
    keys = ("measure", "landmarks", "protocol", "part", "published")
    return {tuple(columns[cell["column"]][key] for key in keys): cell["mean"] for cell in rows[0]["cells"]}


def landmarks(**numbers):
    """A report of `uld evaluate`."""
    return {"split": "test", "stage": "cgb", "landmarks": 10, "protocol": None} | numbers


def test_stability_stands_in_its_cell_if_all_images_were_turned(finished):
    turned = "shoes+turned_15_px_128"
    reports = {"eval/test/metrics.json": landmarks(stability_px=2.5, stability_protocol=turned)}
    finished("cgb_shoes", reports)
    fewer = landmarks(stability_px=1.5, stability_protocol=f"{turned}+images=200")
    finished("cgb_shoes", {"eval/test/metrics.json": fewer}, overrides=["cgb.bottleneck=fixed"])
    record = table_of("cgb", "stability", finished.root)
    assert ours(record, "CGB") == {("stability", 10, turned, "", True): 2.5}
    assert ours(record, "baseline") == {("stability", 10, f"{turned}+images=200", "", False): 1.5}
    quoted = next(row for row in record["rows"] if (row["name"], row["of"]) == ("CGB", "paper"))
    assert [cell["mean"] for cell in quoted["cells"]] == [2.37, 1.77, 2.24, 3.23, 2.19]


def rounds(**more):
    """Lines of a training of CGB, whose first number is that of its clusters' age in epochs."""
    steps = (162_500, 162_550, 275_000, 275_050)
    scores = zip(steps, (0.1, 0.2, 0.3, 0.4), (10.0, 20.0, 30.0, 40.0), strict=True)
    return [dict(step=s, stage="cgb", silhouette=a, calinski_harabasz=b) | more for s, a, b in scores]


def test_clusters_of_a_training_stand_at_the_epochs_that_made_them(finished):
    finished("cgb_aflw", {}, lines=rounds(), overrides=["cgb.clustering=kmeans"])
    finished("cgb_aflw", {}, seed=1, lines=rounds(), overrides=["cgb.ring_size=40"])
    record = table_of("cgb", "clusters", finished.root)
    wanted = {
        ("silhouette", "epoch 65"): 0.2,
        ("calinski_harabasz", "epoch 65"): 20.0,
        ("silhouette", "epoch 110"): 0.4,
        ("calinski_harabasz", "epoch 110"): 40.0,
    }
    for row, rows in (("k-means", 8000), ("graph", 6400)):
        protocol = f"aflw_r_cgb+rounds_{rows}"
        column = {(m, None, protocol, part, rows == 8000): value for (m, part), value in wanted.items()}
        assert ours(record, row) == column
    assert "| k-means | Awan et al., table 5 |  | -0.042 | 38.85 |" in (finished.root / "table_clusters.md").read_text()


def test_rows_of_an_ablation_take_the_runs_with_their_overrides(finished):
    def report(value, protocol="aflw_5_awan_code"):
        return {"eval/test/metrics.json": landmarks(protocol=protocol, forward_nme=value, backward_nme=value + 1)}

    finished("cgb_aflw", report(6.0), overrides=["cgb.graph.neighbours=40"])
    finished("cgb_aflw", report(5.0))
    finished("cgb_aflw", report(4.0), overrides=["cgb.graph.neighbours=50"])
    finished("cgb_aflw:init=scratch", report(9.0))
    said = []
    record = table_of("cgb", "neighbours", finished.root, say=said.append)
    column = lambda measure: (measure, 10, "aflw_5_awan_code", "", True)
    assert ours(record, "40") == {column("forward_nme"): 6.0, column("backward_nme"): 7.0}
    assert ours(record, "80") == {column("forward_nme"): 5.0, column("backward_nme"): 6.0}
    left = [row for row in record["rows"] if row["name"] == "stage cgb"]
    assert len(left) == 2  # 50 neighbours, and the detector from scratch
    assert said == ["these runs also fill --table=errors, --table=scratch"]
    scratch = table_of("cgb", "scratch", finished.root)
    assert ours(scratch, "CGB")[column("forward_nme")] == 9.0


def test_separation_of_descriptors_stands_in_the_row_of_its_k(finished):
    scores = {"clustering": "landmark", "silhouette": 0.5, "calinski_harabasz": 99.0}
    report = {"stage": "duldpp", "split": "test", "clusterings": [scores | {"protocol": "aflw_r+landmark_10000"}]}
    finished("duld_aflw:k=30", {"clusters/test/duldpp/clusters.json": report})
    on_train = report | {"split": "train"}
    finished("duld_aflw", {"clusters/test/duldpp/clusters.json": report, "clusters/train/duld/clusters.json": on_train})
    record = table_of("duld", "clusters", finished.root)
    at = {(m, None, "aflw_r+landmark_10000", "", True): scores[m] for m in ("silhouette", "calinski_harabasz")}
    assert ours(record, "D-ULD++, Q = 10, K = 30") == at
    assert ours(record, "D-ULD++, Q = 10, K = 10") == at
    assert not [row for row in record["rows"] if row["of"] == "runs" and row["stage"] == "duld"]


def dense(*rows):
    every = [dict(labels=n, all=whole, error=error, protocol=protocol) for n, whole, error, protocol in rows]
    return {"stage": "byol", "split": "test", "data": "d", "protocol": "lead2022", "regression": every}


def test_few_labels_stand_under_their_number(finished):
    few, full = (f"aflw_m_5_eyes+lead2022+regression_{epochs}" for epochs in ("1000_epochs_x5", "45_epochs"))
    rows = (1, False, 30.0, few), (5, False, 15.0, few), (7, False, 13.0, few), (10_122, True, 6.0, full)
    finished("lead_celeba", {"eval/aflw_m_DATA_test/dense/byol/metrics.json": dense(*rows)})
    record = table_of("lead", "few", finished.root)
    assert ours(record, "features LEAD, numbers a cell 3840") == {
        ("regression_few", None, few, "1 label", True): 30.0,
        ("regression_few", None, few, "5 labels", True): 15.0,
        ("regression_few", None, few, "7 labels", False): 13.0,
    }
    assert "24.41 ± 1.38" in (finished.root / "table_few.md").read_text()
    record = table_of("lead", "regression", finished.root)
    assert ours(record, "LEAD, hypercolumns") == {("regression", None, full, "", True): 6.0}


def test_landmarks_found_often_stand_in_the_column_of_any_k(finished):
    often = {"protocol": "aflw_5_2020", "landmarks": 7, "forward_nme": 8.0, "backward_nme": 9.0}
    of_all = {"protocol": "aflw_5_2020+min_found=0", "landmarks": 12, "forward_nme": 10.0, "backward_nme": 11.0}
    report = landmarks(stage="stage2", often_found=often, **of_all)
    finished("self_training_aflw", {"eval/test/metrics.json": report})
    record = table_of("self_training", "errors", finished.root)
    assert ours(record, "self-training") == {
        ("forward_nme", None, "aflw_5_2020", "", True): 8.0,
        ("backward_nme", 7, "aflw_5_2020", "", False): 9.0,  # the paper's is not known
        ("forward_nme", 12, "aflw_5_2020+min_found=0", "", False): 10.0,
        ("backward_nme", 12, "aflw_5_2020+min_found=0", "", False): 11.0,
    }


def test_pairs_stand_in_their_row_and_by_category(finished):
    id = "pf_pascal_ncnet+test+all_pairs"
    report = {"split": "test", "all": {"id": id, "pck": 70.0}, "leak_free": {"id": "free", "pck": 60.0}}
    report["categories"] = {"boat": {"pck": 50.0}, "car": {"pck": None}}
    finished("c3_pf_pascal:task=both", {"eval/test/align/joint/p.json": report})
    record = table_of("c3", "alignment", finished.root)
    assert ours(record, "C3, with landmarks")["pck", None, id, "", True] == 70.0
    record = table_of("c3", "categories", finished.root)
    assert ours(record, "stage joint") == {("pck_category", None, id, "boat", False): 50.0}
    assert "The paper has no numbers of these measures" in (finished.root / "table_categories.md").read_text()


def test_errors_by_yaw_have_a_column_a_range(finished):
    groups = {"yaw": [{"group": "± 0 to 30", "n": 3, "forward_nme": 4.0, "backward_nme": 5.0}]}
    report = landmarks(protocol="aflw_5_awan_code", groups=groups)
    finished("cgb_aflw", {"eval/test/metrics.json": report})
    record = table_of("cgb", "yaw", finished.root)
    at = 10, "aflw_5_awan_code", "± 0 to 30", False
    assert ours(record, "stage cgb") == {("forward_yaw", *at): 4.0, ("backward_yaw", *at): 5.0}


def test_runs_without_a_number_of_a_table_are_named(finished):
    finished("cgb_aflw", {"eval/test/metrics.json": landmarks(protocol="aflw_5_awan_code", forward_nme=5.0)})
    record = table_of("cgb", "stability", finished.root)
    (left,) = record["left_out"]
    assert left["why"].startswith("has no number of this table; measure it by `uld evaluate --workdir=RUN --dataset=m")


def test_an_unknown_table_is_named():
    with pytest.raises(UserError, match=r"^--table is 'table4'; the tables of imm are errors \(--table=list tells"):
        paper_rows.chosen("imm", "table4")
    assert "  --table=neighbours  table 8: errors with other numbers of neighbours in the graph" in paper_rows.told(
        "cgb"
    )


def test_numbers_of_dense_features_and_of_pairs(tmp_path):
    made = tiny.config("lead").to_dict()
    few, full = (f"d+lead2022+squared+{e}+train_images=24" for e in ("regression_9_epochs_x2", "regression_7_epochs"))
    dense = {"stage": "byol", "split": "test", "data": "d", "protocol": "lead2022"}
    dense["matching"] = {"protocol": "d+m", "same": {"canonical_px": 0.5}, "different": {"canonical_px": None}}
    dense["regression"] = [
        {"protocol": few, "labels": 5, "all": False, "error": 7.0},
        {"protocol": full, "labels": 24, "all": True, "error": 3.0},
    ]
    workdir.write_json(tmp_path / "eval/test/dense/byol/metrics.json", dense)
    workdir.write_json(tmp_path / "eval/val/dense/byol/metrics.json", dense | {"split": "val"})
    pairs = {"split": "test", "all": {"id": "p+all", "pck": 78.0}, "leak_free": {"id": "p+free", "pck": None}}
    workdir.write_json(tmp_path / "eval/pf_pascal_test/align/compact/p.json", pairs)
    numbers, curves = paper_runs._measured(tmp_path, made)
    assert [tuple(number) for number in numbers] == [
        ("compact", "pf_pascal_test", "pck", None, "p+all", "", 78.0),
        ("byol", "test", "matching_same", None, "d+m", "", 0.5),
        ("byol", "test", "regression_few", None, few, "5 labels", 7.0),
        ("byol", "test", "regression", None, full, "", 3.0),
    ]
    assert [(c.protocol, c.points) for c in curves] == [("d+lead2022+squared+regression", [(5, 7.0), (24, 3.0)])]


def test_runs_that_started_from_other_seeds_of_one_experiment_are_one_group():
    def started(seed, steps):
        config = {"seed": seed, "init_from": f"runs/{seed}", "imm": {"steps": 3}}
        origin = {"stage": "first", "rows": 9, "init_from": None, "config": {"seed": seed, "first": {"steps": steps}}}
        recorded = {"data_fingerprint": "f", "init_from": origin}
        return paper_runs.Run(str(seed), config, seed, paper_runs._recipe(config, recorded), [], [])

    found = paper_runs.groups([started(2, 5), started(1, 5), started(3, 6)])
    assert [[run.seed for run in group] for group in found] == [[1, 2], [3]]
    assert paper_runs.names(found) == ["1 and 2", "3"]


def test_every_line_of_a_figure_is_in_its_legend():
    points = [(1, 2.0, None), (10, 1.0, None)]
    plot = viz.lines_plot({"F": {"a": points}, "G": {"b": points}}, x={"F": "n", "G": "m"}, logarithmic=["G"])
    assert [text.get_text() for text in plot.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert [ax.get_xscale() for ax in plot.axes] == ["linear", "log"]
    assert [ax.get_xlabel() for ax in plot.axes] == ["n", "m"]


def test_examples():
    assert doctest.testmod(workdir).failed == 0
    assert doctest.testmod(paper_runs) == (0, 1)
    assert doctest.testmod(paper_rows) == (0, 1)


def test_groups_are_named_by_what_their_runs_share():
    def groups(*names):
        runs = [[paper_runs.Run(name, {}, 0, {"init_from": i}, [], []) for name in one] for i, one in enumerate(names)]
        return paper_runs.names(runs)

    assert groups(["a/0", "a/1"]) == ["a"]
    assert groups(["imm_s0", "imm_s1"], ["cgb/0"]) == ["imm_s", "cgb/0"]
    assert groups(["a/0", "a/1"], ["a/2", "a/3", "a/4"]) == ["a/0 and a/1", "a/2 and 2 more"]

"""The tables of papers: what is quoted of them, and which stages repeat their rows."""

import doctest

import pytest

from tests import tiny
from uld_jax import viz
from uld_jax.cli import table as command
from uld_jax.engine import workdir
from uld_jax.studies import paper_runs, paper_table, results


@pytest.mark.parametrize("paper", paper_table.PAPERS)
def test_quoted_columns_say_what_their_numbers_are(paper):
    one = paper_table.PAPERS[paper]
    rows = set()
    for name in one.tables:
        quoted = results.quoted(name)
        assert quoted == results.read(name, tiny.ROOT)
        for column in quoted["columns"]:
            assert column["measure"] in paper_table.MEASURES
            assert column["data"]
            assert {"landmarks", "protocol"} <= set(column)
        assert all(record["source"] for record in quoted["records"])
        rows |= {(name, ", ".join(record["row"])) for record in quoted["records"]}
    assert {(row.table, row.name) for row in one.rows} <= rows


def test_every_table_of_quotations_is_of_a_paper():
    used = {name for paper in paper_table.PAPERS.values() for name in paper.tables}
    assert used == {name for name in results.names(tiny.ROOT) if (tiny.ROOT / results.QUOTED / f"{name}.json").exists()}
    assert all(name in command.USAGE for name in paper_table.PAPERS)


CELLS = {"both": "C3", "cycle": "yes, no", "flow": "no, yes", "none": "no, no"}


@pytest.mark.parametrize(
    ("config", "stage", "row"),
    [
        ("imm", "imm", "IMM"),
        ("cgb", "cgb", "CGB"),
        ("cgb", "warmup", None),
        ("self_training", "stage2", "self-training"),
        ("zeroshot", "zeroshot", "ZeroShot"),
        ("zeroshot", "detector", None),
        ("duld", "duldpp", "D-ULD++"),
        ("duld", "duld", "D-ULD"),
        ("lead", "byol", "LEAD, hypercolumns"),
        *((f"c3:cell={cell}", "joint", row) for cell, row in CELLS.items()),
    ],
)
def test_stages_repeat_rows_of_their_paper(config, stage, row):
    made = tiny.config(config).to_dict()
    paper = paper_table.PAPERS[config.partition(":")[0]]
    assert made[made["stages"][-1]]["method"].partition(".")[0] in paper.methods
    repeated = [one.name for one in paper.rows if paper_table._repeats(made, stage, one)]
    assert repeated[:1] == [row] * (row is not None)


def test_the_baseline_of_cgb_is_told_from_cgb():
    made = tiny.config("cgb", **{"cgb.bottleneck": "fixed", "cgb.clustering": "none"}).to_dict()
    assert [r.name for r in paper_table.PAPERS["cgb"].rows if paper_table._repeats(made, "cgb", r)] == ["baseline"]


def test_numbers_of_dense_features_and_of_pairs(tmp_path):
    made = tiny.config("lead").to_dict()
    dense = {"stage": "byol", "split": "test", "data": "d", "protocol": "lead2022"}
    dense["matching"] = {"protocol": "d+m", "same": {"canonical_px": 0.5}, "different": {"canonical_px": None}}
    dense["regression"] = [
        {"protocol": "d+few", "labels": 5, "all": False, "error": 7.0},
        {"protocol": "d+all", "labels": 24, "all": True, "error": 3.0},
    ]
    workdir.write_json(tmp_path / "eval/test/dense/byol/metrics.json", dense)
    workdir.write_json(tmp_path / "eval/val/dense/byol/metrics.json", dense | {"split": "val"})
    pairs = {"split": "test", "all": {"id": "p+all", "pck": 78.0}, "leak_free": {"id": "p+free", "pck": None}}
    workdir.write_json(tmp_path / "eval/pf_pascal_test/align/compact/p.json", pairs)
    numbers, curves = paper_runs._measured(tmp_path, made)
    assert [tuple(number) for number in numbers] == [
        ("compact", "pf_pascal_test", "pck", None, "p+all", 78.0),
        ("byol", "test", "matching_same", None, "d+m", 0.5),
        ("byol", "test", "regression", None, "d+all", 3.0),
    ]
    assert [(c.protocol, c.points) for c in curves] == [("d+lead2022+regression", [(5, 7.0), (24, 3.0)])]


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


def test_groups_are_named_by_what_their_runs_share():
    def groups(*names):
        runs = [[paper_runs.Run(name, {}, 0, {"init_from": i}, [], []) for name in one] for i, one in enumerate(names)]
        return paper_runs.names(runs)

    assert groups(["a/0", "a/1"]) == ["a"]
    assert groups(["imm_s0", "imm_s1"], ["cgb/0"]) == ["imm_s", "cgb/0"]
    assert groups(["a/0", "a/1"], ["a/2", "a/3", "a/4"]) == ["a/0 and a/1", "a/2 and 2 more"]

"""`uld table` as a user meets it: finished runs beside the numbers of a paper."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from uld_jax.engine import workdir as workdir_lib
from uld_jax.studies import paper_table, results

PAPERS = "mafl_5_full"  # id of ZeroShot's published number
OURS = "folder_20_box+ridge_0.001_0.1"


@pytest.fixture
def runs(run, tmp_path):
    """Makes finished runs below a folder, all of one training, with other seeds, configs and numbers."""

    def make(name, seed=0, forward=None, protocol=None, landmarks=None, **keys):
        folder = shutil.copytree(run, tmp_path / "runs" / name)
        for file in ("config.json", "run.json"):
            path = folder / file
            path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": seed} | keys))
        for path in folder.glob("eval/test/**/metrics.json"):
            # Other tests of this process may have evaluated the run by another protocol.
            report = json.loads(path.read_text()) | {"protocol": OURS, "label_counts": None}
            if report["stage"] == "zeroshot":
                new = {"forward_nme": forward, "protocol": protocol, "landmarks": landmarks}
                report |= {key: value for key, value in new.items() if value is not None}
            path.write_text(json.dumps(report))
        return folder

    make.root = tmp_path / "runs"
    return make


def cells(record, name, of):
    """{(measure, K, protocol): cell} of the row of a name, of the paper or of runs."""
    rows = [row for row in record["rows"] if (row["name"], row["of"]) == (name, of)]
    assert len(rows) == 1, record["rows"]
    keys = [tuple(column[key] for key in ("measure", "landmarks", "protocol")) for column in record["columns"]]
    return {keys[cell["column"]]: cell for cell in rows[0]["cells"]}


def written(folder):
    return json.loads((folder / "table.json").read_text())


def test_runs_of_several_seeds_stand_beside_the_paper(runs, uld):
    runs("a/0", seed=0, forward=3.0, protocol=PAPERS, landmarks=10)
    runs("a/1", seed=1, forward=4.0, protocol=PAPERS, landmarks=10)
    code, out, err = uld("table", "--paper=zeroshot", f"--runs={runs.root}")
    assert code == 0, err
    record, markdown = written(runs.root), (runs.root / "table.md").read_text()
    assert markdown in out
    quoted = results.quoted("zeroshot/published")["records"][0]
    column = "forward_nme", 10, PAPERS
    assert cells(record, "ZeroShot", "paper")[column]["mean"] == quoted["numbers"]["forward"]
    ours = cells(record, "ZeroShot", "runs")[column]
    assert (ours["mean"], ours["spread"], ours["n"]) == (3.5, pytest.approx(np.sqrt(0.5)), 2)
    assert ours["by_seed"] == {"0": 3.0, "1": 4.0}
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in markdown.splitlines()
        if line.startswith("| ZeroShot")
    ]
    at = [cell.strip() for cell in markdown.splitlines()[0].split("|")[1:-1]].index(
        f"forward, %; K = 10; MAFL, 5 points; `{PAPERS}`"
    )
    assert [line[1] for line in lines] == [quoted["source"], "a"]
    assert [line[at] for line in lines] == ["3.14", "3.50 ± 0.71"]
    assert "No run was measured as" not in markdown
    detector = cells(record, "stage detector", "runs")
    assert set(detector) == {(measure, 4, OURS) for measure in ("forward_nme", "backward_nme")}
    assert Image.open(runs.root / "figure.png").width > 100
    assert out.endswith(f"written to {runs.root}: table.md, table.json, figure.png\n")


def test_another_protocol_or_k_is_another_column(runs, uld_says):
    runs("a", forward=3.0)
    runs("b", forward=3.0, protocol=PAPERS, seed=1)  # K = 4
    uld_says("table", "--paper=duld", f"--runs={runs.root}", f"--out={runs.root}/out")
    record, markdown = written(runs.root / "out"), (runs.root / "out/table.md").read_text()
    ours, paper = cells(record, "ZeroShot", "runs"), cells(record, "ZeroShot", "paper")
    assert not set(ours) & set(paper)
    assert {key for key in ours if key[0] == "forward_nme"} == {("forward_nme", 4, OURS), ("forward_nme", 4, PAPERS)}
    assert "3.00 (1)" in markdown
    assert "No run was measured as the paper's numbers were" in markdown
    proxy, best = (cells(record, name, "paper") for name in ("+ proxy", "D-ULD++"))
    assert set(best) == set(paper)
    assert {protocol for *_, protocol in proxy} == {PAPERS, "aflw_5_full"}


def test_runs_that_differ_in_more_than_their_seed_are_rows_of_their_own(runs, uld_says):
    runs("a", forward=3.0)
    runs("b", forward=4.0, k=5)
    runs("c", forward=5.0, seed=1, k=5, data_dir="elsewhere")  # the same photos, moved
    uld_says("table", "--paper=zeroshot", f"--runs={runs.root}")
    rows = [row for row in written(runs.root)["rows"] if row["of"] == "runs" and row["stage"] == "zeroshot"]
    assert [(row["config"], row["runs"]) for row in rows] == [("k=4", ["a"]), ("k=5", ["b", "c"])]


def test_runs_without_a_place_are_named(runs, uld):
    runs("done")
    runs("again")
    lines = runs("stopped", seed=1) / "metrics.jsonl"
    lines.write_text("\n".join(lines.read_text().splitlines()[:-1]) + "\n")
    shutil.rmtree(runs("bare", seed=2) / "eval")
    other = runs("other")
    workdir_lib.write_json(other / "config.json", tiny.config("imm").to_dict())
    code, _, err = uld("table", "--paper=zeroshot", f"--runs={runs.root}")
    assert code == 0
    left = [
        "bare has no errors of the split test; measure it by `uld evaluate`",
        "done has the config and the seed of again",
        "other is not of zeroshot: its last stage is of imm",
    ]
    said = err.strip().splitlines()
    assert said[:3] == [f"left out: {one}" for one in left]
    assert said[3].startswith("left out: stopped is not finished, at step ")
    assert [f"{one['name']} {one['why']}" for one in written(runs.root)["left_out"]] == [
        line.removeprefix("left out: ") for line in said
    ]
    assert f"* `{left[0].split()[0]}` has no errors" in (runs.root / "table.md").read_text()


def test_curves_over_labelled_images_and_landmarks(runs, uld_says, monkeypatch):
    for seed in (0, 1):
        folder = runs(str(seed), seed=seed)
        path = folder / "eval/test/metrics.json"
        rows = [dict(n=n, repeats=1, forward_nme=9.0 / n + seed, forward_nme_std=0, mean_shape_nme=9) for n in (1, 9)]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"label_counts": rows}))
    drawn = {}
    plot = paper_table.viz.lines_plot
    monkeypatch.setattr(paper_table.viz, "lines_plot", lambda **given: (drawn.update(given), plot(**given))[1])
    uld_says("table", "--paper=zeroshot", f"--runs={runs.root}")
    few = f"forward NME, %\nK = 4, {OURS}"
    assert drawn["logarithmic"] == [few]
    assert drawn["panels"][few] == {
        "0 and 1, detector": [(1, 9.5, pytest.approx(np.sqrt(0.5))), (9, 1.5, pytest.approx(np.sqrt(0.5)))]
    }
    best = drawn["panels"][f"backward NME, %, best landmarks\nK = 4, {OURS}"]
    assert set(best) == {"0 and 1, zeroshot", "0 and 1, detector"}
    assert [point[0] for point in best["0 and 1, detector"]] == [1, 2, 3, 4]


def test_bad_input_is_one_sentence(runs, tmp_path, uld):
    def refused(*args):
        code, _, err = uld("table", *args)
        assert code == 1
        return err.strip().splitlines()[-1]

    (tmp_path / "empty").mkdir()
    assert "--paper is 'imn'; use one of imm, cgb" in refused("--paper=imn", f"--runs={tmp_path}")
    assert "absent is no folder" in refused("--paper=imm", f"--runs={tmp_path}/absent")
    assert "holds no finished run of --paper=imm" in refused("--paper=imm", f"--runs={tmp_path}/empty")
    runs("a")
    said = refused("--paper=imm", f"--runs={runs.root}")
    assert "the first one, a, is not of imm: its last stage is of zeroshot" in said
    (tmp_path / "out").mkdir()
    (tmp_path / "out/table.json").write_text('{"config": "zeroshot"}')
    given = "--paper=zeroshot", f"--runs={runs.root}", f"--out={tmp_path}/out"
    assert "holds the table.json of something else, such as a sweep; give another" in refused(*given)
    (tmp_path / "out/table.json").write_text('{"paper": "imm"}')
    assert "holds the table.json of --paper=imm" in refused(*given)
    assert "--table is 'twice'; the tables of zeroshot are errors" in refused(*given, "--table=twice")
    said = refused("--paper=zeroshot")
    assert said.endswith("--runs is missing; add --runs=DIR, or --table=list for the paper's tables")
    assert "--paper is 'imn'" in refused("--paper=imn", "--table=list")


def test_the_tables_of_a_paper_are_listed(uld_says):
    out = uld_says("table", "--paper=lead", "--table=list")
    assert out.startswith("Tables of Karmali et al. (WACV 2022, LEAD):\n")
    lines = [line.strip() for line in out.splitlines()]
    assert "--table=few  table 5: landmark regression with a few labels" in lines
    assert "trained by papers/lead_celeba" in lines
    assert "ContrastLandmarks, 3840: --config=...:stage1=moco" in lines
    assert "LEAD, 256: --config.compact.size=256" in lines


def test_another_table_has_files_of_its_own(runs, uld):
    runs("a", forward=3.0)
    given = "table", "--paper=duld", f"--runs={runs.root}"
    _, _, err = uld(*given)
    assert "these runs also fill --table=yaw\n" in err  # of synthetic heads it is known
    first = (runs.root / "table.json").read_text()
    code, _, err = uld(*given, "--table=clusters")
    assert code == 0, err
    assert "left out: a has no number of this table; measure it by `uld clusters" in err
    assert json.loads((runs.root / "table_clusters.json").read_text())["table"] == "clusters"
    assert first == (runs.root / "table.json").read_text()

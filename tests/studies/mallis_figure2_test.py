"""Figure 2 of Mallis et al.: plans of runs, tables and plots; the runs made up but for one 2d."""

import json

import numpy as np
import pytest
from PIL import Image

from uld_jax import __main__ as cli
from uld_jax import viz
from uld_jax.engine import checkpoint, loop
from uld_jax.errors import UserError
from uld_jax.studies import mallis_figure2, mallis_mixtures

SPEC = "self_training:dataset=synthetic,preset=tiny"
SMALL = "self_training:dataset=synthetic,preset=small"


def uld(capsys, monkeypatch, *args):
    """Exit code, stdout and stderr of `uld figure`, run in this process."""
    monkeypatch.setattr("sys.argv", ["uld", "figure", *map(str, args)])
    code = cli.main()
    out = capsys.readouterr()
    return code, out.out, out.err


# Plans


def test_every_figure_plans_its_runs(tmp_path):
    cells, left_out = mallis_figure2.plan("2d", SMALL, tmp_path, ["seed=0,1"])
    assert len(cells) == 2 * 2 * 4 * 2
    assert not left_out
    assert cells[1].name == "clusters=20,true=5,share=0.2,seed=1"
    for cell in cells:
        config, values = cell.config, cell.values
        assert config.stages == ("keypoints", "stage1")
        assert {config[s].clusters for s in ("keypoints", "stage1", "stage2")} == {int(values["clusters"])}
        name = f"true={values['true']},share={values['share']},seed={values['seed']}.csv"
        assert config.keypoints.points == str(tmp_path / "points" / name)
        assert config.keypoints.most >= int(values["true"]) / float(values["share"])
        assert (config.keypoints.outliers, config.keypoints.region, config.stage1.region) == (0, "none", "none")
        assert config.seed == int(values["seed"])
        stage = config.stage1
        assert stage.steps == mallis_mixtures.STEPS["small"]
        assert 0 < stage.warmup < stage.steps
        assert (stage.steps - stage.warmup) // stage.round_every >= 3
    cells, _ = mallis_figure2.plan(
        "2e", SMALL, tmp_path, ["clusters=7,9"], ["stage1.steps=50", "eval_every=25", "keypoints.region=box"]
    )
    assert {c.config.keypoints.region for c in cells} == {"box"}
    assert [c.config.keypoints.clusters for c in cells] == [7, 9]
    assert {(c.config.stage1.steps, c.config.eval_every) for c in cells} == {(50, 25)}
    cells, _ = mallis_figure2.plan("2c", SMALL, tmp_path)
    assert [c.config.stage1.pairs for c in cells] == ["clusters", "augmented"]
    assert {c.config.stages for c in cells} == {("keypoints", "stage1")}
    cells, left_out = mallis_figure2.plan("2b", SMALL, tmp_path, overrides=["weights.r2d2=/weights/r2d2"])
    assert [c.config.keypoints.generic.detector for c in cells] == ["r2d2", "corners"]
    assert {c.config.stages for c in cells} == {("keypoints", "stage1", "stage2")}
    assert list(left_out) == ["detector=superpoint"]
    assert "--config.weights.superpoint=FOLDER" in left_out["detector=superpoint"]


def test_nonsense_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "run", lambda *a, **k: pytest.fail("something was run"))
    where = tmp_path / "figure"

    def said(figure, *args, config=SPEC):
        args = [*args, *([f"--config={config}"] if config else [])]
        code, _, err = uld(capsys, monkeypatch, f"--figure={figure}", f"--workdir={where}", *args)
        assert code == 1
        assert len(err.strip().splitlines()) == 1, err
        assert not where.exists()
        return err

    assert "--figure=3 is unknown; use one of 2a, 2b, 2c, 2d, 2e" in said("3")
    assert "figure 2d needs --config=self_training:..." in said("2d", config="")
    assert "or --run=RUN" in said("2a", config="")
    assert "--run is for figure 2a" in said("2c", "--run=somewhere")
    assert "config.json is missing" in said("2a", f"--run={tmp_path / 'absent'}", config="")
    assert "share above 0, up to 1" in said("2d", "--grid=share=0.5,1.5")
    assert "share above 0, up to 1" in said("2d", "--grid=share=0")
    assert "half is not a share" in said("2d", "--grid=share=half")
    assert "0 is not a whole number above 0" in said("2e", "--grid=clusters=0")
    assert "figure 2d has no grid 'detector'; it has clusters, true, share, seed" in said("2d", "--grid=detector=r2d2")
    assert "given twice" in said("2d", "--grid=true=1", "--grid=true=2")
    assert "give --grid=seed one value" in said("2a", "--grid=seed=0,1")
    assert "use --grid=clusters=..." in said("2d", "--config.keypoints.clusters=8")
    assert "use --grid=detector=..." in said("2b", "--config.keypoints.detector=corners")
    assert "leave it out" in said("2d", "--config.keypoints.points=mine.csv")
    assert "use --grid=seed=..." in said("2c", "--config.seed=1")
    assert "wdith" in said("2c", "--config.stage1.wdith=3")
    assert "pairs=none,seed=0: config.stage1.pairs is 'none'" in said("2c", "--grid=pairs=none")
    assert "the config has no stage keypoints" in said("2c", config="zeroshot:preset=tiny")
    assert "the config has no stage stage1" in said("2c", "--config.stages=('keypoints',)")
    assert "has no run left" in said("2b", "--grid=detector=superpoint,r2d2")
    assert "9 true points cannot be drawn from 8 landmarks" in said("2d", "--grid=true=9", "--landmarks=8")
    assert "the data have 20 landmarks" in said("2d", "--landmarks=21")
    assert "different numbers from 0 to 19" in said("2d", "--landmarks=3,20")
    assert "neither a number nor" in said("2d", "--landmarks=eyes")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(8):
        Image.fromarray(np.full((40, 40, 3), 30 * i, np.uint8)).save(photos / f"{i}.png")
    folder = {"config": SPEC.replace("synthetic", "folder")}
    assert "the train split has none" in said("2d", f"--config.data_dir={photos}", **folder)
    assert "the train split has none" in said("2c", f"--config.data_dir={photos}", **folder)


# Tables and plots


class Training:
    """Stands in for `loop.run`: writes what a run leaves."""

    def __init__(self, monkeypatch):
        self.ran, self.fails = [], ""
        monkeypatch.setattr(loop, "run", self)
        monkeypatch.setattr(checkpoint, "has_final", lambda folder, stage: (folder / "final").exists())
        monkeypatch.setattr(mallis_figure2, "check", lambda *a: None)

    def __call__(self, config, workdir, *, mesh, stop, alone):
        assert not alone
        self.ran.append(workdir.name)
        if self.fails and self.fails in workdir.name:
            raise UserError("stage stage1: loss is not finite at step 1")
        (workdir / "eval/test").mkdir(parents=True, exist_ok=True)
        nmi = (0.8 if config.stage1.pairs == "clusters" else 0.3) + 0.1 * config.seed
        report = {"nmi": nmi, "f_measure": nmi / 2, "forward_nme": 10 * nmi, "landmarks": 7}
        (workdir / "eval/test/metrics.json").write_text(json.dumps(report))
        step = sum(config[stage].steps for stage in config.stages)
        (workdir / "metrics.jsonl").write_text(json.dumps({"step": step, "seconds": 60, "done": True}) + "\n")
        (workdir / "final").touch()


@pytest.mark.slow
def test_a_figure_has_mean_and_spread_and_goes_on(tmp_path, capsys, monkeypatch):
    training = Training(monkeypatch)
    args = ["--figure=2c", f"--config={SPEC}", f"--workdir={tmp_path}", "--grid=seed=0,2"]
    training.fails = "augmented,seed=2"
    code, out, err = uld(capsys, monkeypatch, *args)
    assert code == 1
    assert "pairs=augmented,seed=2 failed: stage stage1: loss is not finite" in err
    assert "* `pairs=augmented,seed=2`: stage stage1: loss is not finite at step 1" in out
    assert len(training.ran) == 4
    training.ran, training.fails = [], ""
    code, out, err = uld(capsys, monkeypatch, *args)
    assert code == 0, err
    assert training.ran == ["pairs=augmented,seed=2"]
    record = json.loads((tmp_path / "figure.json").read_text())
    assert [row["values"]["pairs"] for row in record["rows"]] == ["clusters", "augmented"]
    for row, nmi in zip(record["rows"], (0.8, 0.3)):
        found = row["columns"]["nmi"]
        assert found["mean"] == pytest.approx(nmi + 0.1)
        assert found["spread"] == pytest.approx(0.2 / np.sqrt(2))
        assert found["n"] == 2
    lines = (tmp_path / "figure.md").read_text().splitlines()
    assert lines[0].startswith("| pairs | runs | nmi | f_measure |")
    assert lines[2].startswith("| clusters | 2 | 0.9000 ± 0.1414 | 0.4500 ± 0.0707 |")
    assert Image.open(tmp_path / "figure.png").width > 500
    bars = mallis_figure2.plot(record).axes
    assert [ax.get_ylabel() for ax in bars] == ["NMI", "F-measure"]
    assert [patch.get_height() for patch in bars[0].patches] == pytest.approx([0.9, 0.4])
    code, _, err = uld(capsys, monkeypatch, *[a.replace("2c", "2b") for a in args])
    assert code == 1
    assert "holds a figure with figure=2c, not 2b" in err


@pytest.mark.slow
def test_what_was_left_out_is_said(tmp_path, capsys, monkeypatch):
    Training(monkeypatch)
    code, out, err = uld(capsys, monkeypatch, "--figure=2b", f"--config={SPEC}", f"--workdir={tmp_path}")
    assert code == 0, err
    assert "| corners | 1 | 8 |  | 7 | 0.8000 |" in out
    assert "* `detector=r2d2`: left out, no weights; convert them and set --config.weights.r2d2=FOLDER" in out


def test_plots_hold_the_numbers_they_are_given():
    lines = viz.lines_plot(
        {"NMI": {"a": [(2, 0.5, 0.1), (1, 0.4, None)], "b": [(1, 0.2, None)]}, "F": {"b": [(1, 1, None)]}}, x="M"
    )
    np.testing.assert_array_equal(lines.axes[0].lines[0].get_xydata(), [[1, 0.4], [2, 0.5]])
    assert len(lines.axes[0].collections) == 1  # a band where there is a spread
    near = viz.lines_plot({"F": {"a": [(1, 0.4, None), (2, 0.41, None)]}}, x="M").axes[0].get_ylim()
    assert near == pytest.approx((0, 0.435), abs=0.005)  # no marker is cut off
    assert lines.axes[1].lines[0].get_color() == lines.axes[0].lines[1].get_color()
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in lines.axes] == [("M", "NMI"), ("M", "F")]
    bars = viz.bars_plot({"NMI": {"a": (0.5, None), "b": (0.25, 0.1)}, "F": {"b": (1.0, None)}})
    assert [patch.get_height() for patch in bars.axes[0].patches] == [0.5, 0.25]
    assert [t.get_text() for t in bars.axes[1].get_xticklabels()] == ["a", "b"]
    viz.png(viz.lines_plot({}, x="M"))
    viz.png(viz.bars_plot({"NMI": {}}))
    both = viz.scatter_plot({"one": np.zeros((3, 2)), "two": np.ones((5, 2))}, {"one": [0, 1, -1], "two": [0] * 5})
    assert [len(ax.collections[0].get_offsets()) for ax in both.axes] == [3, 5]


@pytest.mark.slow
def test_figure_2d_trains_measures_and_is_not_trained_again(tmp_path, capsys, monkeypatch):
    shares = "0.4,0.8"
    args = ["--figure=2d", f"--config={SPEC}", f"--workdir={tmp_path}", "--grid=clusters=6", "--grid=true=4"]
    args += [f"--grid=share={shares}", "--landmarks=8"]
    args += ["--config.stage1.steps=6", "--config.stage1.warmup=3", "--config.stage1.round_every=3"]
    code, out, err = uld(capsys, monkeypatch, *args)
    assert code == 0, err
    record = json.loads((tmp_path / "figure.json").read_text())
    assert record["landmarks"] == [0, 2, 5, 8, 10, 13, 16, 19]
    assert [row["values"]["share"] for row in record["rows"]] == shares.split(",")
    for row in record["rows"]:
        for name in ("nmi", "f_measure", "precision", "recall", "detector_f_measure", "minutes"):
            assert row["columns"][name]["n"] == 1
        own = json.loads((tmp_path / row["cells"][0]["name"] / "mixture.json").read_text())
        assert own["f_measure"] == row["columns"]["f_measure"]["mean"]
        # 4 points among 10, or among 5: as many as the mixture has reach the first stage.
        lines = [json.loads(x) for x in (tmp_path / row["cells"][0]["name"] / "metrics.jsonl").read_text().splitlines()]
        assert lines[0]["keypoints"] == pytest.approx(4 / float(row["values"]["share"]), rel=0.15)
    axes = mallis_figure2.plot(record).axes
    assert [ax.get_ylabel() for ax in axes] == ["NMI", "F-measure"]
    assert all(len(ax.lines[0].get_xdata()) == len(record["rows"]) for ax in axes)
    assert np.asarray(Image.open(tmp_path / "figure.png")).std() > 3
    assert "| 6 | 4 | 0.8 | 1 |" in out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert uld(capsys, monkeypatch, *args)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    code, _, err = uld(capsys, monkeypatch, *(a.replace("landmarks=8", "landmarks=9") for a in args))
    assert code == 1
    assert "landmarks=[0, 2, 5, 8, 10, 13, 16, 19], not" in err

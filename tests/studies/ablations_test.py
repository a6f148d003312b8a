"""Figure 2 of Mallis et al.: mixtures of keypoints, plans of runs, and tables; the runs made up but for one 2d."""

import csv
import dataclasses
import doctest
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from tests import tiny
from uld_jax import __main__ as cli
from uld_jax import sharding, viz
from uld_jax.data import objects, open_source
from uld_jax.data.specs import DatasetSpec, Source
from uld_jax.engine import checkpoint, loop, runs
from uld_jax.errors import UserError
from uld_jax.evaluation import evaluate
from uld_jax.method import Prediction, Stage
from uld_jax.methods.self_training import Seen
from uld_jax.studies import ablations

SPEC = "self_training:dataset=synthetic,preset=tiny"
SMALL = "self_training:dataset=synthetic,preset=small"
CHOSEN = [0, 2, 5, 8, 11, 15]


def uld(capsys, monkeypatch, *args):
    """Exit code, stdout and stderr of `uld ablate`, run in this process."""
    monkeypatch.setattr("sys.argv", ["uld", "ablate", *map(str, args)])
    code = cli.main()
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def heads():
    return open_source("synthetic", "train", frame_size=40, rows=48)


def test_examples():
    result = doctest.testmod(ablations)
    assert result.attempted >= 4
    assert result.failed == 0


# Mixtures


@pytest.mark.parametrize(("true", "share"), [(2, 0.2), (4, 0.7), (6, 0.4), (3, 1.0)])
def test_true_points_are_landmarks_and_the_others_are_anywhere_in_the_view(heads, true, share):
    found = ablations.mixture(heads, CHOSEN, true, share, zoom=0.8, seed=3)
    there = np.isfinite(found.xy).all(-1)
    assert not (found.true & ~there).any()
    margin = 40 * 0.1
    used = set()
    for row in range(len(heads)):
        inside = ((heads.landmarks[row] >= margin - 0.5) & (heads.landmarks[row] <= 39.5 - margin)).all(-1)
        could = [i for i in CHOSEN if heads.visible[row, i] and inside[i]]
        points = found.xy[row, found.true[row]]
        which = np.abs(points[:, None] - heads.landmarks[row]).max(-1) < 1e-6
        assert which.any(1).all()
        mine = which.argmax(1)
        assert len(set(mine)) == len(mine) == min(true, len(could))
        assert set(mine) <= set(could)
        used |= set(mine)
        others = there[row].sum() - len(mine)
        assert abs(others - len(mine) * (1 - share) / share) < 1
    assert used == set(CHOSEN)
    # Fractions of a point are drawn, so that the share holds over all images.
    assert found.true.sum() / there.sum() == pytest.approx(share, abs=0.03)
    noise = found.xy[there & ~found.true]
    assert ((noise >= margin - 0.5) & (noise <= 39.5 - margin)).all()
    if share < 1:
        assert np.abs(noise.mean(0) - 19.5).max() < 4 * 32 / np.sqrt(12 * len(noise))
        assert noise.std(0) == pytest.approx(32 / np.sqrt(12), rel=0.25)
        places = np.nonzero(found.true)[1]
        assert places.max() >= true  # true points do not come first


def test_the_same_true_points_serve_every_share_and_seeds_differ(heads):
    def true_points(share, seed=0):
        found = ablations.mixture(heads, CHOSEN, 3, share, seed=seed)
        return [sorted(map(tuple, xy[on])) for xy, on in zip(found.xy, found.true)]

    assert true_points(0.3) == true_points(0.9)
    assert true_points(0.3) != true_points(0.3, seed=1)


class Files(Source):
    """Photos of 60 x 30 pixels in a frame of 40: one corner to the landmarks of the synthetic heads."""

    def __init__(self):
        self.spec = DatasetSpec("files", 2, "box")
        self.names, self.frame_size = ["a/0.png", "a/1.png"], 40
        self.file_sizes = np.array([[30, 60]] * 2)
        self.frame_maps = np.array([[2 / 3, 2 / 3, -1 / 6, 59 / 6]] * 2)
        self.landmarks = np.array([[[10, 12], [20, 21]], [[12, 11], [np.nan, np.nan]]], np.float32)
        self.visible = np.isfinite(self.landmarks).all(-1)


def test_the_csv_is_in_pixels_of_the_files_and_is_read_back_into_the_frame(tmp_path):
    source = Files()
    found = ablations.mixture(source, [0, 1], 2, 0.02, seed=1)
    assert found.true.sum(1).tolist() == [2, 1]
    there = np.isfinite(found.xy).all(-1)
    assert found.xy[there].min(0) == pytest.approx([-0.5, -0.5], abs=2.5)  # all of the photo, and nothing beside it
    assert found.xy[there].max(0) == pytest.approx([59.5, 29.5], abs=2.5)
    ablations.write_points(tmp_path / "deep" / "points.csv", source.names, found.xy)
    rows = list(csv.reader((tmp_path / "deep" / "points.csv").open()))
    assert rows[0][:5] == ["file", "x0", "y0", "x1", "y1"]
    assert [row[0] for row in rows[1:]] == source.names
    read = objects.keypoints(source, tmp_path / "deep" / "points.csv", found.xy.shape[1])
    np.testing.assert_array_equal(read.mask, there)
    for row in range(2):
        there = source.landmarks[row, source.visible[row]]
        near = np.abs(read.xy[row, found.true[row]][:, None] - there).max(-1).min(1)
        np.testing.assert_allclose(near, 0, atol=1e-3)


def test_mixtures_that_cannot_be_are_refused(heads):
    for arguments, said in (
        ((CHOSEN, 7, 0.5), "7 true points cannot be drawn from 6 landmarks"),
        ((CHOSEN, 0, 0.5), "use 1 to 6"),
        ((CHOSEN, 2, 0.0), "use a share above 0, up to 1"),
        ((CHOSEN, 2, 1.5), "use a share above 0, up to 1"),
    ):
        with pytest.raises(UserError, match=said):
            ablations.mixture(heads, *arguments)
    plain = types.SimpleNamespace(landmarks=None, spec=types.SimpleNamespace(name="photos"))
    with pytest.raises(UserError, match="the data set photos has no landmarks"):
        ablations.mixture(plain, CHOSEN, 2, 0.5)


# Plans


def test_every_figure_plans_its_runs(tmp_path):
    cells, left_out = ablations.plan("2d", SMALL, tmp_path, ["seed=0,1"])
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
        assert stage.steps == ablations.STEPS["small"]
        assert 0 < stage.warmup < stage.steps
        assert (stage.steps - stage.warmup) // stage.round_every >= 3
    cells, _ = ablations.plan(
        "2e", SMALL, tmp_path, ["clusters=7,9"], ["stage1.steps=50", "eval_every=25", "keypoints.region=box"]
    )
    assert {c.config.keypoints.region for c in cells} == {"box"}
    assert [c.config.keypoints.clusters for c in cells] == [7, 9]
    assert {(c.config.stage1.steps, c.config.eval_every) for c in cells} == {(50, 25)}
    cells, _ = ablations.plan("2c", SMALL, tmp_path)
    assert [c.config.stage1.pairs for c in cells] == ["clusters", "augmented"]
    assert {c.config.stages for c in cells} == {("keypoints", "stage1")}
    cells, left_out = ablations.plan("2b", SMALL, tmp_path, overrides=["weights.r2d2=/weights/r2d2"])
    assert [c.config.keypoints.detector for c in cells] == ["r2d2", "corners"]
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
    assert "leave it out" in said("2d", "--config.keypoints.points=mine.csv")
    assert "use --grid=seed=..." in said("2c", "--config.seed=1")
    assert "wdith" in said("2c", "--config.stage1.wdith=3")
    assert "pairs=none,seed=0: stage1.pairs is 'none'" in said("2c", "--grid=pairs=none")
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


# Numbers


@dataclasses.dataclass(frozen=True)
class Fixed(Stage):
    """The same points on every image, some of them masked; observed ones are a pixel off, and one more."""

    xy: tuple[tuple[float, float], ...]

    def predict(self, state, frozen, images):
        xy = jnp.broadcast_to(jnp.asarray(self.xy, jnp.float32), (len(images), len(self.xy), 2))
        # Which are found depends on the image, so that rows in another order would be noticed.
        seen = images[:, :3, :3].astype(jnp.int32).sum((1, 2, 3))[:, None] // (1 + jnp.arange(len(self.xy))) % 3 > 0
        return Prediction(xy, jnp.where(seen, 0.5, 0.0))

    def observe(self, state, frozen, batch, rng):
        assert set(batch) == {"image", "index"}
        found = self.predict(state, frozen, batch["image"])
        xy = jnp.concatenate([found.xy + 1, found.xy[:, :1]], 1)
        mask = jnp.pad(found.score > 0, ((0, 0), (0, 1)), constant_values=True) & (batch["index"] > 1000)[:, None]
        noise = jnp.sin(jnp.arange(xy.shape[1])[:, None] * jnp.arange(1.0, 9.0)) + 1e-3 * xy[..., :1]
        return Seen(xy, mask, jnp.where(mask[..., None], noise, jnp.nan))


def by_hand(xy, mask, truth, seen, lengths, radius=0.1):
    """(matched, found, annotated) by SciPy, image by image."""
    matched = 0
    for points, on, there, near in zip(xy, mask, truth, seen):
        cost = np.linalg.norm(points[on][:, None] - there[near], axis=-1) / (radius * lengths[0])
        lengths = lengths[1:]
        fine = cost <= 1
        rows, columns = linear_sum_assignment(np.where(fine, cost, 1e3))
        matched += fine[rows, columns].sum()
    return matched, mask.sum(), seen.sum()


def test_f_is_against_the_chosen_landmarks_of_the_test_split(tmp_path):
    cells, _ = ablations.plan("2d", SPEC, tmp_path, ["clusters=6", "true=2", "share=0.5"], ["data.rows=(16,21)"])
    mixed = ablations._Mixed(cells, ablations.epath.Path(tmp_path), ",".join(map(str, CHOSEN)))
    test = open_source("synthetic", "test", frame_size=40, rows=21)
    method = Fixed(tuple(map(tuple, test.landmarks[:4, CHOSEN].reshape(-1, 2).tolist())))
    found = loop.Found(method, {}, {}, {})
    mixed.measure(cells[0], found, sharding.make_mesh())
    values = json.loads((tmp_path / cells[0].name / "mixture.json").read_text())
    images = jnp.asarray(test.images())
    said = method.predict({}, {}, images)
    held = method.observe({}, {}, {"image": images, "index": jnp.full(21, 9999)}, None)
    lengths = evaluate.regression.normaliser_lengths(test.landmarks, "box", 40)
    truth, seen = test.landmarks[:, CHOSEN], test.visible[:, CHOSEN]
    for prefix, xy, mask in (("", said.xy, said.score > 0), ("detector_", held.xy, held.mask)):
        matched, count, annotated = by_hand(np.asarray(xy), np.asarray(mask), truth, seen, lengths)
        assert 10 < matched < count
        assert values[f"{prefix}precision"] == pytest.approx(matched / count)
        assert values[f"{prefix}recall"] == pytest.approx(matched / annotated)
        assert values[f"{prefix}f_measure"] == pytest.approx(2 * matched / (count + annotated))
    assert values["landmarks"] == CHOSEN
    assert values["images"] == 21


def test_initial_and_learned_descriptors_are_compared(tmp_path, capsys, monkeypatch):
    config = tiny.config("self_training", **{"data.rows": (16, 21), "keypoints.clusters": 5})
    points = open_source("synthetic", "test", frame_size=40, rows=21).landmarks.mean(0)
    methods = {"keypoints": Fixed(tuple(map(tuple, points.tolist()))), "stage1": Fixed(((5.0, 5.0), (30.0, 30.0)))}

    def load(where, mesh):
        folder, _, stage = where.rpartition(":")
        return runs.Finished(folder, config, stage, methods[stage], {}, {}, "", {})

    drawn = []

    def embed(rows, seed):  # t-SNE takes long and has a test of its own
        drawn.append(rows)
        return np.arange(0, len(rows.z), 2), rows.z[::2, :2]

    monkeypatch.setattr(ablations.runs, "load", load)
    monkeypatch.setattr(ablations.clusters_study, "embed", embed)
    code, out, err = uld(capsys, monkeypatch, "--figure=2a", f"--run={tmp_path / 'run'}", f"--workdir={tmp_path}")
    assert code == 0, err
    first, second = json.loads((tmp_path / "figure.json").read_text())["rows"]
    assert (first["descriptors"], second["descriptors"]) == ("initial", "learned")
    for row in (first, second):
        assert row["clusters"] <= 5
        assert {"silhouette", "silhouette_landmark", "nmi"} <= row.keys()
    assert first["near_landmark"] > second["near_landmark"]
    for row, rows in zip((first, second), drawn):  # coloured by the annotated point that is near, if one is
        assert row["rows"] == len(rows.z) == len(rows.landmark)
        assert row["near_landmark"] == pytest.approx((rows.landmark >= 0).mean())
    assert len(set(drawn[0].landmark)) > 5
    assert (tmp_path / "figure.md").read_text() in out
    assert np.asarray(Image.open(tmp_path / "figure.png")).std() > 3


def test_near_points_are_those_within_the_radius():
    rng = np.random.default_rng(0)
    points, truth, mask = rng.uniform(0, 9, (6, 7, 2)), rng.uniform(0, 9, (6, 4, 2)), rng.random((6, 7)) < 0.8
    truth[0, 1], points[~mask] = np.nan, np.nan
    found = ablations.nearest(points, mask, truth, np.full(6, 2.0))
    for n, p in np.ndindex(6, 7):
        far = [np.inf if not mask[n, p] or np.isnan(t).any() else np.hypot(*(points[n, p] - t)) for t in truth[n]]
        assert found[n, p] == (int(np.argmin(far)) if min(far) <= 2 else -1)


# Tables and plots


class Training:
    """Stands in for `loop.run`: writes what a run leaves."""

    def __init__(self, monkeypatch):
        self.ran, self.fails = [], ""
        monkeypatch.setattr(loop, "run", self)
        monkeypatch.setattr(checkpoint, "has_final", lambda folder, stage: (folder / "final").exists())
        monkeypatch.setattr(ablations, "_check", lambda *a: None)

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
    bars = ablations.plot(record).axes
    assert [ax.get_ylabel() for ax in bars] == ["NMI", "F-measure"]
    assert [patch.get_height() for patch in bars[0].patches] == pytest.approx([0.9, 0.4])
    code, _, err = uld(capsys, monkeypatch, *[a.replace("2c", "2b") for a in args])
    assert code == 1
    assert "holds a figure with figure=2c, not 2b" in err


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
    axes = ablations.plot(record).axes
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

"""The timing harness on functions whose work is known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import aot_clusters, bank, features, flow_cost, harness, kmeans, knn, lead_memory, step
from benchmarks import input as an_input
from benchmarks import round as a_round
from tests import tiny
from uld_jax import devices, sharding


def test_measure_says_what_a_call_takes():
    side = 64
    x = jnp.ones((side, side))
    timing = harness.measure(lambda a, b: a @ b, x, x, calls=6, warmup=1)
    assert timing.calls == 6
    assert timing.low <= timing.median <= timing.high  # what a call takes besides is subtracted
    assert timing.compile > 0
    assert timing.flops == pytest.approx(2 * side**3, rel=0.1)
    assert timing.peak_bytes >= 3 * side**2 * 4
    assert side**2 * 4 <= timing.own_bytes <= timing.peak_bytes - 2 * side**2 * 4


def test_a_step_may_destroy_its_state():
    advance = jax.jit(lambda state, x: (state + x, {"loss": jnp.sum(state)}), donate_argnums=0)
    state = jnp.zeros(1000)
    timing = harness.measure(advance, state, jnp.float32(1), calls=5, warmup=2, donate_first=True)
    assert timing.calls == 5
    assert state.is_deleted()  # it was handed on, not copied


def test_the_budget_ends_a_slow_measurement():
    timing = harness.measure(lambda x: x + 1, jnp.zeros(3), calls=1000, warmup=0, budget=0.0)
    assert timing.calls == 5
    assert harness.measure(lambda x: x + 1, jnp.zeros(3), calls=1, warmup=0).median > 0


def test_utilisation_is_counted_work_over_the_peak(monkeypatch):
    timing = harness.Timing(median=0.5, low=0.4, high=0.6, compile=1.0, calls=5, flops=3e9, peak_bytes=None)
    device = jax.devices()[0]
    monkeypatch.setattr(devices, "SHEETS", {device.device_kind: devices.Sheet(24e9, 12e9, 4e9, 1e9, 1e9)})
    assert harness.utilisation(timing) == pytest.approx(3e9 / 0.5 / 12e9 / jax.device_count())
    assert harness.utilisation(timing, "bfloat16", devices=2) == pytest.approx(3e9 / 0.5 / 24e9 / 2)
    assert harness.utilisation(timing, exact=True, devices=1) == pytest.approx(3e9 / 0.5 / 4e9)
    monkeypatch.setattr(devices, "SHEETS", {})
    assert harness.utilisation(timing) is None


def test_rows_are_shown_and_written(tmp_path, capsys):
    rows = [{"method": "zeroshot", "ms": 1.23456, "peak": None}, {"method": "b", "ms": 12, "GFLOP": 2.0}]
    harness.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["method", "ms", "peak", "GFLOP"]
    assert lines[2].split() == ["zeroshot", "1.235", "-", "-"]
    assert lines[3].split() == ["b", "12", "-", "2"]
    assert lines[0].index("ms") == lines[2].index("1.235") == lines[3].index("12")
    harness.write(str(tmp_path / "rows.json"), rows)
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["rows"] == rows
    assert written["environment"]["jax"] == jax.__version__


def test_every_stage_of_every_config_can_be_timed():
    assert step.stages() == [one for one in tiny.stages() if one[0] != tiny.TOY]
    assert step.stages("zeroshot") == [("zeroshot", "zeroshot"), ("zeroshot", "detector")]
    assert step.stages("nothing") == []
    duld = [stage for _, stage in step.stages("duld", "small")]
    assert duld == ["zeroshot", "duld", "proxy", "duldpp"]  # `small` starts from ZeroShot and has no bootstrap
    with pytest.raises(ValueError, match="duld has no stage 'bootstrap' in small"):
        step.benchmark("duld", "bootstrap", "small", 2, "float32", 1)


def test_knn_is_compared_with_the_peers_there_are(tmp_path, capsys):
    knn.main(["--n=300", "--k=4", "--dim=8", "--repeats=1", "--memory=False", f"--json={tmp_path / 'rows.json'}"])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["N"] for row in rows} == {300}
    assert {"uld_jax", "scikit-learn"} <= {row["program"] for row in rows}
    assert all(row["recall"] == 1 and row["seconds"] > 0 for row in rows)
    assert all((row["ours / fastest peer"] is not None) == (row["program"] == "uld_jax") for row in rows)
    assert "| 300 | uld_jax |" in capsys.readouterr().out
    assert knn.peak_memory("uld_jax", 200, 4, 8) >= 4 * 200 * 8
    with pytest.raises(SystemExit):
        knn.main(["--peers=nobody"])


def test_a_row_is_taken_from_its_own_neighbours():
    found = np.array([[0, 2, 1], [2, 0, 1], [1, 0, 3]])
    assert knn._others(found).tolist() == [[2, 1], [2, 0], [1, 0]]


def test_kmeans_is_timed_next_to_its_peers(tmp_path, capsys):
    kmeans.main(["--n=300", "--k=4", "--dim=8", "--iterations=3", "--repeats=1", f"--json={tmp_path}/rows.json"])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[0]["program"] == "uld_jax"
    assert len(rows) > 1
    assert {row["iterations"] for row in rows} == {3}
    for row in rows:
        assert row["s/iteration"] > 0
        # The same start and the same updates; faiss tells it of one update before.
        assert row["inertia"] == pytest.approx(rows[0]["inertia"], rel=0.1 if row["program"] == "faiss" else 1e-4)
    assert rows[0]["ours / fastest peer"] == pytest.approx(
        rows[0]["s/iteration"] / min(row["s/iteration"] for row in rows[1:])
    )
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {1 + len(rows[0])}


def test_roofline_is_the_larger_of_reading_and_arithmetic(monkeypatch):
    device = jax.devices()[0].device_kind
    monkeypatch.setattr(devices, "SHEETS", {device: devices.Sheet(1e9, 1e9, 1e9, 1e9, 1e9)})
    assert harness.distance_share(1000, 80, 256, 0.1) == pytest.approx(2 * 1000 * 80 * 256 / 1e9 / 0.1)
    assert harness.distance_share(1000, 1, 256, 0.1) == pytest.approx(4 * 1000 * 256 / 1e9 / 0.1)
    monkeypatch.setattr(devices, "SHEETS", {})
    assert harness.distance_share(1000, 1, 256, 0.1) is None


def test_features_are_timed_computed_and_cached(tmp_path, capsys):
    features.main(["--backbones=gradient@32", "--batch_size=2", "--calls=3", f"--json={tmp_path}/rows.json"])
    computed, cached = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["what"] for row in (computed, cached)] == ["computed", "cached"]
    assert computed["times computed"] == 1
    assert cached["times computed"] == pytest.approx(cached["images/s"] / computed["images/s"])
    assert cached["cache, MB an image"] == 2 * 16 * 16 * 128 * 2 / 1e6  # two maps in half precision
    assert computed["GFLOP an image"] > 0
    assert computed["MiB an image"] >= 2 * 16 * 16 * 128 * 4 / 2**20
    assert "| gradient | 32 | cached |" in capsys.readouterr().out
    for wrong in ("nobody", "gradient@big"):
        with pytest.raises(SystemExit):
            features.main([f"--backbones={wrong}"])


@pytest.mark.parametrize("name", [name for name in features.BACKBONES if name not in ("gradient", "corners")])
def test_networks_are_timed_with_the_weights_that_they_ask_for(name):
    known = features.BACKBONES[name]
    images = jax.ShapeDtypeStruct((2, known.side, known.side, 3), np.uint8)
    maps = jax.eval_shape(known.make(known.side).features, known.frozen(), images)
    assert all(len(found.shape) == 4 and found.shape[0] == 2 for found in maps.values())
    some = features.random(
        {
            "a": jax.ShapeDtypeStruct((3, 200, 50), np.float32),
            "b": np.ones(2),
            "c": jax.ShapeDtypeStruct((), np.float32),
        }
    )
    assert some["a"].std() == pytest.approx(600**-0.5, rel=0.05)
    assert some["b"].tolist() == [1, 1]
    assert some["c"].shape == ()


def test_blocks_of_matches_need_a_third_of_the_memory_of_the_naive_form(tmp_path, capsys):
    small = ["--sides=8", "--batch=4", "--block=8", "--native=2,4,8", "--channels=64,32,16", "--width=4"]
    lead_memory.main([*small, f"--json={tmp_path}/rows.json"])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["form"] for row in rows] == ["naive", "dense", "blocks"]
    assert [row["block"] for row in rows] == [None, None, 8]
    naive, dense, blocks = (row["between GiB"] * lead_memory.GIB for row in rows)
    hypercolumns, matches = 4 * 8**2 * (64 + 32 + 16) * 4, 4 * 8**4 * 4  # bytes
    assert naive >= 2 * hypercolumns + matches
    assert blocks < dense < naive
    assert rows[2]["naive / this"] == pytest.approx(naive / blocks)
    assert naive / blocks > 3
    assert "| 8 | 4 | blocks | 8 |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("side", [24, 48])
def test_blocks_at_full_size_need_a_third_of_the_memory(side):
    rows = lead_memory.benchmark(side, 64, 48, (3, 6, 12, 24), (2048, 1024, 512, 256), 64)
    assert rows[2]["naive / this"] > 3


def test_work_and_memory_of_both_forms_of_the_consensus(tmp_path, capsys):
    flow_cost.main(["--sides=5", "--batch=2", f"--json={tmp_path}/rows.json"])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["form"], row["what"]) for row in rows] == [
        (form, what) for form in ("full", "separable") for what in ("forward", "with gradients")
    ]
    assert [row["full / this"] for row in rows[:2]] == [1, 1]
    for full, separable in zip(rows[:2], rows[2:], strict=True):
        assert separable["full / this"] == pytest.approx(full["GFLOP"] / separable["GFLOP"])
        assert separable["full / this"] > 4
        assert separable["between MiB"] < full["between MiB"] < full["MiB"]
    assert "| 5 x 5 | 2 | separable | forward |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_round_is_timed_beside_its_training():
    row = a_round.benchmark("tiny", 2)
    assert row["clustering"] == "gcn"
    assert row["descriptors"] == 5 * 8 * 10
    assert row["clusters"] > 1
    assert row["share %"] == pytest.approx(100 * row["round s"] / (row["step s"] * row["steps between"]))


@pytest.mark.slow
def test_a_round_of_self_training_is_timed_with_its_pass():
    row = a_round.with_pass("self_training", "tiny", 24, 2)
    between = row["step s"] * row["steps between"]
    assert row["share %"] == pytest.approx(100 * (row["pass s"] + row["cluster s"]) / between)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "stage"),
    [
        ("self_training:dataset=folder,variant=neurips", "stage1"),
        ("self_training:dataset=folder,variant=extended", "stage1"),
        ("duld:dataset=folder,backbone=gradient.GradientHistograms", "duld"),
        ("duld:dataset=folder,backbone=gradient.GradientHistograms", "duldpp"),
    ],
)
def test_a_pass_over_162_000_images_needs_less_than_16_gb(config, stage, tmp_path):
    # Slots, descriptors and clusters are the paper's; the network, whose maps do not grow with the images, is not.
    stages = ("stage1",) if stage == "stage1" else ("bootstrap", "duld", "proxy", "duldpp")
    sizes = {f"{name}.width": 16 for name in stages} | {f"{stages[0]}.depth": 1, f"{stages[0]}.image_size": 64}
    changes = [f"--config.{key}={value}" for key, value in sizes.items()]
    file = tmp_path / "rows.json"
    bank.main([f"--config={config},preset=paper", f"--stage={stage}", f"--json={file}", *changes])
    rows = json.loads(file.read_text())["rows"]
    assert [row["program"] for row in rows] == ["write", "form", "locate", "settle"]
    assert all(row["GiB"] * 2**30 < 16e9 for row in rows)
    assert rows[0]["bank GiB"] == pytest.approx(4.0, abs=0.1)  # what a bank may hold, and is filled up to


def test_input_delivers_images_from_files_and_from_memory(tmp_path, capsys):
    an_input.main(["--images=6", "--photo=40x50", "--frame_size=16", "--batch_size=4", "--seconds=0.1", "--method="])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[:2] for row in rows] == [
        ["one thread", "folder"],
        ["stream", "folder"],
        ["stream", "photos"],
        ["stream", "crops"],
        ["resident", "folder"],
    ]
    assert all(float(row[2]) > 0 for row in rows)


def test_a_loop_counts_as_often_as_it_turns():
    text = """
%fused.1 (p.0: f32[100], p.1: s32[8]) -> f32[8] {
  ROOT %gather.1 = f32[8]{0} gather(%p.0, %p.1), slice_sizes={1}
}

%condition.1 (arg.1: (s32[], f32[8,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12), metadata={op_name="bound"}
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  ROOT %lt.1 = pred[] compare(%i.1, %constant.1), direction=LT
}

%body.1 (arg.2: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %a.1 = f32[8,4]{1,0} fusion(%arg.2), kind=kLoop, calls=%other, backend_config={"estimated_cycles":"10"}
  %s.1 = (f32[8,4]{1,0}, s32[8,4]{1,0}) sort(%a.1, %a.1), dimensions={0}
  %g.1 = f32[8]{0} fusion(%s.1, %s.1), kind=kCustom, calls=%fused.1
}

%until (arg.3: (s32[], f32[8,4])) -> pred[] {
  ROOT %and.1 = pred[] and(%x.1, %y.1)
}

ENTRY %main.1 (p: f32[8,4]) -> f32[8,4] {
  %w.1 = (s32[], f32[8,4]) while(%t.1), condition=%condition.1, body=%body.1
  %w.2 = (s32[], f32[8,4]) while(%w.1), condition=%until, body=%body.1
  ROOT %b.1 = f32[8,4]{1,0} copy(%w.2), backend_config={"estimated_cycles":"7"}
}
"""
    assert aot_clusters.counted(text) == {"cycles": 13 * 10 + 7, "sorted": 13 * 32, "gathered": 13 * 8}


def test_every_clustering_is_traced_for_a_mesh(capsys):
    mesh = sharding.make_mesh(jax.devices()[:1])
    shapes = {}
    for name, (function, arguments) in aot_clusters.programs(mesh, rows=5000, images=2, dim=256).items():
        shapes[name] = jax.eval_shape(function, *arguments)
    assert shapes["knn"].indices.shape == (5000, 80)
    assert shapes["gcn clusters"].labels.shape == (5000,)
    assert shapes["hungarian"].shape == (2, 60)
    assert aot_clusters.main(["--topology=abacus"]) == 1
    assert "such as v5e:2x2" in capsys.readouterr().err

"""Training of GCN-V: the targets by hand, the first weights, learning, the shipped weights, the command."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax import __main__ as cli
from uld_jax import weights
from uld_jax.clustering import affinity, gcn_v
from uld_jax.clustering.knn import KnnGraph, knn_graph
from uld_jax.errors import UserError
from uld_jax.studies import train_gcn

D, K = 16, 12


def blobs(seed, rows=240, kinds=4, size=D, spread=0.55):
    """Kinds around directions; a row's distance from its own is its own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, kinds, rows)
    middle = rng.normal(size=(kinds, size)) + 0.5 * rng.normal(size=size)
    far = spread * 3 * rng.random((rows, 1)) ** 2
    return train_gcn.Labelled((middle[labels] + far * rng.normal(size=(rows, size))).astype(np.float32), labels)


def test_targets_equal_the_paper():
    one, rng = blobs(1), np.random.default_rng(2)
    graph = knn_graph(jnp.asarray(one.descriptors), K)
    indices = np.where(rng.random(graph.indices.shape) < 0.2, -1, graph.indices)
    mask = rng.random(len(indices)) < 0.8
    unit = one.descriptors / np.linalg.norm(one.descriptors, axis=1, keepdims=True)
    sums, means = np.zeros(len(indices)), np.zeros(len(indices))
    for i in np.flatnonzero(mask):
        near = [j for j in indices[i] if j >= 0 and mask[j]]
        sums[i] = sum((1 if one.labels[i] == one.labels[j] else -1) * (unit[i] @ unit[j]) for j in near)
        means[i] = sums[i] / max(len(near), 1)
    graph = KnnGraph(jnp.asarray(indices), graph.similarities)
    np.testing.assert_allclose(train_gcn.targets(graph, jnp.asarray(one.labels), mask), means, atol=1e-5)
    largest = train_gcn.targets(graph, jnp.asarray(one.labels), mask, scale="max")
    np.testing.assert_allclose(largest, sums / np.abs(sums).max(), atol=1e-5)
    with pytest.raises(UserError, match="scale='mean'"):
        train_gcn.targets(graph, jnp.asarray(one.labels), scale="mean")


def test_the_first_weights_tell_lengths_in_any_basis():
    rng, params = np.random.default_rng(3), train_gcn.start(jax.random.key(0))
    directions = rng.normal(size=(300, train_gcn.D))
    directions[150:] += 3 * rng.random((150, 1)) * directions[:150]  # pairs at all angles
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = rng.uniform(0.6, 1, 300)
    mean = (directions * lengths[:, None]).astype(np.float32)
    found, hidden = gcn_v.apply(params, jnp.asarray(mean), jnp.asarray(mean))
    assert np.corrcoef(found, lengths)[0, 1] > 0.99
    np.testing.assert_allclose(np.polyfit(lengths, found, 1)[0], 5, rtol=0.2)
    # Angles in the hidden layer follow those of the means.
    apart = np.sum(directions[:150] * directions[150:], 1)
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    assert np.corrcoef(np.sum(unit[:150] * unit[150:], 1), apart)[0, 1] > 0.95


@pytest.mark.parametrize("options", [dict(batch=160, rows=64), dict(batch=0, rows=0, vary=False, optimizer="sgd")])
def test_thirty_updates_lower_the_error(options):
    sets = [blobs(seed) for seed in range(3)]
    first = gcn_v.initialize(jax.random.key(0), D, 32)
    rate = 1e-2 if options.get("optimizer") else 3e-3
    asked = train_gcn.Options(steps=30, graphs=6, k=K, rate=rate, **options)
    run = lambda: train_gcn.train(sets, asked, params=first)
    trained = run()
    assert trained.losses.shape == (30,)
    assert trained.losses[-5:].mean() < 0.8 * trained.losses[:5].mean()
    jax.tree.map(np.testing.assert_array_equal, trained.params, run().params)


def test_what_cannot_be_trained_on_is_named():
    one = blobs(5)
    train = lambda *sets, **options: train_gcn.train(list(sets), **options)
    options = train_gcn.Options
    bad = one.descriptors.copy()
    bad[3, 2] = np.nan
    for call, message in (
        (lambda: train(), "at least one set"),
        (lambda: train(one, blobs(6, size=8)), "different sizes"),
        (lambda: train(train_gcn.Labelled(one.descriptors, one.labels[:-1])), r"\[N,D\] and \[N\]"),
        (lambda: train(train_gcn.Labelled(bad, one.labels)), "not finite"),
        (lambda: options(optimizer="lion"), "optimizer='lion'"),
        (lambda: options(scale="none"), "scale='none'"),
        (lambda: options(steps=0), "steps=0"),
        (lambda: train(one, params=gcn_v.initialize(jax.random.key(0), 4, 8)), "descriptors of 4 numbers"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_the_shipped_weights_know_what_they_never_saw():
    found = []
    for seed in (7, 8, 9):
        rng = np.random.default_rng(seed)
        # Overlapping kinds in 8 dimensions of 256, a little noise in all, and an offset: each in a basis of its own.
        labels = rng.integers(0, 8, 1200)
        latent = 2 * rng.normal(size=(8, 8))[labels] + rng.normal(size=(1200, 8))
        x = latent @ rng.normal(size=(8, 256)) + 0.3 * rng.normal(size=(1200, 256)) + 2 * rng.normal(size=256)
        measured = train_gcn.measure(gcn_v.load_default(), train_gcn.Labelled(x.astype(np.float32), labels), k=40)
        assert measured.spread > 0.01  # there is something to know
        found.append(measured.gcn)
    assert min(found) > 0.2
    assert np.mean(found) > 0.35


class Pictures:
    """The same random picture again and again, not quite in the same place, with five landmarks."""

    def __init__(self, split, rows, seed, frame_size):
        rng = np.random.default_rng(seed)
        shift = rng.integers(-3, 4, (rows, 2))
        coarse = np.kron(rng.integers(0, 256, (frame_size // 4, frame_size // 4, 3)), np.ones((4, 4, 1)))
        self.pictures = np.stack([np.roll(coarse, s, (0, 1)) for s in shift]).astype(np.uint8)
        places = np.array([[20, 20], [20, 40], [40, 20], [40, 40], [30, 30]])
        self.landmarks = (places + shift[:, None, ::-1]).astype(np.float32)
        self.visible = rng.random((rows, 5)) < 0.8

    def images(self):
        return self.pictures


def test_made_descriptors_tell_landmarks_apart(monkeypatch):
    monkeypatch.setattr(train_gcn, "Synthetic", Pictures)
    monkeypatch.setattr(train_gcn, "LANDMARKS", tuple("abcde"))
    first, second = train_gcn.synthetic([0, 1], 60)
    assert first.descriptors.shape == second.descriptors.shape == (len(first.labels), train_gcn.D)
    assert 0.7 < len(first.labels) / 300 < 0.9  # those in sight
    for one in (first, second):
        graph = knn_graph(jnp.asarray(one.descriptors), K)
        assert np.mean(one.labels[np.asarray(graph.indices)] == one.labels[:, None]) > 0.9
    # Another seed is another basis: nothing of the first projection is in the second.
    assert abs(np.corrcoef(first.descriptors[0], second.descriptors[0])[0, 1]) < 0.5


@pytest.mark.slow
def test_the_shipped_weights_beat_the_density_on_other_heads():
    sets = [train_gcn._ten(one, i) for i, one in enumerate(train_gcn.synthetic([77, 78], 150, heads=5))]
    measured = [train_gcn.measure(gcn_v.load_default(), one, k=40) for one in sets]
    assert np.mean([one.gcn for one in measured]) > np.mean([one.density for one in measured]) + 0.02
    assert min(one.gcn for one in measured) > 0.1


def test_the_command(tmp_path, capsys, monkeypatch):
    def uld(*flags):
        monkeypatch.setattr("sys.argv", ["uld", "gcn", *flags])
        code = cli.main()
        return code, *capsys.readouterr()

    one, src, dst = blobs(8), tmp_path / "made.npz", tmp_path / "weights" / "gcn_v"
    np.savez(src, descriptors=one.descriptors, labels=one.labels)
    code, out, err = uld(
        f"--descriptors={src}", f"--dst={dst}", "--steps=4", "--neighbours=12", f"--npz={tmp_path}/h.npz"
    )
    assert code == 0, err
    assert "held out: correlation with the target" in out
    assert f"--config.weights.gcn_v={dst}" in out
    params = weights.load(dst, "gcn_v")
    assert gcn_v.size(params) == D
    half = np.load(tmp_path / "h.npz")
    np.testing.assert_array_equal(half["conv1/kernel"], params["conv1"]["kernel"].astype(np.float16))

    def refused(*flags):
        code, out, err = uld(*flags)
        assert (code, out) == (1, ""), err
        assert len(err.strip().splitlines()) == 1
        return err

    assert "exists; give another folder" in refused("--synthetic", f"--dst={dst}")
    more = f"--dst={tmp_path}/other"
    assert "either --descriptors=FILE.npz or --synthetic" in refused(more)
    assert "either" in refused(more, "--synthetic", f"--descriptors={src}")
    assert "does not exist" in refused(more, f"--descriptors={tmp_path}/absent.npz")
    for arrays, message in (
        (dict(descriptors=one.descriptors), "no array 'labels'"),
        (dict(descriptors=one.descriptors, labels=one.labels * 0.5), "labels of float64"),
        (dict(descriptors=one.descriptors, labels=one.labels[1:]), "must be [N,D] and [N]"),
        (dict(descriptors=np.array([{}]), labels=one.labels), "plain arrays"),
    ):
        np.savez(src, **arrays)
        assert message in refused(more, f"--descriptors={src}")
    src.write_text("no arrays")
    assert "plain arrays" in refused(more, f"--descriptors={src}")
    assert not (tmp_path / "other").exists()


def test_half_precision_changes_little():
    """Of weights that use all of float32: those that training starts from."""
    params = train_gcn.start(jax.random.key(1))
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float16).astype(jnp.float32), params)
    rng = np.random.default_rng(9)
    x = rng.normal(size=(8, 256))[rng.integers(0, 8, 500)] + 0.6 * rng.normal(size=(500, 256))
    x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
    mean = affinity.aggregate(knn_graph(x, 40), x)
    np.testing.assert_allclose(gcn_v.apply(half, x, mean)[0], gcn_v.apply(params, x, mean)[0], atol=1e-3)


def test_examples():
    result = doctest.testmod(train_gcn)
    assert result.attempted >= 2
    assert result.failed == 0

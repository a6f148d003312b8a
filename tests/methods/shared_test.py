"""What stages share: labels in views, what a stage takes from the one before, a step of some parts, running means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uld_jax.bank import Labels
from uld_jax.errors import UserError
from uld_jax.method import Start, TrainState
from uld_jax.methods import shared
from uld_jax.ops import views

N, K = 6, 3


def test_labels_are_where_the_view_shows_them():
    """Still views of 16 pixels show the middle of frames of 32; cells are two pixels wide."""
    geometry = views.Geometry(frame_side=32, view_side=16, stride=2, zoom=0.5)
    rng = np.random.default_rng()
    labels = Labels(
        jnp.asarray(rng.uniform(0, 31, (N, K, 2)), jnp.float32), jnp.asarray(rng.random((N, K)) < 0.7, float)
    )
    index = np.array([4, 0, 4])
    cells, there = shared.labels_in_views(labels, index, geometry.still(3), geometry)
    want = (np.asarray(labels.xy)[index] + 0.5 - 8) / 2 - 0.5
    np.testing.assert_allclose(cells, want, atol=1e-5)
    seen = ((want > -0.5) & (want < 7.5)).all(-1)
    np.testing.assert_array_equal(there, seen & (np.asarray(labels.score)[index] > 0))


def test_the_parts_of_the_network_before_are_taken():
    own, known = {"a": jnp.zeros(2), "b": jnp.zeros(3)}, {"b": jnp.ones(3), "c": jnp.ones(4)}
    start = Start(None, N, stage="second")
    found = shared.take_network(start, own, known, "width")
    assert set(found) == {"a", "b"}
    assert found["a"] is own["a"]
    assert found["b"] is known["b"]
    with pytest.raises(UserError, match="before second has another b; give both stages the same width and depth"):
        shared.take_network(start, own, {"b": jnp.ones(4)}, "width and depth")


def test_converted_weights_are_taken_in_the_networks_types():
    given = {"params": {"kernel": np.ones((2, 3), np.float16)}}
    found = shared.take_weights(given["params"], {"kernel": jnp.zeros((2, 3))}, "use another")
    assert found["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(found["kernel"], 1)
    with pytest.raises(UserError, match="use another"):
        shared.take_weights(given["params"], {"kernel": jnp.zeros((3, 2))}, "use another")


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_step_moves_the_parts_that_learn_alone(pieces):
    params = {"a": jnp.float32(2.0), "b": jnp.float32(3.0)}
    state = TrainState(jnp.int32(5), params=params, opt_state=optax.sgd(0.5).init({"a": params["a"]}))
    loss = lambda p, x: (jnp.mean(p["a"] * p["b"] * x), {"mean": jnp.mean(x)})
    examples, optimizer = jnp.array([1.0, 3.0]), optax.sgd(0.5)
    new, metrics = shared.descend(state, loss, examples, optimizer, pieces, ("a",))
    assert {name: float(value) for name, value in new.params.items()} == {"a": 2 - 0.5 * 3 * 2, "b": 3}
    assert {name: float(value) for name, value in metrics.items()} == {"loss": 12, "mean": 2}
    assert int(new.step) == 5
    both, _ = shared.descend(state.replace(opt_state=optimizer.init(params)), loss, examples, optimizer, pieces)
    assert {name: float(value) for name, value in both.params.items()} == {"a": 2 - 0.5 * 3 * 2, "b": 3 - 0.5 * 2 * 2}


def test_a_running_mean_forgets_faster_at_first():
    mean, new = {"a": jnp.float32(1.0)}, {"a": jnp.float32(3.0)}
    found = [float(shared.running_mean(mean, new, 0.9, jnp.int32(step), "float32")["a"]) for step in (0, 8, 10**6)]
    np.testing.assert_allclose(found, [0.1 + 0.9 * 3, 0.5 + 0.5 * 3, 0.9 + 0.1 * 3], rtol=1e-5)


def test_maps_in_pieces_are_those_of_the_whole_batch():
    class Means:
        """A backbone."""

        def features(self, frozen, images):
            assert images.dtype == jnp.uint8
            return {"mean": frozen["scale"] * images.mean(-1, keepdims=True)}

    seen, frozen = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3)), {"scale": jnp.float32(2.0)}
    whole, pieces, odd = (shared.backbone_maps(Means(), frozen, seen, n, "float32")["mean"] for n in (1, 2, 3))
    np.testing.assert_allclose(whole, 2 * np.floor(np.asarray(seen) * 255 + 0.501).mean(-1, keepdims=True), atol=1e-3)
    np.testing.assert_array_equal(whole, pieces)
    np.testing.assert_array_equal(whole, odd)  # 3 does not divide 4: one piece

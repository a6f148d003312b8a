"""What a stage takes from the one before, or from published weights."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.bank import Labels
from uld_jax.errors import UserError
from uld_jax.method import Start, TrainState
from uld_jax.methods import shared


class Left(typing.NamedTuple):
    labels: Labels | None
    more: Labels | None = None


def test_labels_are_those_that_the_stage_before_left():
    options = dict(left_by=Left, needed="put A before it", same="the same k in A and B")
    labels = Labels(jnp.ones((4, 3, 2)), jnp.ones((4, 3)))
    start = Start(TrainState(jnp.int32(0), aux=Left(labels)), 4)
    assert shared.required_labels(start, "labels", 3, **options) is labels
    nothing = [Start(None, 4), Start(TrainState(jnp.int32(0), aux=labels), 4)]
    for bad, field in (*((one, "labels") for one in nothing), (start, "more")):
        with pytest.raises(UserError, match=r"^put A before it$"):
            shared.required_labels(bad, field, 3, **options)
    said = "left 3 clusters of 4 images, not {} of {}; use the same images, and the same k in A and B"
    for slots, images in ((5, 4), (3, 7)):
        with pytest.raises(UserError, match=said.format(slots, images)):
            shared.required_labels(start._replace(num_images=images), "labels", slots, **options)


def test_a_network_is_taken_in_the_types_of_the_new_one():
    new = {"a": {"kernel": jnp.zeros((2, 3), jnp.bfloat16)}}
    found = shared.take_weights({"a": {"kernel": np.ones((2, 3))}}, new, "other")
    assert found["a"]["kernel"].dtype == jnp.bfloat16
    assert found["a"]["kernel"].tolist() == np.ones((2, 3)).tolist()
    for other in ({"a": {"kernel": np.ones((3, 3))}}, {"b": {"kernel": np.ones((2, 3))}}):
        with pytest.raises(UserError, match=r"^other$"):
            shared.take_weights(other, new, "other")


def test_centroids_are_taken_where_they_fit(caplog):
    own = jnp.zeros((3, 2), jnp.float32)
    found = shared.take_centroids({"centroids": np.ones((3, 2))}, own, required=True)
    assert (found.dtype, found.shape, float(found.min())) == (jnp.float32, (3, 2), 1)
    assert shared.take_centroids({}, own, required=False) is None
    assert not caplog.text
    assert shared.take_centroids({"centroids": np.ones((4, 2))}, own, required=False) is None
    assert "has 4 clusters and stage1 3" in caplog.text
    for given, number in (({}, 0), ({"centroids": np.ones((4, 2))}, 4)):
        with pytest.raises(UserError, match=rf"have centroids of {number} clusters, .* needs those of 3"):
            shared.take_centroids(given, own, required=True)


def test_mirrored_partners_are_taken_where_there_are_some():
    own = jnp.zeros(3, jnp.int32)
    assert shared.take_flips({"flips": np.array([1.0, 0, 2])}, own, required=True).tolist() == [1, 0, 2]
    assert shared.take_flips({}, own, required=False) is own
    with pytest.raises(UserError, match="do not say which landmarks mirror one another"):
        shared.take_flips({}, own, required=True)


def test_the_place_of_objects_is_asked_for_by_region():
    assert shared.region_tables("none", 40) == {}
    assert shared.region_tables("box", 40) == {"boxes": ()}
    assert shared.region_tables("mask", 40) == {"masks": (10,)}

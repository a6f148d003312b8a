"""What a stage takes from the one before, or from published weights."""

import dataclasses
import typing

import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.bank import Labels
from uld_jax.errors import UserError
from uld_jax.method import Need, Stage, Start, TrainState
from uld_jax.methods import shared


class Left(typing.NamedTuple):
    labels: Labels | None
    more: Labels | None = None


@dataclasses.dataclass(frozen=True)
class Learner(Stage):
    """A stage that cannot start without labels, and starts from a network if there is one."""

    needs: tuple[Need, ...] = (
        Need("labels", "a stage such as A"),
        Need("network", "B", of_images=False, required=False),
    )


def left(aux, params=None):
    return Start(TrainState(jnp.int32(0), params=params or {}, aux=aux), 4, stage="second", before="first")


LABELS = Labels(jnp.ones((4, 3, 2)), jnp.ones((4, 3)))


def test_labels_are_those_that_the_stage_before_left():
    stage, start = Learner(), left(Left(LABELS))
    assert shared.take_labels(stage, start, 3) is LABELS
    for bad, why in (
        (Start(None, 4, stage="second"), "no stage comes before it"),
        (left(()), "the stage before, first, leaves none"),
        (left(Left(None)), "the stage before, first, leaves none"),
    ):
        with pytest.raises(
            UserError, match=f"^stage second needs the labels of a stage such as A, and {why}; put such"
        ):
            shared.take_labels(stage, bad, 3)
    said = "the stage before second left 3 landmarks of 4 images, not {} of {}; use the same number"
    for slots, images in ((5, 4), (3, 7)):
        with pytest.raises(UserError, match=said.format(slots, images)):
            shared.take_labels(stage, start._replace(num_images=images), slots)


def test_what_a_stage_can_do_without_is_left():
    stage = Learner()
    assert shared.take(stage, left(Left(LABELS)), "network") is None
    params = {"kernel": jnp.ones(2)}
    assert shared.take(stage, left(Left(LABELS), params), "network") is params
    assert shared.take(stage, left(Left(LABELS, LABELS)), "more") is None  # it is not among the needs
    stage = Learner((Need("labels", "A", required=False),))
    assert shared.take_labels(stage, Start(None, 4), 3) is None
    assert shared.take_labels(stage, left(Left(LABELS)), 5) is None
    assert shared.take_labels(stage, left(Left(LABELS)), 3) is LABELS


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

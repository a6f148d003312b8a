"""The built-in data set as a source, and as a folder."""

import doctest
import pickle

import jax
import numpy as np
import pytest

from tests.data.synthetic.heads import SIZE
from uld_jax.data import objects, open_source, synthetic
from uld_jax.data.synthetic import dataset
from uld_jax.errors import UserError


def test_a_row_depends_on_seed_split_and_number_alone(source):
    fewer = synthetic.Synthetic("train", rows=5, frame_size=SIZE)
    np.testing.assert_array_equal(fewer.images(), source.images()[:5])
    np.testing.assert_array_equal(fewer.landmarks, source.landmarks[:5])
    np.testing.assert_array_equal(fewer.visible, source.visible[:5])
    for other in (
        synthetic.Synthetic("test", 5, frame_size=SIZE),
        synthetic.Synthetic("train", 5, 1, SIZE),
    ):
        assert (other.images() != fewer.images()).any((1, 2, 3)).all()
        assert other.fingerprint != fewer.fingerprint
    assert fewer.fingerprint == synthetic.Synthetic("train", rows=5, frame_size=SIZE).fingerprint != source.fingerprint


@pytest.mark.slow
def test_images_do_not_depend_on_the_batch(source, render):
    keys = dataset.row_keys(0, "train", np.array([33, 4], np.uint32))
    image, landmarks, visible = render(jax.vmap(synthetic.sample_scene)(keys))
    rows = [33, 4]
    # another program may round otherwise: by a grey level, and more on a pixel whose ray just misses the head
    apart = np.abs(np.asarray(image, int) - source.images(rows))
    assert (apart > 1).mean() < 1e-3
    np.testing.assert_allclose(landmarks, source.landmarks[rows], atol=1e-3)
    np.testing.assert_array_equal(visible, source.visible[rows])


def test_masks_and_boxes_are_of_the_head_and_of_the_row_alone(source):
    """They are not pictures: the pictures, and so the fingerprint, are those of a source that was not asked."""
    fewer = synthetic.Synthetic("train", rows=5, frame_size=SIZE)
    masks = np.stack([fewer.mask(row) for row in range(5)])
    assert (masks.shape, masks.dtype) == ((5, SIZE, SIZE), bool)
    np.testing.assert_array_equal(masks, [source.mask(row) for row in range(5)])
    assert (synthetic.Synthetic("test", 5, frame_size=SIZE).mask(0) != masks[0]).any()
    x0, y0, x1, y1 = boxes = objects.boxes(source).T
    assert ((boxes > -1).all(0) & (boxes < SIZE).all(0)).all()
    for row in range(5):
        columns, rows = np.flatnonzero(masks[row].any(0)), np.flatnonzero(masks[row].any(1))
        edges = [columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5]
        np.testing.assert_array_equal(boxes[:, row], edges)
    # Landmarks lie on the head, half a pixel beside its mask at most; a half of the picture is background.
    xy = source.landmarks
    inside = (xy > np.stack([x0, y0], -1)[:, None] - 0.5) & (xy < np.stack([x1, y1], -1)[:, None] + 0.5)
    assert inside.all(-1).mean() > 0.99
    assert 0.1 < masks.mean() < 0.4
    assert not masks[:, -1].any(), "clothes reach the lower border, and heads do not"
    np.testing.assert_array_equal(objects.masks(source, SIZE)[:5], masks)
    np.testing.assert_array_equal(fewer.images(), source.images()[:5])


def test_source_is_complete(source):
    assert len(source) == 200
    assert source.names[35] == "train/000035.png"
    assert source.spec.protocol == "synthetic_20_box"
    expected = {"images": ((200, SIZE, SIZE, 3), "uint8"), "landmarks": ((200, 20, 2), "float32")}
    expected["visible"] = (200, 20), "bool"
    for name, found in (("images", source.images()), ("landmarks", source.landmarks), ("visible", source.visible)):
        assert (found.shape, found.dtype.name) == expected[name]
    np.testing.assert_array_equal(source.image(20), source.images([3, 20])[1])
    assert np.isfinite(source.landmarks).all()
    np.testing.assert_array_equal(source.frame_maps, np.tile([1.0, 1.0, 0.0, 0.0], (200, 1)))
    np.testing.assert_array_equal(source.file_sizes, SIZE)
    assert sorted(source.columns) == ["pitch", "roll", "yaw"]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.image(7), source.image(7))
    assert copy.columns == source.columns


def test_landmarks_scale_with_the_image(source):
    keys = dataset.row_keys(0, "train", np.arange(16, dtype=np.uint32))
    pose = {name: np.float32(value) for name, value in synthetic.POSE.items()}
    *_, large, seen, _ = dataset._programs(16, SIZE)[0](keys, pose, np.float32(3 * SIZE))
    np.testing.assert_allclose((source.landmarks[:16] + 0.5) * 3 - 0.5, large, atol=1e-3)
    np.testing.assert_array_equal(source.visible[:16], seen)


def test_pose_options_reach_the_scenes(source):
    still = synthetic.Synthetic("train", rows=4, frame_size=SIZE, yaw=5.0, pitch=0.0)
    assert np.abs(np.array(still.columns["yaw"], float)).max() <= 5.0
    assert not np.array(still.columns["pitch"], float).any()
    assert still.fingerprint != synthetic.Synthetic("train", rows=4, frame_size=SIZE).fingerprint
    assert np.abs(np.array(source.columns["yaw"], float)).max() > 45.0


def test_a_mean_shape_is_no_answer(source):
    """Pose varies so much that the best constant guess errs by more than a tenth of the box around the points."""
    xy = source.landmarks
    box = np.sqrt(np.prod(np.ptp(xy, axis=1), -1))
    error = np.linalg.norm(xy - xy.mean(0), axis=-1).mean(1) / box
    assert 0.10 < error.mean() < 0.40
    assert 0.45 < source.visible.mean() < 0.85
    assert ((xy > -0.5) & (xy < SIZE - 0.5)).all(-1).mean() > 0.995  # the head stays in the picture


def test_export_is_read_as_a_folder(tmp_path, source):
    synthetic.export(tmp_path, rows={"train": 3, "test": 2}, frame_size=SIZE)
    folder = open_source("folder", "train", data_dir=tmp_path, frame_size=SIZE)
    assert list(folder.names) == source.names[:3]
    np.testing.assert_array_equal(folder.images(), source.images()[:3])
    np.testing.assert_allclose(folder.landmarks, source.landmarks[:3], atol=1e-3)
    np.testing.assert_array_equal(folder.visible, source.visible[:3])
    assert folder.columns["yaw"] == source.columns["yaw"][:3]
    np.testing.assert_array_equal(objects.boxes(folder), objects.boxes(source)[:3])
    assert (tmp_path / "test" / "000001.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "no split 'valid'; use one of train, test"),
        ({"rows": 0}, "data.rows is 0"),
        ({"frame_size": 0}, "data.frame_size is 0"),
        ({"jaw": 3}, "no option 'jaw'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        synthetic.Synthetic(**arguments)


def test_examples_in_docstrings_run():
    assert doctest.testmod(dataset).failed == 0

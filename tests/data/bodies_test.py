"""Bodies written as a folder data set, and read again: joints, boxes and pixels move alike."""

import numpy as np
import pytest

from uld_jax import data
from uld_jax.data import bodies, crops, objects, schemes, specs
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

HEIGHT, WIDTH = 240, 300


def people(count, seed=0, joints=32):
    """(image, joints, mask, box): a bright square at every joint, whose green value is the joint's number times 7."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x0, y0 = rng.integers(60, 120), rng.integers(30, 60)
        x1, y1 = x0 + rng.integers(50, 90), y0 + rng.integers(110, 150)
        # Joints on a jittered grid, far enough apart that no square covers another.
        places = rng.permutation(64)[:joints]
        xy = np.stack(
            [x0 + 3 + (places % 8) * (x1 - x0 - 6) / 7, y0 + 3 + (places // 8) * (y1 - y0 - 6) / 7], -1
        ).round()
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for i, (x, y) in enumerate(xy.astype(int)):
            image[y - 2 : y + 3, x - 2 : x + 3] = 255, 7 * i, 0
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[y0 : y1 + 1, x0 : x1 + 1] = 1
        yield image, xy, mask, (x0, y0, x1, y1)


@pytest.mark.parametrize("view", bodies.VIEWS)
def test_joints_and_boxes_move_with_the_pixels(tmp_path, view):
    made = list(people(3))
    for split in ("train", "test"):
        table = bodies.write_bodies(tmp_path, split, (m[:3] for m in made), view=view)
        assert table == tmp_path / f"{split}.csv"
    size = {"square": 450, "fan": 256}[view]
    source = data.open_source("folder", "train", data_dir=tmp_path, frame_size=size, scheme="human36m_32")
    assert source.names == ["train/000000.jpg", "train/000001.jpg", "train/000002.jpg"]
    assert source.file_sizes.tolist() == [[size, size]] * 3
    assert source.spec.protocol == "folder_32_shoulders_image_sides"
    assert source.spec.splits == ("train", "test")
    boxes, images = objects.boxes(source), source.images()
    for row, (_, joints, _, box) in enumerate(made):
        x0, y0, x1, y1 = box
        # By hand: the square is 1.5 heights about the box's centre; the network then sees 1 / 1.4 of it.
        scale = 450 / (1.5 * (y1 - y0))
        u = (joints - [(x0 + x1) / 2, (y0 + y1) / 2]) * scale + 225
        corners = (np.array([[x0, y0], [x1, y1]]) - [(x0 + x1) / 2, (y0 + y1) / 2]) * scale + 225
        if view == "fan":
            u, corners = (((p - 225) * 1.4 + 225) * 256 / 450 for p in (u, corners))
        np.testing.assert_allclose(source.landmarks[row], schemes.image_sides(u), atol=2e-3)
        np.testing.assert_allclose(boxes[row], corners.ravel(), atol=2e-3)
        inside = ((u > 4) & (u < size - 5)).all(-1)
        assert inside.sum() > 20
        # The middle of each bright square is where its joint went.
        for joint in np.flatnonzero(inside):
            x, y = u[joint].round().astype(int)
            red, green, _ = images[row, y, x].astype(int)
            assert red > 200
            assert abs(green - 7 * joint) < 30


def test_a_square_shows_its_centre_of_mass_at_the_joint():
    image, joints, _, box = next(people(1))
    fmap = crops.square_crop(box)
    one = np.zeros_like(image)
    x, y = joints[5].astype(int)
    one[y - 2 : y + 3, x - 2 : x + 3] = 255
    seen = crops.warp(one, fmap, 450)[..., 0].astype(float)
    centre = (coordinates.pixel_grid(450, 450) * seen[..., None]).sum((0, 1)) / seen.sum()
    np.testing.assert_allclose(centre, coordinates.file_to_frame(joints[5:6], fmap)[0], atol=0.05)


def test_joints_may_be_missing_and_seven_are_bbc_pose(tmp_path):
    image, joints, mask, _ = next(people(1, joints=7))
    joints = joints.copy()
    joints[2] = np.nan
    bodies.write_bodies(tmp_path, "train", [(image, joints, mask)], view="fan")
    source = data.open_source("folder", "train", data_dir=tmp_path, frame_size=64, scheme="bbc_pose7")
    assert source.spec.protocol == "folder_7_shoulders"
    assert source.spec.eyes == (5, 6)
    assert specs.annotated(source)[0].tolist() == [True, True, False, True, True, True, True]
    with pytest.raises(UserError, match=r"train.csv exists already"):
        bodies.write_bodies(tmp_path, "train", [(image, joints, mask)])


def test_bad_bodies_are_one_sentence(tmp_path):
    image, joints, mask, _ = next(people(1))
    far = joints.copy()
    far[3] = 5000, 0

    def write(*made, split="train", **options):
        bodies.write_bodies(tmp_path, split, made, **options)

    for message, made, options in (
        (r"the split is 'val'; a folder data set has train and test", [], {"split": "val"}),
        (r"view is 'wide'; use one of square, fan", [], {"view": "wide"}),
        (r"there are no bodies to write to .*train.csv", [], {}),
        (r"body 0 has an image of \(240, 300, 3\) float32", [(image.astype(np.float32), joints, mask)], {}),
        (r"body 0 has .* a mask of \(240, 299\)", [(image, joints, mask[:, 1:])], {}),
        (r"body 1 has joints of \(31, 2\); give \[32,2\]", [(image, joints, mask), (image, joints[1:], mask)], {}),
        (r"body 0: a mask has no true pixel", [(image, joints, mask * 0)], {}),
        (r"train/000000.jpg: point 3 .* lies far outside", [(image, far, mask)], {}),
    ):
        with pytest.raises(UserError, match=message) as error:
            write(*made, **options)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "train.csv").exists()

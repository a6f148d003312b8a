"""Detectors in Python: the arrays they take, and the error that a fit reports."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from uld_jax.data.open import open_split
from uld_jax.detector import Detector
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.ops import coordinates


def test_detectors_take_arrays_of_every_kind(run, photos):
    detector = Detector.load(run)
    images = np.stack([np.asarray(Image.open(photos / f"test/{i:03d}.png").convert("RGB")) for i in range(3)])
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    opaque = np.concatenate([images, np.full((*grey.shape, 1), 255, np.uint8)], -1)
    wanted = detector.predict(images)
    np.testing.assert_array_equal(detector.predict(opaque).xy, wanted.xy)
    wanted = detector.predict(np.repeat(grey[..., None], 3, -1))
    for same in (grey, grey[..., None], list(grey)):
        np.testing.assert_array_equal(detector.predict(same).xy, wanted.xy)
    np.testing.assert_allclose(detector.predict(grey.astype(np.uint16) * 16).xy, wanted.xy, atol=1)
    for single in (images[0], grey[0], grey[0][..., None]):
        with pytest.raises(UserError, match=r"a single image; give images\[None\]"):
            detector.predict(single)
    with pytest.raises(UserError, match=r"image 1 is float32 of 40x40x3; give uint8"):
        detector.predict([images[0], images[1].astype(np.float32)])


def test_fit_reports_what_leaving_an_image_out_costs(run, photos, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    detector = Detector.load(workdir)
    source = open_split(tiny.short(photos), "train")
    large = [np.asarray(Image.fromarray(image).resize((80, 80))) for image in source.images(range(8))]
    points = coordinates.rescale_points(source.landmarks[:8], (40, 40), (80, 80))
    with pytest.raises(UserError, match="none of the 8 images has an annotated point"):
        detector.fit(large, np.full_like(points, np.nan))
    points[5:, 3] = np.nan
    names = [f"point {i}" for i in range(points.shape[1])]
    for wrong in (names[1:], names[:-1] + names[:1], [*names[:-1], " "]):
        with pytest.raises(UserError, match="give a name of its own for each of the 20 points"):
            detector.fit(large, points, wrong)
    fitted = detector.fit(large, points, names)
    assert Detector.load(workdir).annotated_names == detector.annotated_names == tuple(names)
    stored = workdir / "annotated_detector.json"
    stored.write_text(json.dumps({k: v for k, v in json.loads(stored.read_text()).items() if k != "names"}))
    assert Detector.load(workdir).annotated_names == ()  # a map of an earlier version
    fitted = detector.fit(large, points)
    xy, score = detector.predict_frames(detector._frames(large)[0])
    strength = fitted.strength[0]
    errors = []
    for i in range(8):
        rest = np.arange(8) != i
        train = regression.LandmarkSet(xy, score, coordinates.rescale_points(points, (80, 80), (40, 40)))
        less = regression.fit_forward(train.take(np.flatnonzero(rest)), strength)
        there = regression.apply_forward(less, xy[i : i + 1], score[i : i + 1])[0]
        error = 2 * np.linalg.norm(there - train.truth[i], axis=-1)
        errors.append(np.nanmean(np.delete(error, 3)))
    assert detector.leave_one_out.unit == "pixels"
    # A refit takes its penalty from the images that are left, which are fewer.
    assert detector.leave_one_out.error == pytest.approx(np.mean(errors), rel=0.2)
    assert Detector.load(workdir).leave_one_out == detector.leave_one_out
    detector.fit(large[:1], points[:1])
    assert detector.leave_one_out.error is None

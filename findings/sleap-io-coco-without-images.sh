#!/usr/bin/env bash
# sleap-io 0.9.5, `load_file` of COCO keypoints.
#
# COCO's JSON holds all labels itself: the names and sizes of the images, and the points in pixels. Annotation files are
# published and sent without the images for that reason. sleap-io reads labels only of images that it finds on the disk:
# of others it drops the labels too, and says so in a warning. If none is there, the result is an empty `Labels`, without
# an exception, and with a skeleton no longer known either; if some are there, it is a part of the labels. A script that
# converts or counts labels then works on fewer than the file has.
#
# Seen, for a file with labels of two images: 0 labelled frames and 0 skeletons without the images, 1 with one of them,
# 2 with both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sleap-io==0.9.5 numpy==2.4.6 pillow==13.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import pathlib
import warnings

import sleap_io
from PIL import Image

images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
label = {"category_id": 1, "keypoints": [5, 6, 2, 10, 12, 2], "num_keypoints": 2, "bbox": [5, 6, 5, 6], "area": 30}
annotations = [label | {"id": i, "image_id": i, "iscrowd": 0} for i in (1, 2)]
categories = [{"id": 1, "name": "object", "keypoints": ["left", "right"], "skeleton": [[1, 2]]}]
content = {"images": images, "annotations": annotations, "categories": categories}
pathlib.Path("labels.json").write_text(json.dumps(content))

found = []
for there in range(3):
    if there:
        Image.new("RGB", (40, 30)).save(f"{there}.png")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        labels = sleap_io.load_file("labels.json")
    found.append((len(labels), len(labels.skeletons)))
    print(f"{there} of 2 images on the disk: {len(labels)} labelled frames, {len(labels.skeletons)} skeletons")
    for one in told:
        print("  warning:", str(one.message)[:90])
assert found == [(0, 0), (1, 1), (2, 1)], found
print("as described")
PY

"""Labels of the field's tools: found in a folder by their content, and written in their layouts.

read_folder(root)              the labels of a folder's images of one object, as an `Annotation`
read_objects(root)             the labels of all objects in a folder's images
read_file(path)                the labels of one file
FORMATS[word].write(...)        predictions in the layout of a tool

A format is one file with its convention and the source of that; `read` converts to pixels with centres at integers.
"""

from uld_jax.data.labels import coco, deeplabcut, labelstudio, sleap
from uld_jax.data.labels.common import Labelled, Labels, Predictions, natural
from uld_jax.data.labels.find import Objects, read_file, read_folder, read_objects

FORMATS = {"coco": coco, "dlc": deeplabcut, "slp": sleap, "labelstudio": labelstudio}

__all__ = [
    "FORMATS",
    "Labelled",
    "Labels",
    "Objects",
    "Predictions",
    "natural",
    "read_file",
    "read_folder",
    "read_objects",
]

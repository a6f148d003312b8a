"""PF-Pascal as a prepared data set: photos, categories and the lists of pairs, from the files of `data/pf_pascal.py`.

  SRC/PF-dataset-PASCAL/JPEGImages/2008_000001.jpg, ...              the photos
  SRC/image_pairs/train_pairs.csv, val_pairs.csv, test_pairs.csv     NC-Net's lists of pairs

  pf_pascal   the 2,940 pairs for training, half of them mirrored, 308 for validation and 299 for the test, of which 95
              are in the training list too

A row is a photo with a category. The pairs are written beside the records in the form of the lists, and
`dataset=pf_pascal` reads the prepared data set as it reads the official folder. Only the test list has keypoints: those
of the validation pairs are in annotation files whose layout is not described, so they are not read.
"""

from uld_jax.data import pf_pascal
from uld_jax.data.builders.official import Dataset, Files
from uld_jax.data.specs import Source

PAIRS = {"train": 2_940, "val": 308, "test": 299}
MIRRORED = {"train": 1_470, "val": 0, "test": 0}
LEAKED = 95  # pairs of the test that are in the training list, in either order


def sources(files: Files, *, frame_size: int, on_bad_file: str) -> dict[str, Source]:
    """Open every split that has a list. Raises UserError for any error in the lists and for other numbers of pairs."""
    places = {split: pf_pascal.find_list(files.root, split) for split in PAIRS}
    splits = [split for split in PAIRS if places[split] is not None or not files.partial] or list(PAIRS)
    files.notes += [f"{files.root} has no list of pairs of the split {split}" for split in PAIRS if split not in splits]
    listed = {split: pf_pascal.read_pairs(files.root, split) for split in splits}
    for split, pairs in listed.items():
        files.expect(places[split], len(pairs.a), PAIRS[split], "pairs")
        files.expect(places[split], int(pairs.flip.sum()), MIRRORED[split], "mirrored pairs")
    if {"train", "test"} <= set(listed):
        train, test = (list(map(frozenset, zip(listed[s].a, listed[s].b, strict=True))) for s in ("train", "test"))
        shared = len([ends for ends in test if ends in train])
        files.expect(places["test"], shared, LEAKED, "pairs of the training list")
    reading = dict(frame_size=frame_size, on_bad_file=on_bad_file, partial=files.partial)
    return {split: pf_pascal.PfPascal(files.root, split, **reading) for split in listed}


DATASETS = (Dataset(pf_pascal.NAME, "PF-Pascal, pairs of photos of 20 categories", None, {}, sources=sources),)

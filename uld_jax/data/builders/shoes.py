"""UT-Zappos50K (Yu and Grauman, CVPR 2014): catalogue photos of shoes on white, without annotated points.

  SRC/Shoes/Oxfords/BRAND/8022041.89.jpg, ...   photos of 136 x 102 pixels, below category, subcategory and brand; the
                                                stems hold dots

The four categories may also lie in SRC/ut-zap50k-images. They have 21 subcategories, which are checked. No list of the
photos is read, because lists name files that are not there. Descriptions say 50,025 photos; another number is told and
is no error, since nobody has counted them by the files.

  shoes   all photos, sorted by path: the first three quarters are the training images, the rest the test

Papers train on three quarters in the order in which a file system lists the files, which nobody can repeat. A few
photos have another size: these are left out and listed in skipped.csv, after the split, so that it does not depend on
them; grey photos are kept, since every image is read as RGB. The columns `category`, `subcategory` and `brand` tell the
kind of a shoe. CGB (Sanchez et al.) shows whole photos, stretched to 128 x 128: `data.fit=stretch`.
"""

from uld_jax.data import listing
from uld_jax.data.builders.official import Dataset, Files, Record
from uld_jax.errors import UserError

SIZE = (102, 136)  # (height, width)
IMAGES = 50_025  # by descriptions
SUBCATEGORIES = {"Boots": 5, "Sandals": 3, "Shoes": 10, "Slippers": 3}
_COLUMNS = ("category", "subcategory", "brand")


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the images of both splits, see the module. Raises UserError for absent folders."""
    del name
    bases = [base for base in ("", "ut-zap50k-images/") for one in SUBCATEGORIES if (files.root / base / one).is_dir()]
    if not bases:
        files.find("Shoes", "ut-zap50k-images/Shoes", what="folder of the categories of UT-Zappos50K")
    base = files.root / bases[0]
    names = []
    for category in SUBCATEGORIES:
        below = listing.list_images(base / category) if (base / category).is_dir() else []
        names += [f"{category}/{one}" for one in below]
    for one in names:
        if one.count("/") != len(_COLUMNS):
            raise UserError(
                f"{base / one} does not lie in three folders (category, subcategory and brand) as the photos of "
                "UT-Zappos50K do; remove it"
            )
    for category, official in SUBCATEGORIES.items():
        found = {one.split("/")[1] for one in names if one.startswith(f"{category}/")}
        files.expect(base / category, len(found), official, "subcategories")
    if len(names) != IMAGES:
        files.notes.append(f"{base} has {len(names):,} photos where descriptions of UT-Zappos50K say {IMAGES:,}")
    listed = [
        Record(
            file=one,
            path=f"{bases[0]}{one}",
            place=str(base / one),
            columns=dict(zip(_COLUMNS, one.split("/")[:-1], strict=True)),
        )
        for one in sorted(names)
    ]
    train = len(listed) * 3 // 4
    return {"train": listed[:train], "test": listed[train:]}


_COUNTS = {"train": None, "test": None}
DATASETS = (Dataset("shoes", "UT-Zappos50K, photos of shoes without points", records, _COUNTS, size=SIZE),)

"""Data sets, and the readers that bring their images to the devices.

open_source(name, split, ...)     one split on the host: images, landmarks, sizes
make_reader(source, mesh, B)      its images as training batches
"""

from uld_jax import sharding
from uld_jax.data import pf_pascal
from uld_jax.data.decode import decode_image, image_size
from uld_jax.data.listing import list_images
from uld_jax.data.partners import ByCategory, ByPairs
from uld_jax.data.pipeline import Order, StreamReader
from uld_jax.data.resident import ResidentReader, image_bytes, memory_budget
from uld_jax.data.schemes import NO_SCHEME
from uld_jax.data.specs import DatasetSpec, Source, annotated, spec_of
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

__all__ = [
    "DatasetSpec",
    "Order",
    "Source",
    "annotated",
    "decode_image",
    "image_size",
    "list_images",
    "make_reader",
    "open_source",
    "spec_of",
]

READERS = ("auto", "resident", "stream")


def open_source(
    name: str,
    split: str = "train",
    *,
    data_dir=None,
    frame_size: int,
    fit: str | None = None,
    scheme: str = NO_SCHEME,
    normaliser: str = "auto",
    sides: str = "auto",
    on_bad_file: str = "error",
    **options,
) -> Source:
    """Open one split of a data set and check it.

    Args:
      name: `synthetic`; `folder` (photos in `data_dir`, see `data/folder.py`, or a prepared data set in `data_dir`);
        `pf_pascal` (see `data/pf_pascal.py`), prepared or in its own files; or the name of a data set that
        `builders.prepared.prepare` wrote under `data_dir`.
      split: `train`, `test`, or another split of the data set.
      data_dir: folder of the data; unused by `synthetic`.
      frame_size: F, side of the square frame in pixels.
      fit: way to fit files into the frame, `pad`, `crop` or `stretch`; None is `stretch` for `pf_pascal`, else `pad`.
      scheme: name of the annotated points' scheme (`schemes.SCHEMES`), or `none`; a prepared data set then uses its
        recorded scheme.
      normaliser: `auto`, `eyes`, `shoulders`, `box`, `image` or two point numbers (see `specs.spec_of`).
      sides: meaning of left and right joints of a body, the `object`'s or the `image`'s (see `specs.set_sides`).
      on_bad_file: `error`, or `skip` to leave out files that cannot be read, which requires decoding everything once.
      **options: options of `synthetic` only: its seed, numbers of images and pose.

    Raises:
      UserError: the data or an argument are wrong; the message is one sentence.
    """
    if frame_size < 1:
        raise UserError(f"data.frame_size is {frame_size}; use the side of the images in pixels, such as 128")
    fit = fit or (pf_pascal.FIT if name == pf_pascal.NAME else "pad")
    coordinates.frame_map((1, 1), (1, 1), fit)  # refuses an unknown word even if there is nothing to fit
    if name == "synthetic":
        from uld_jax.data.synthetic import Synthetic

        source = Synthetic(split, frame_size=frame_size, **options)
        if (scheme, normaliser) != (NO_SCHEME, "auto"):
            asked = spec_of(name, source.spec.landmarks, scheme=scheme, normaliser=normaliser)
            source.spec = source.spec._replace(normaliser=asked.normaliser, eyes=asked.eyes)
        return source
    if options:
        raise UserError(f"the data set {name} has no option {sorted(options)[0]}; remove it from config.data")
    reading = dict(frame_size=frame_size, fit=fit, scheme=scheme, normaliser=normaliser, on_bad_file=on_bad_file)
    from uld_jax.data.builders import prepared
    from uld_jax.data.folder import Folder, existing_folder

    if name not in ("folder", pf_pascal.NAME) and not data_dir:
        raise UserError(
            f"dataset={name} needs data_dir, the folder into which `uld prepare` wrote that data set; for a folder of "
            "photos use dataset=folder"
        )
    root = existing_folder(data_dir)
    version = prepared.find(root, None if name == "folder" else name)
    if version is not None:
        return prepared.Prepared(version, split, sides=sides, **reading)
    if name == pf_pascal.NAME:
        return pf_pascal.PfPascal(data_dir, split, **reading)
    if name != "folder":
        raise UserError(
            f"there is no data set {name} under {root}; write it with `uld prepare`, or for a folder of photos use "
            "dataset=folder"
        )
    return Folder(root, split, sides=sides, **reading)


def make_reader(
    source: Source,
    mesh,
    batch_size: int,
    *,
    kind: str = "auto",
    workers: int = 0,
    partner: bool | ByCategory | ByPairs = False,
    held: int = 0,
) -> StreamReader | ResidentReader:
    """Make the training reader of a source.

    Args:
      source: the images, see `open_source`.
      mesh: the devices.
      batch_size: B, number of images in a batch over all devices together.
      kind: `resident` (all images in device memory), `stream` (decoded batch by batch), or `auto`: resident if the
        images fit, preferably with a copy on every device, otherwise with the rows split over the devices. Partners
        by category or pairs need a copy on every device.
      workers: number of decoding processes of `stream`; 0 uses threads.
      partner: True also gives every sample an independent second image; a law of `data.partners`, which is True too,
        tells which images it is drawn from.
      held: bytes of images that each device holds for other readers (`ResidentReader.held`).

    Raises:
      UserError: an unknown kind, or a batch that does not divide over the devices.
    """
    if kind not in READERS:
        raise UserError(f"data.reader is {kind!r}; use one of {', '.join(READERS)}")
    sharding.check_divides(mesh, batch_size)
    if kind == "auto":
        holders = mesh.size if isinstance(partner, bool) else 1
        kind = "resident" if image_bytes(source) <= (memory_budget(mesh) - held) * holders else "stream"
    if kind == "stream":
        return StreamReader(source, mesh, batch_size, workers=workers, partner=partner)
    return ResidentReader(source, mesh, batch_size, partner=partner, held=held)

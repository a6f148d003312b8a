"""LSUN (Yu et al., 2015): photos of one scene or kind of object, in an LMDB database, without annotated points.

  SRC/car/data.mdb                  the class `car` of objects, unpacked
  SRC/bedroom_train_lmdb/data.mdb   the training part of the scene `bedroom`, unpacked

A key is the name of a photo, 40 hexadecimal digits, and its value the file: JPEG or WebP, which the first bytes tell,
because the README says JPEG and the objects are WebP. The database is opened for reading and without a lock, so that it
may lie on a file system that cannot be written to.

  lsun_car, lsun_bedroom   200,000 photos; their middle, as high and as wide as the shorter side (mostly 256 pixels)

Wu et al. (C3) give neither number nor size of their photos of cars and bedrooms, so both are a choice of ours. The
200,000 photos are those whose keys come first when they are sorted by the SHA-256 of `0 ` and the key: a draw with the
seed 0 that depends on nothing but the keys. There is no test split and no number that papers measure.
"""

import functools
import hashlib
import heapq
import os
import re
import weakref

from etils import epath
from tqdm import tqdm

from uld_jax.data.builders.official import Crop, Dataset, Files, Record
from uld_jax.data.listing import BadFile
from uld_jax.errors import UserError

IMAGES = 200_000
SEED = 0
FOLDERS = {"lsun_car": "car", "lsun_bedroom": "bedroom_train_lmdb"}
_KEY = re.compile(rb"[0-9a-f]{40}")


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Draw the images of one of `DATASETS`, see the module. Raises UserError for a database that cannot be read."""
    folder = FOLDERS[name]
    database = _opened(files.find(f"{folder}/data.mdb", what=f"database of LSUN, unpacked from {folder}.zip").parent)
    names = [key.decode() for key in drawn(database.keys(), IMAGES)]
    return {
        "train": [
            Record(file=one, place=database.where, crop=_square, read=functools.partial(database.read, one))
            for one in names
        ]
    }


def drawn(keys, count: int, seed: int = SEED) -> list[bytes]:
    """Draw keys, sorted: those that come first by the SHA-256 of the seed, a blank and the key.

    >>> drawn([b"a", b"b", b"c"], 2), drawn([b"c", b"a"], 2)
    ([b'a', b'b'], [b'a', b'c'])
    """
    salt = f"{seed} ".encode()
    return sorted(heapq.nsmallest(count, keys, key=lambda key: hashlib.sha256(salt + key).digest()))


def _square(size: tuple[int, int]) -> Crop:
    """The middle of a photo of a size (height, width); a photo that is one pixel too long loses its last one."""
    side = min(size)
    y, x = ((length - side) // 2 for length in size)
    return Crop.of((x, y, x + side, y + side), (side, side))


class _Database:
    """An LMDB database that several threads may read at once. Raises UserError if it cannot be opened.

    Attributes:
      where: its folder.
    """

    def __init__(self, folder):
        try:
            import lmdb
        except ImportError:
            raise UserError("LSUN needs the package lmdb; pip install 'uld_jax[datasets]'") from None
        self.where, self._error = os.fspath(folder), lmdb.Error
        try:
            # Photos are read in no order, so that reading ahead would read most of the database several times.
            self._open = lmdb.open(self.where, readonly=True, lock=False, create=False, readahead=False)
            there, size = self._open.info(), self._open.stat()["psize"]
        except lmdb.Error as error:
            raise self._damaged(error) from None
        whole = (there["last_pgno"] + 1) * size
        if (found := epath.Path(folder, "data.mdb").stat().length) < whole:  # reading beyond its end kills the process
            self._open.close()
            raise UserError(f"{self.where}/data.mdb has {found:,} bytes where it needs {whole:,}; get the file again")

    def keys(self):
        """Yield all keys, sorted. Raises UserError for a key that is no name of a photo, and for a damaged file."""
        try:
            with self._open.begin() as transaction, transaction.cursor() as cursor:
                entries = self._open.stat()["entries"]
                bar = tqdm(total=entries, desc=f"keys of {self.where}", unit=" keys", disable=None)
                for key in cursor.iternext(values=False):
                    if not _KEY.fullmatch(key):
                        raise UserError(f"{self.where}: the key {key[:60]!r} is no name of a photo of LSUN")
                    bar.update()
                    yield key
                bar.close()
        except self._error as error:
            raise self._damaged(error) from None

    def read(self, name: str) -> bytes:
        """Return the file of a photo. Raises BadFile if the database is damaged there."""
        try:
            with self._open.begin() as transaction:
                return transaction.get(name.encode())
        except self._error as error:
            raise BadFile(name, f"{error}; get {self.where}/data.mdb again") from None

    def _damaged(self, error) -> UserError:
        return UserError(f"{self.where} cannot be read as an LMDB database ({error}); get its data.mdb again")


# A process must not open a database twice.
_DATABASES: "weakref.WeakValueDictionary[str, _Database]" = weakref.WeakValueDictionary()


def _opened(folder) -> _Database:
    where = os.path.realpath(folder)
    database = _DATABASES.get(where)
    if database is None:
        database = _DATABASES[where] = _Database(folder)
    return database


DATASETS = tuple(
    Dataset(name, f"{IMAGES:,} photos of LSUN's class {folder.partition('_')[0]}", records, {"train": IMAGES})
    for name, folder in FOLDERS.items()
)

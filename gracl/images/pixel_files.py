"""Decoded pictures of a split, kept on a node's disk: what was decoded and resized once need not be again.

A picture that has the network's size costs its decoding, any other a resize beside it, which takes four times as long
for one of 128 x 64 and forty times for one of 720 x 360 (docs/results.md, 20). With this a node pays once for each
picture instead of twice an epoch. What is learnt is the same, bit for bit.
"""

import os
import shutil
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import psutil
import simplejpeg
from jaxtyping import UInt8
from numpy import ndarray

from gracl.errors import StorageError, expected
from gracl.images import storage
from gracl.images.cache import locked
from gracl.images.views import eval_view

_PAGE = 4096
_SHARE = 10
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class PixelFile:
    """The plain view of each image of one split, in one file that the processes of a node share.

    It is as large as all pictures from the start, so a disk that is too small is found out before a picture is made.
    Whoever meets an image first makes its picture; two who meet it at once write the same bytes. A killed process
    leaves nothing half done that counts, since a picture counts once a byte beside it says so. What a machine that went
    down has left is not trusted: the file of another boot, or made by other decoders, is removed.

    Args:
        folder: on this node; made where it is missing.
        digest: of the split's manifest.
        images: of the split.
        height, width: of the pictures.

    Raises:
        StorageError: no room, or no right to write.
    """

    def __init__(self, folder: Path, digest: str, images: int, *, height: int, width: int) -> None:
        self._view = partial(eval_view, height=height, width=width)
        marks = -(-images // _PAGE) * _PAGE
        split = f"{digest[:24]}-{height}x{width}-"
        self.path = folder / f"{split}{_makers()}-{_boot()}.pixels"
        self._make(split, marks + images * height * width * 3)
        mapped = np.asarray(np.memmap(self.path, np.uint8, "r+"))
        self._there = mapped[:images]
        self._pictures = mapped[marks:].reshape(images, height, width, 3)

    def __call__(self, index: int, image: bytes | memoryview) -> UInt8[ndarray, "height width 3"]:
        """The picture of an image, which is not to be written to; `image` is decoded if nobody did so before.

        Raises:
            ImageError: unreadable bytes.
        """
        if not self._there[index]:
            self._pictures[index] = self._view(image)
            self._there[index] = 1
        picture: ndarray = self._pictures[index]
        return picture

    def count(self) -> int:
        """How many pictures are there."""
        return int(self._there.sum())

    @staticmethod
    def fit(folder: Path, images: Mapping[str, int], *, height: int, width: int) -> bool:
        """Whether the pictures of some splits (images of each, by the digest of its manifest) take at most a tenth of
        what the folder's disk has free. Those of them that lie there already are counted as free, so that other
        processes of the node and later runs say the same."""
        there, kept = next(place for place in (folder, *folder.parents) if place.exists()), 0
        for digest in images:
            for path in folder.glob(f"{digest[:24]}-{height}x{width}-*.pixels"):
                with suppress(FileNotFoundError):  # another process has just made it anew
                    kept += path.stat().st_size
        return sum(images.values()) * height * width * 3 <= (shutil.disk_usage(there).free + kept) / _SHARE

    def _make(self, split: str, size: int) -> None:
        folder = self.path.parent
        temporary = folder / storage.temporary_name(self.path.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / f".{self.path.name}.lock", f"make {self.path.name}"):
                if self.path.exists():
                    return
                for other in folder.glob(f"{split}*.pixels"):
                    other.unlink(missing_ok=True)
                with temporary.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
                os.replace(temporary, self.path)
        except OSError as error:
            wanted = f"{size / 1e9:.1f} GB in {folder} for decoded pictures"
            advice = "make room, set data.cache= to a folder that has it, or scale.keep_pixels=false"
            raise StorageError(expected(wanted, error, advice)) from error
        finally:
            with suppress(OSError):  # its own error says what is wrong with the disk
                temporary.unlink(missing_ok=True)


def _makers() -> str:
    """What the pictures are made by: another release may make other ones."""
    return f"{zlib.crc32(f'1 {PIL.__version__} {simplejpeg.__version__}'.encode()):08x}"


def _boot() -> str:
    """This run of the machine, since what was written before it went down may be torn in any order."""
    if _BOOT_ID.exists():
        return _BOOT_ID.read_text().strip()
    return f"{psutil.boot_time():.0f}"

"""A folder on a node's disk for as long as its process works with it; what a kill -9 leaves, the next one removes."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX, HELD = "gracl-", ".held"


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder under `$GRACL_TMP` (default: the system's), gone at the end.

    Its process holds a lock beside it, which the system lets go of however the process ends: so what others of this
    node have left is told from what they are at work with, also where processes of several containers share a disk.
    """
    place = Path(os.environ.get("GRACL_TMP") or tempfile.gettempdir())
    _sweep(place)
    while True:
        outer = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        with (outer / HELD).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not (outer / HELD).exists():  # taken for a leftover before it was held
                continue
            try:
                inner = outer / "folder"
                inner.mkdir()
                yield inner
            finally:
                _remove(outer)
            return


def _sweep(place: Path) -> None:
    """Removes the folders that nobody holds any more; what is not to be opened is another's."""
    for outer in place.glob(f"{PREFIX}*"):
        with suppress(OSError), (outer / HELD).open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(outer)


def _remove(outer: Path) -> None:
    """What is in it first: as long as the lock's file is there, another one can go on where this one is killed."""
    shutil.rmtree(outer / "folder", ignore_errors=True)
    shutil.rmtree(outer, ignore_errors=True)

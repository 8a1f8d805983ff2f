"""A node-local copy of files that live on an object store: copied once per node, verified, shared by its processes."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from gracl.checksums import sha256_of
from gracl.errors import ShardError, StorageError, expected
from gracl.images import storage

COPIERS = 4
# How long a process waits for another one of its node that copies the same shard.
COPY_S = 3600.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class Wanted:
    """One file to have on this node: its name under the root, its size in bytes, and its checksum."""

    name: str
    bytes: int
    sha256: str


def default_cache() -> Path:
    """`$GRACL_CACHE`, else the user's cache folder, else a folder of this user's under the temporary one."""
    if given := os.environ.get("GRACL_CACHE"):
        return Path(given).expanduser().absolute()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:  # a container without a home: the copy is only a cache, so the temporary folder will do
        return Path(tempfile.gettempdir()) / f"gracl-{os.getuid()}"
    if os.access(home, os.W_OK):
        return home / "gracl"
    return Path(tempfile.gettempdir()) / f"gracl-{os.getuid()}"


def cached_copy(root: str, files: Sequence[Wanted], folder: Path) -> None:
    """Copies files of a remote root into a local folder, each whole and verified or not at all.

    A file that is there with the right size is taken as it is: it got its name only after its checksum was right.
    Processes of one node share the work: who comes second waits for the file instead of copying it again.

    Args:
        root: URI under which the files lie.
        files: what to have; names may not contain folders.
        folder: made where it is missing. It must belong to this content alone (put a digest in its name).

    Raises:
        ShardError: a file is missing at the root, or what came is not what its checksum says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(COPIERS, max(1, len(files)))) as pool:
        list(pool.map(partial(_copy, root, folder=folder), files))


def _copy(root: str, wanted: Wanted, *, folder: Path) -> None:
    target = folder / wanted.name
    if _is_there(target, wanted):
        return
    with locked(folder / f".{wanted.name}.lock", f"copy {wanted.name}"):
        if _is_there(target, wanted):
            return
        temporary = folder / storage.temporary_name(wanted.name)
        try:
            _download(storage.join(root, wanted.name), temporary)
            _check(temporary, wanted, root)
            os.replace(temporary, target)
        finally:
            with suppress(OSError):  # a disk that went away cannot be tidied, and its own error says so
                temporary.unlink(missing_ok=True)


def _is_there(path: Path, wanted: Wanted) -> bool:
    return path.exists() and path.stat().st_size == wanted.bytes


def _download(source: str, target: Path) -> None:
    fs, path = storage.locate(source)
    try:
        with target.open("wb") as near:
            # Only the far side is the store's: a full disk here is no store that does not answer.
            for piece in _pieces(fs, source, path):
                near.write(piece)
            near.flush()
            os.fsync(near.fileno())
    except FileNotFoundError as error:
        raise ShardError(expected(f"a shard at {source}", "no such file", "ingest the split again")) from error


def _pieces(fs: Any, source: str, path: str) -> Iterator[bytes]:
    with storage.answered(source):
        far = fs.open(path, "rb")
    with far:
        while True:
            with storage.answered(source):
                piece = far.read(1 << 20)
            if not piece:
                return
            yield piece


def _check(path: Path, wanted: Wanted, root: str) -> None:
    if path.stat().st_size == wanted.bytes and sha256_of(path) == wanted.sha256:
        return
    raise ShardError(
        expected(
            f"{wanted.name} of {root} with {wanted.bytes} bytes and SHA-256 {wanted.sha256[:12]}...",
            f"{path.stat().st_size} bytes with another checksum",
            "the copy was disturbed or the shard is torn: try again, then ingest the split again",
        )
    )


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """The only one on this node to do `what`, while the block lasts; who comes second waits.

    Raises:
        StorageError: the other one took longer than `COPY_S`.
    """
    # The kernel frees the lock when its holder dies, so a killed process leaves nothing to clean up.
    with path.open("w") as file:
        until = time.monotonic() + COPY_S
        while not _has(file):
            if time.monotonic() > until:
                wanted = f"another process of this node to {what} within {COPY_S:g} s"
                advice = f"look who holds {path}; another data.cache= is another place"
                raise StorageError(expected(wanted, "it still does", advice))
            time.sleep(_LOOK_S)
        yield


def _has(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

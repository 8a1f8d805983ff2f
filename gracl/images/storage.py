"""Where bytes live: one way to say it (a URI) and a few verbs that work on a local disk, S3, GCS and in memory.

A URI is a local path (`data/market`, `~/data`, `file:///data`), `s3://bucket/key`, `gs://bucket/key`, `memory://name`,
or anything else that fsspec knows. A `memory://` URI lives in one process and is meant for tests.

Where a store is asked, what it refuses becomes a `StorageError` (`answered`); that a file is not there stays a
`FileNotFoundError`. Buckets are never made: a bucket that is not there is a misspelt one.
"""

import errno
import os
import posixpath
import socket
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from pyarrow import ArrowException
from pyarrow.fs import FileSystem

from gracl.errors import ConfigError, StorageError, expected

EXTRA_OF = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
STAMP_KEYS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


def locate(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a URI and the path inside it.

    Raises:
        ConfigError: the scheme is unknown, or the package for it is not installed.
    """
    if "://" not in uri:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(uri))
    scheme = uri.split("://", 1)[0]
    # Others write there too (Ray's tasks, Ray Train), and a listing that is remembered would hide what they wrote.
    options = {"use_listings_cache": False} if _is_object_store(uri) else {}
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        extra = EXTRA_OF.get(scheme)
        advice = f"pip install 'gracl[{extra}]'" if extra else "install the fsspec package for that scheme"
        raise ConfigError(expected(f"a package that reads {scheme}://", str(error), advice)) from error
    except ValueError as error:
        known = "use a local path, s3://, gs:// or memory://"
        raise ConfigError(expected("a URI of a known scheme", repr(uri), known)) from error
    return fs, path.rstrip("/") if len(path) > 1 else path


def is_local(uri: str) -> bool:
    """Whether the URI names a path of this machine's file system."""
    return "://" not in uri or uri.split("://", 1)[0] in ("file", "local")


def is_in_memory(uri: str) -> bool:
    """Whether the URI lives in this process alone, so that no other process can read it."""
    return uri.startswith("memory://")


def _is_object_store(uri: str) -> bool:
    return "://" in uri and uri.split("://", 1)[0] in EXTRA_OF


@contextmanager
def answered(uri: str) -> Iterator[None]:
    """What a far store refuses in this block, said in our words; a local disk's errors stay as they are.

    Raises:
        StorageError: no such bucket, no leave, no answer. It may pass, so a rank that meets it is started again.
        FileNotFoundError: there is no such file, in a bucket that is there.
    """
    try:
        yield
    except Exception as error:
        if is_local(uri):
            raise
        if _says_no_bucket(error):
            raise StorageError(
                expected(
                    f"a bucket for {uri}", "no such bucket", "check the URI and the endpoint; gracl makes no buckets"
                )
            ) from error
        # A store's package has errors of its own (botocore's are no OSErrors); a plain TypeError is our mistake.
        foreign = isinstance(error, OSError) or type(error).__module__ not in ("builtins", "gracl.errors")
        if isinstance(error, FileNotFoundError) or not foreign:
            raise
        raise _refused(uri, error) from error


def require_arrow(uri: str) -> None:
    """Refuses an object store that pyarrow does not reach: Ray Train writes checkpoints through it.

    It is told less than fsspec's packages: of an endpoint only by environment variables, not by `~/.aws/config`.

    Raises:
        StorageError: with what pyarrow said.
    """
    if not _is_object_store(uri):
        return
    try:
        fs, path = FileSystem.from_uri(uri)
        fs.get_file_info(path)
    except (OSError, ArrowException) as error:
        advice = "give endpoint, region and keys as environment variables, on every node (docs/operations.md)"
        raise StorageError(expected(f"a store that pyarrow reaches at {uri}", error, advice)) from error


def _says_no_bucket(error: Exception) -> bool:
    """Whether S3 itself said so: s3fs makes the same FileNotFoundError of it as of a missing key."""
    said = getattr(error.__cause__, "response", None) if isinstance(error, FileNotFoundError) else None
    return isinstance(said, dict) and said.get("Error", {}).get("Code") == "NoSuchBucket"


def _refused(uri: str, error: Exception) -> StorageError:
    closed = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
    advice = "check the credentials and what they allow" if closed else "check the endpoint and the network, try again"
    came = f"{type(error).__name__}: {error}"
    return StorageError(expected(f"a store that {'lets us in' if closed else 'answers'} at {uri}", came, advice))


def local_path(uri: str) -> Path:
    """The absolute path of a local URI; `~` is the home folder."""
    return Path(locate(uri)[1])


def absolute(uri: str) -> str:
    """The same place, said so that it does not depend on the current directory: Ray's workers have another one."""
    return str(local_path(uri)) if is_local(uri) else _trimmed(uri)


def join(uri: str, *parts: str) -> str:
    """The URI of a file or folder inside another."""
    base = _trimmed(uri)
    return "/".join([base, *parts]) if not base.endswith("://") else base + "/".join(parts)


def _trimmed(uri: str) -> str:
    return uri if uri.endswith("://") else uri.rstrip("/")


def parent(uri: str) -> str:
    """The URI of the folder in which a file lies."""
    if is_local(uri):
        return str(local_path(uri).parent)
    scheme, rest = uri.split("://", 1)
    return f"{scheme}://{posixpath.dirname(rest)}"


def exists(uri: str) -> bool:
    """Whether there is a file or a folder at the URI."""
    fs, path = locate(uri)
    return bool(fs.exists(path)) if is_local(uri) else _description(uri, fs, path) is not None


def is_folder(uri: str) -> bool:
    """Whether there is a folder at the URI; on an object store, whether anything lies under it."""
    fs, path = locate(uri)
    with answered(uri):
        found = bool(fs.isdir(path))
    if not found and not is_local(uri):
        _description(uri, fs, path)  # says so where the bucket itself is missing
    return found


def _description(uri: str, fs: Any, path: str) -> dict[str, Any] | None:
    """What a far store says of a file or folder; None where there is none."""
    try:
        with answered(uri):
            return dict(fs.info(path))
    except FileNotFoundError:
        return None


def stamp_of(info: dict[str, Any]) -> str:
    """What of an fsspec file description changes when the file is written anew: a checksum, generation or time."""
    return next((str(info[key]) for key in STAMP_KEYS if info.get(key) is not None), "")


def version_of(uri: str) -> tuple[int, str] | None:
    """Size and stamp of one file, to see whether it is still the same; None where there is none."""
    if is_local(uri):
        try:
            status = local_path(uri).stat()
        except FileNotFoundError:
            return None
        return status.st_size, f"{status.st_mtime_ns}-{status.st_ino}"
    info = _description(uri, *locate(uri))
    return None if info is None else (int(info["size"]), stamp_of(info))


def read_bytes(uri: str) -> bytes:
    """The whole content of one file."""
    fs, path = locate(uri)
    with answered(uri):
        return bytes(fs.cat_file(path))


def read_plain(uri: str, *, at_most: int) -> bytes:
    """The content of one file that somebody else put there. Before a byte is read its size is looked at, and of a local
    one that it is a file.

    Raises:
        OSError: it cannot be read, or has more than `at_most` bytes; where it is local, also: it is a pipe, a device or
            a socket, which could be waited for without end.
    """
    if is_local(uri):
        content = _read_local(local_path(uri), at_most)
        if isinstance(content, Exception):
            raise content
        return content
    version = version_of(uri)
    if version is not None and version[0] > at_most:
        raise _too_large(version[0], at_most)
    return read_bytes(uri)


def read_many(root: str, paths: Sequence[str], *, at_most: int | None = None) -> list[bytes | Exception]:
    """The contents of files under a root, in order; for a file that cannot be read, the exception instead.

    A remote store is asked for all at once (fsspec does it concurrently where the store can). Of local files, which
    may have become others since they were listed, those are not read that are no plain files or larger than `at_most`
    bytes.

    Raises:
        StorageError: the store does not answer. That is no fault of the file, so nobody may take it for one.
    """
    if is_local(root):
        return [_read_local(local_path(root) / path, at_most) for path in paths]
    fs, base = locate(root)
    keys = [f"{base.rstrip('/')}/{path}" for path in paths]
    # Not fs.cat, which takes names with brackets or stars for patterns.
    contents = list(fs.cat_ranges(keys, None, None, on_error="return"))
    for content in contents:
        if isinstance(content, Exception) and not isinstance(content, PermissionError):
            with answered(root), suppress(FileNotFoundError):
                raise content
    return contents


def _too_large(size: int, at_most: int) -> OSError:
    return OSError(errno.EFBIG, f"{size} bytes, more than {at_most}")


def _read_local(path: Path, at_most: int | None) -> bytes | OSError:
    try:
        # Nobody may ever write into a pipe: opened so, it does not wait for one who does.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return OSError("no plain file, but a folder, a pipe, a device or a socket")
            if at_most is not None and status.st_size > at_most:
                return _too_large(status.st_size, at_most)
            return file.read()
    except OSError as error:
        return error


def write_bytes(uri: str, content: bytes | memoryview) -> None:
    """Writes one file so that it is there whole or not at all.

    Locally: a temporary name beside it, flushed to the disk, then renamed. Object stores put an object in one piece.
    Folders in between are made.

    Raises:
        StorageError: the disk is full, read-only or gone, or the store refuses; what was there before still is.
    """
    if not is_local(uri):
        fs, path = locate(uri)
        with answered(uri):
            _make_folder(uri, fs, path)
            fs.pipe_file(path, bytes(content))
        return
    target = local_path(uri)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, content)
    except OSError as error:  # its own words do not always say which file
        advice = "see to the disk, then run the same command again"
        raise StorageError(expected(f"room and leave to write {target}", error, advice)) from error


def _replace(target: Path, content: bytes | memoryview) -> None:
    temporary = target.with_name(temporary_name(target.name))
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(OSError):  # a disk that went away cannot be tidied, and its own error says so
            temporary.unlink(missing_ok=True)


def _make_folder(uri: str, fs: Any, path: str) -> None:
    """The folder of a far file. Object stores have none, and s3fs would make the bucket instead, misspelt or not."""
    if not _is_object_store(uri):
        fs.makedirs(posixpath.dirname(path), exist_ok=True)


def temporary_name(name: str) -> str:
    """A name that no other process uses; it starts with a dot, so that nobody takes it for data."""
    return f".{name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def move(source: str, target: str) -> None:
    """Moves one file within a store, replacing what was there; locally a rename, so whole or not at all."""
    fs, path = locate(target)
    if is_local(target):
        os.makedirs(posixpath.dirname(path), exist_ok=True)
        os.replace(locate(source)[1], path)
        return
    with answered(target):
        _make_folder(target, fs, path)
        fs.cp_file(locate(source)[1], path)
        fs.rm_file(locate(source)[1])


def remove(uri: str) -> None:
    """Removes a file, or a folder with all in it; nothing happens where there is none."""
    fs, path = locate(uri)
    if exists(uri):
        with answered(uri):
            fs.rm(path, recursive=bool(fs.isdir(path)))


def names_in(uri: str) -> list[str]:
    """The sorted names of what lies directly in a folder; empty where there is no folder."""
    fs, path = locate(uri)
    fs.invalidate_cache()
    if not is_folder(uri):
        return []
    with answered(uri):
        names = [name.rstrip("/") for name in fs.ls(path, detail=False)]
    # An empty object with the folder's own name marks a folder that pyarrow made, and is listed in it.
    return sorted(posixpath.basename(name) for name in names if name != path)

"""Where bytes live: one way to say it (a URI) and a few verbs that work on a local disk, S3, GCS and in memory.

A URI is a local path (`data/market`, `~/data`, `file:///data`), `s3://bucket/key`, `gs://bucket/key`, `memory://name`,
or anything else that fsspec knows. A `memory://` URI lives in one process and is meant for tests.
"""

import hashlib
import os
import posixpath
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from gracl.errors import ConfigError, expected

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
    try:
        fs, path = fsspec.core.url_to_fs(uri)
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
    return bool(fs.exists(path))


def is_folder(uri: str) -> bool:
    """Whether there is a folder at the URI; on an object store, whether anything lies under it."""
    fs, path = locate(uri)
    return bool(fs.isdir(path))


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
    fs, path = locate(uri)
    if not fs.exists(path):
        return None
    info = fs.info(path)
    return int(info["size"]), stamp_of(info)


def read_bytes(uri: str) -> bytes:
    """The whole content of one file."""
    fs, path = locate(uri)
    return bytes(fs.cat_file(path))


def read_many(root: str, paths: Sequence[str]) -> list[bytes | Exception]:
    """The contents of files under a root, in order; for a file that cannot be read, the exception instead.

    A remote store is asked for all at once (fsspec does it concurrently where the store can).
    """
    if is_local(root):
        return [_read_local(local_path(root) / path) for path in paths]
    fs, base = locate(root)
    keys = [f"{base.rstrip('/')}/{path}" for path in paths]
    # Not fs.cat, which takes names with brackets or stars for patterns.
    return list(fs.cat_ranges(keys, None, None, on_error="return"))


def _read_local(path: Path) -> bytes | Exception:
    try:
        return path.read_bytes()
    except OSError as error:
        return error


def write_bytes(uri: str, content: bytes | memoryview) -> None:
    """Writes one file so that it is there whole or not at all.

    Locally: a temporary name beside it, flushed to the disk, then renamed. Object stores put an object in one piece.
    Folders in between are made.
    """
    if not is_local(uri):
        fs, path = locate(uri)
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        fs.pipe_file(path, bytes(content))
        return
    target = local_path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(temporary_name(target.name))
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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
    fs.makedirs(posixpath.dirname(path), exist_ok=True)
    fs.cp_file(locate(source)[1], path)
    fs.rm_file(locate(source)[1])


def remove(uri: str) -> None:
    """Removes a file, or a folder with all in it; nothing happens where there is none."""
    fs, path = locate(uri)
    if fs.exists(path):
        fs.rm(path, recursive=bool(fs.isdir(path)))


def names_in(uri: str) -> list[str]:
    """The sorted names of what lies directly in a folder; empty where there is no folder."""
    fs, path = locate(uri)
    fs.invalidate_cache()
    if not fs.isdir(path):
        return []
    return sorted(posixpath.basename(name.rstrip("/")) for name in fs.ls(path, detail=False))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a local file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

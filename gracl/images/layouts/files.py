"""What lies in a raw folder: paths, sizes and stamps, on a disk or an object store, never outside the root."""

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gracl.errors import LayoutError, expected
from gracl.images import storage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SHOWN = 5


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file under a root: path relative to it with `/`, size in bytes, and a stamp that changes with the content."""

    path: str
    size: int
    stamp: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)


def is_image(path: str) -> bool:
    """Whether a path looks like a picture: a known suffix, and not a hidden file such as macOS leaves behind."""
    name = posixpath.basename(path)
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def shown(items: Iterable[object]) -> str:
    """The first few of many things, for an error's text."""
    items = list(items)
    rest = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(on_one_line(str(item)) for item in items[:SHOWN]) + rest


def on_one_line(name: str) -> str:
    """A name as it is, or with what is not to be seen spelt out: a name may hold a line's end, or turn the reading."""
    return spelt(name) if spelt(name).isprintable() else repr(spelt(name))


def is_utf8(path: str) -> bool:
    """Whether a name can be written down. A disk may hold any bytes as one; Python has those that are no UTF-8 as lone
    surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in path)


def spelt(path: str) -> str:
    """A name as it can be written down: bytes that are no UTF-8 as `\\xff`."""
    return path if is_utf8(path) else "".join(map(_spelt_sign, path))


def _spelt_sign(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # how Python has a byte that is none
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign if is_utf8(sign) else f"\\u{ord(sign):04x}"


def inside(path: str) -> str:
    """The normal form of a relative path.

    Raises:
        LayoutError: the path is empty, absolute, or climbs out of the root.
    """
    normal = posixpath.normpath(path) if path else ".."
    if posixpath.isabs(path) or "://" in path or normal == "." or normal.split("/")[0] == "..":
        raise LayoutError(
            expected("a path inside the root, relative to it", repr(path), "take it out of the list, or move the image")
        )
    return normal


def require_folders(root: str, folders: Iterable[str]) -> None:
    """Refuses a root in which one of these folders is missing (an object store has a folder when something lies in it).

    Raises:
        LayoutError: naming the folders that are missing and what is there instead.
    """
    missing = [folder for folder in folders if not storage.is_folder(storage.join(root, folder))]
    if missing:
        there = shown(storage.names_in(root)) or "nothing"
        raise LayoutError(
            expected(f"the folders {', '.join(missing)} in {root}", f"{there} there", "check raw= and layout=")
        )


def list_files(root: str, folder: str = "", *, recursive: bool = True) -> list[RawFile]:
    """Every file under `root/folder`, sorted by path.

    Raises:
        LayoutError: there is no such folder, a link leaves the root or goes round in a circle.
    """
    place = storage.join(root, folder) if folder else root
    if not storage.is_folder(place):
        raise LayoutError(expected(f"a folder at {place}", "none", "check raw="))
    walk = _local_files if storage.is_local(root) else _remote_files
    try:
        return sorted(walk(root, folder, recursive), key=lambda file: file.path)
    except PermissionError as error:
        raise LayoutError(expected(f"leave to read everything in {place}", error, "see to the rights")) from error


def _remote_files(root: str, folder: str, recursive: bool) -> Iterator[RawFile]:
    fs, base = storage.locate(root)
    fs.invalidate_cache()  # a listing from before would hide that the folder is being written
    place = f"{base.rstrip('/')}/{folder}".rstrip("/")
    with storage.answered(root):
        found = fs.find(place, maxdepth=None if recursive else 1, detail=True)
    for name, info in found.items():
        if not name.endswith("/"):
            path = name[len(base.rstrip("/")) + 1 :]
            yield RawFile(inside(path), int(info["size"]), storage.stamp_of(info))


def _local_files(root: str, folder: str, recursive: bool) -> Iterator[RawFile]:
    top = os.path.realpath(storage.local_path(root))
    place = os.path.join(top, folder) if folder else top
    _require_inside(place, top, folder)
    yield from _walk(place, folder, top, recursive, (os.path.realpath(place),))


def _walk(place: str, path: str, top: str, recursive: bool, above: tuple[str, ...]) -> Iterator[RawFile]:
    """Goes down one folder; `above` holds the real paths of the folders on the way, to see a circle."""
    with os.scandir(place) as entries:
        for entry in entries:
            inner = f"{path}/{entry.name}" if path else entry.name
            if entry.is_symlink():
                _require_inside(entry.path, top, inner)
            if not entry.is_dir():
                status = entry.stat()
                yield RawFile(inner, status.st_size, str(status.st_mtime_ns))
            elif recursive:
                real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if real in above:
                    raise LayoutError(expected("folders that end", f"{inner}, a link to a folder above", "remove it"))
                yield from _walk(entry.path, inner, top, recursive, (*above, real))


def _require_inside(place: str, top: str, path: str) -> None:
    """Refuses a link that leaves the root or leads nowhere."""
    real = os.path.realpath(place)
    if real != top and not real.startswith(top + os.sep):
        raise LayoutError(
            expected(f"paths inside the root {top}", f"{path}, a link to {real}", "copy the images into the root")
        )
    if not os.path.exists(real):
        raise LayoutError(expected("links that lead somewhere", f"{path}, a link to {real}", "remove or repair it"))

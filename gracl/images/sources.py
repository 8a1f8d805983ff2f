"""Pictures that nobody has packed into shards: a folder, a prefix of an object store, or a list that the user wrote."""

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import ImageError, LayoutError, ShardError, expected
from gracl.images import storage
from gracl.images.layouts.files import inside, is_image, is_utf8, list_files, shown, spelt
from gracl.images.layouts.table import NOTHING, open_words, word_of
from gracl.images.loading import Encoded
from gracl.images.manifests import manifest_uri
from gracl.images.preprocess import MAX_FILE_BYTES
from gracl.images.shards import ShardStore

LISTING_SCHEMA = pa.schema([("path", pa.string()), ("camera", pa.string()), ("track", pa.string())])


@dataclass(frozen=True)
class Listing:
    """What a source holds, in a fixed order: a picture's index is its row.

    `rows` has `path` (relative to `root`), `camera` and `track` (as the user wrote them; null where unknown).
    `unnamed` are files whose names are no UTF-8, spelt out: no table can name them, so they have no row.
    """

    root: str
    rows: pa.Table
    unnamed: tuple[str, ...] = ()

    @staticmethod
    def of_paths(root: str, paths: Sequence[str]) -> "Listing":
        """Pictures of which nothing but the path is known."""
        return Listing(root, _rows(paths, None, None))

    def digest(self) -> str:
        """The SHA-256 of names, cameras and tracks in their order; what is in the files is not looked at."""
        found = hashlib.sha256()
        for column in self.rows.columns:
            found.update("\0".join(word or "" for word in column.to_pylist()).encode() + b"\0\0")
        return found.hexdigest()


def list_source(uri: str) -> Listing:
    """The pictures of a source.

    Args:
        uri: a CSV or Parquet list (a column `path`, relative to the list's folder; if known `camera_id` and `track`, in
            numbers or words), else a folder or a prefix, of which every picture counts, in order of path.

    Raises:
        LayoutError: nothing is there; a list without `path`, with a path twice or outside its folder.
    """
    return _listed(uri) if uri.endswith((".csv", ".parquet")) else _found(uri)


def _listed(uri: str) -> Listing:
    batches = open_words(uri, needed=("path",), optional=("camera_id", "track"))[1]
    known, words = set[str](), {name: list[str]() for name in ("path", "camera_id", "track")}
    for rows in batches:
        paths = [inside(word_of(path)) for path in rows["path"]]
        # Row for row, so that a list of a few bytes cannot stand for more than memory holds.
        before = len(known)
        known.update(paths)
        if len(known) < before + len(paths):
            again = shown(path for path, times in Counter([*paths, *words["path"]]).items() if times > 1)
            raise LayoutError(expected(f"every path once in {uri}", f"again {again}", "list it once"))
        words["path"] += paths
        for name in ("camera_id", "track"):
            words[name] += [word_of(value) for value in rows[name]] if name in rows else [""] * len(paths)
    if not known:
        raise LayoutError(expected(f"rows with path in {uri}", "no row", "complete the list"))
    return Listing(storage.parent(uri), _rows(words["path"], words["camera_id"], words["track"]))


def _found(root: str) -> Listing:
    paths = [file.path for file in list_files(root) if is_image(file.path)]
    strange = [path for path in paths if not is_utf8(path)]
    if not paths:
        came = f"{shown(storage.names_in(root)) or 'nothing'} there"
        raise LayoutError(expected(f"pictures in {root}", came, "name a folder with pictures, or a list of them"))
    named = [path for path in paths if is_utf8(path)]
    if not named:
        raise LayoutError(expected(f"pictures with names in UTF-8 in {root}", shown(strange), "rename them"))
    unnamed = tuple(spelt(path) for path in strange)
    return Listing(root, _rows(named, None, None), unnamed)


def _rows(paths: Sequence[str], cameras: Sequence[str] | None, tracks: Sequence[str] | None) -> pa.Table:
    columns = [
        paths,
        *([None if word in NOTHING else word for word in some] if some else None for some in (cameras, tracks)),
    ]
    arrays = [pa.array(values if values is not None else [None] * len(paths), pa.string()) for values in columns]
    return pa.table(arrays, schema=LISTING_SCHEMA)


def open_pictures(
    source: str, *, digest: str = "", cache: str | None = None
) -> Callable[[Int64[ndarray, "rows"], Sequence[str]], Sequence[Encoded | ImageError]]:
    """A way to read again what an embedding table was made of: by index where it was a split of shards, else by path.

    Args:
        source: as the table says: a split's folder, a folder or prefix of pictures, or a list.
        digest: that a split must have; empty: any.
        cache: node-local folder for shards of a remote root.

    Raises:
        ShardError: another split lies there now, or a torn one.
        StorageError: the store does not answer.
    """
    if source.endswith((".csv", ".parquet")):
        return lambda indices, paths: read_pictures(storage.parent(source), paths)
    root, split = storage.parent(source), source.rstrip("/").rpartition("/")[2]
    if not storage.exists(manifest_uri(root, split)):
        return lambda indices, paths: read_pictures(source, paths)
    store = ShardStore.open(root, split, cache=cache)
    if digest and store.digest != digest:
        came = f"one of digest {store.digest[:12]}..."
        raise ShardError(expected(f"the split {source} of digest {digest[:12]}...", came, "extract it again"))
    return lambda indices, paths: store.read(indices)


def read_pictures(root: str, paths: Sequence[str]) -> list[bytes | ImageError]:
    """The bytes of picture files under a root, in order; for one that cannot be read, the reason.

    A path that leads out of the root, by its words or by a link, is one of these: tables and lists come from anywhere.

    Raises:
        StorageError: the store does not answer, which is no fault of a picture.
    """
    outside = [_is_outside(root, path) for path in paths]
    read = [path for path, out in zip(paths, outside, strict=True) if not out]
    contents = iter(storage.read_many(root, read, at_most=MAX_FILE_BYTES))
    found: list[bytes | ImageError] = []
    for path, out in zip(paths, outside, strict=True):
        content = OSError("it leads out of the folder") if out else next(contents)
        what = f"a picture at {posixpath.join(root, path)}"
        found.append(content if isinstance(content, bytes) else ImageError(expected(what, content, "check the path")))
    return found


def _is_outside(root: str, path: str) -> bool:
    try:
        inside(path)
    except LayoutError:
        return True
    if not storage.is_local(root):
        return False
    top = os.path.realpath(storage.local_path(root))
    return not os.path.realpath(os.path.join(top, path)).startswith(top.rstrip(os.sep) + os.sep)

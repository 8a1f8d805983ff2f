"""Reading a split: encoded images by index, straight from memory-mapped Arrow files.

Columns: `index int64, image large_binary, object_id int64, camera_id int64, height int32, width int32, path string`,
rows in order of index. Arrow IPC and not Parquet, because a row is then read by number without decoding anything;
`large_binary`, because 32-bit offsets end at 2 GB.
"""

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray

from gracl.checksums import is_verified, sha256_of
from gracl.errors import ShardError, expected
from gracl.images import storage
from gracl.images.cache import Wanted, cached_copy, default_cache
from gracl.images.manifests import Manifest, ShardEntry, manifest_uri, read_manifest
from gracl.types import Identities, ImageRecord

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("image", pa.large_binary()),
        ("object_id", pa.int64()),
        ("camera_id", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("path", pa.string()),
    ]
)

AGAIN = "restore it or ingest the split again (a copy in a cache folder: delete it)"
_FILE_START = b"ARROW1\0\0"
# Places of entries in Arrow's own tables: Message.header and RecordBatch.compression (Message.fbs).
_HEADER, _COMPRESSION = 2, 3

_open_stores: dict[tuple[str, str, str | None], tuple[object, "ShardStore"]] = {}
_opening = threading.Lock()


@dataclass(frozen=True)
class _Mapped:
    """One shard in memory: where each image begins in the mapped bytes, and the other columns.

    `stamp` is what its file was like: size, time and number. A mapped file that is cut short ends the process that
    reads behind its end (SIGBUS), so it is looked at before each reading.
    """

    stamp: tuple[int, int, int]
    offsets: Int64[ndarray, "ends"]
    images: memoryview
    table: pa.Table


class ShardStore:
    """A split that is open for reading by index, from any thread. `open` is the way to one; it pickles by reopening."""

    def __init__(self, root: str, split: str, *, cache: str | None, manifest: Manifest, folder: Path) -> None:
        self.root = root
        self.split = split
        self.manifest = manifest
        self.digest = manifest.digest
        self._cache = cache
        self._folder = folder
        self._firsts = np.array([shard.first_index for shard in manifest.shards], np.int64)
        self._mapped: list[_Mapped | None] = [None] * len(manifest.shards)

    @classmethod
    def open(cls, root: str, split: str, *, cache: str | None = None) -> "ShardStore":
        """Opens a split; in one process the same split is opened once and shared.

        Local shards are memory-mapped where they lie. Shards at a remote root are first copied into a node-local
        folder, verified by checksum; processes of one node share the copy.

        Args:
            root: URI of the dataset, the folder in which the split's folder lies.
            split: train, query or gallery.
            cache: local folder for copies of remote shards; None: `$GRACL_CACHE` or the user's cache folder.

        Raises:
            ShardError: no manifest, another schema version, or a shard that is missing or of another size.
        """
        root = storage.absolute(root)
        key = (root, split, cache)
        with _opening:
            version = _version(root, split)
            known = _open_stores.get(key)
            if known is None or known[0] != version:
                manifest = read_manifest(root, split)
                folder = _folder(root, split, cache, manifest)
                known = version, cls(root, split, cache=cache, manifest=manifest, folder=folder)
                _open_stores[key] = known
            return known[1]

    def __len__(self) -> int:
        return self.manifest.num_images

    def __reduce__(self) -> tuple[Callable[..., "ShardStore"], tuple[str, str, str | None]]:
        return _reopen, (self.root, self.split, self._cache)

    def read(self, indices: Int64[ndarray, "images"]) -> list[memoryview]:
        """The encoded bytes of images, in the order asked; views into the mapped file, nothing is copied.

        Raises:
            ShardError: an index is not in the split, or a shard is torn, gone, or was changed since it was mapped.
        """
        images = []
        for shard, row in self._places(indices):
            mapped = self._shard(shard)
            images.append(mapped.images[mapped.offsets[row] : mapped.offsets[row + 1]])
        return images

    def paths(self, indices: Int64[ndarray, "images"]) -> list[str]:
        """The paths of images under the raw root, in the order asked."""
        return [self._shard(shard).table["path"][row].as_py() for shard, row in self._places(indices)]

    def records(self, indices: Int64[ndarray, "images"]) -> list[ImageRecord]:
        """Whole rows, in the order asked; the bytes are copied."""
        records = []
        for shard, row in self._places(indices):
            table = self._shard(shard).table
            # Column by column: height and width are not part of a record.
            values = (table[name][row].as_py() for name in ("index", "image", "object_id", "camera_id", "path"))
            records.append(ImageRecord(*values))
        return records

    def identities(self) -> Identities:
        """Who is on every image and which camera took it, by index; for query and gallery, not for training."""
        return Identities(self._column("object_id"), self._column("camera_id"))

    def camera_ids(self) -> Int64[ndarray, "images"]:
        """The camera of every image in order of index, -1 where unknown; the column of identities is not touched."""
        return self._column("camera_id")

    def verify(self) -> None:
        """Reads every shard once more and compares it with its checksum.

        Raises:
            ShardError: naming each shard that is not what the manifest says.
        """
        torn = [shard.file for shard in self.manifest.shards if sha256_of(self._folder / shard.file) != shard.sha256]
        if torn:
            raise ShardError(
                expected(
                    f"the checksums of {manifest_uri(self.root, self.split)}",
                    f"other content in {', '.join(str(self._folder / file) for file in torn)}",
                    AGAIN,
                )
            )

    def _column(self, name: str) -> Int64[ndarray, "images"]:
        return np.concatenate([self._shard(shard).table[name].to_numpy() for shard in range(len(self._mapped))])

    def _places(self, indices: Int64[ndarray, "images"]) -> list[tuple[int, int]]:
        """Shard and row of every index, as plain numbers."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            came = f"{indices.min()} to {indices.max()}"
            raise ShardError(
                expected(f"indices from 0 to {len(self) - 1}", came, "does the plan belong to this split?")
            )
        shards = np.searchsorted(self._firsts, indices, side="right") - 1
        for shard in np.unique(shards).tolist():
            self._map_anew_if_changed(shard)
        return list(zip(shards.tolist(), (indices - self._firsts[shards]).tolist(), strict=True))

    def _map_anew_if_changed(self, number: int) -> None:
        """Compares a file that was replaced or written to with its checksum once more."""
        mapped = self._mapped[number]
        if mapped is not None and _stamp(self._folder / self.manifest.shards[number].file) != mapped.stamp:
            self._mapped[number] = _map(self._folder, self.manifest.shards[number])

    def _shard(self, number: int) -> _Mapped:
        # Two threads may map the same shard at once: both get the same bytes, and the second replaces the first.
        mapped = self._mapped[number]
        if mapped is None:
            mapped = self._mapped[number] = _map(self._folder, self.manifest.shards[number])
        return mapped


def _reopen(root: str, split: str, cache: str | None) -> ShardStore:
    return ShardStore.open(root, split, cache=cache)


def _version(root: str, split: str) -> object:
    """What tells one ingest of a split from the next. A far store is not asked again in every `open`."""
    near = storage.is_local(root) or storage.is_in_memory(root)
    return storage.version_of(manifest_uri(root, split)) if near else "far"


def _folder(root: str, split: str, cache: str | None, manifest: Manifest) -> Path:
    """The local folder in which the shards of a split lie, whole."""
    if storage.is_local(root):
        folder = storage.local_path(storage.join(root, split))
    else:
        folder = Path(cache or default_cache()).expanduser().absolute() / manifest.digest[:24]
        files = [Wanted(shard.file, shard.bytes, shard.sha256) for shard in manifest.shards]
        cached_copy(storage.join(root, split), files, folder)
    for shard in manifest.shards:
        path = folder / shard.file
        size = path.stat().st_size if path.exists() else None
        if size != shard.bytes:
            came = "no such file" if size is None else f"{size} bytes"
            raise ShardError(expected(f"{path} with {shard.bytes} bytes", came, "ingest the split again"))
    return folder


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(expected(f"a shard at {path} that stays", error, AGAIN)) from error
    return status.st_size, status.st_mtime_ns, status.st_ino


def _table(path: Path) -> pa.Table:
    """The one batch of a shard, in the mapped file itself. Arrow would unpack a compressed one to any size that it
    claims, so such a one, which ingest never writes, is refused unread.
    """
    file = pa.memory_map(str(path))
    if file.read(len(_FILE_START)) != _FILE_START:
        raise ValueError("no Arrow file")
    messages = pa.ipc.MessageReader.open_stream(file)
    schema = pa.ipc.read_schema(messages.read_next_message())
    batch = messages.read_next_message()
    if batch.type != "record batch" or _is_compressed(batch.metadata):
        raise ValueError("compressed, or no rows at all")
    return pa.Table.from_batches([pa.ipc.read_record_batch(batch, schema)])


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Whether a message of Arrow says that its batch is compressed; it is a flatbuffer, and pyarrow does not tell."""
    content = metadata.to_pybytes()
    message: int = struct.unpack_from("<I", content)[0]
    header = _entry_of(content, message, _HEADER)
    batch = header + struct.unpack_from("<I", content, header)[0]
    return bool(_entry_of(content, batch, _COMPRESSION))


def _entry_of(content: bytes, table: int, number: int) -> int:
    """Where the entry of a flatbuffer's table stands; 0 where it is left out."""
    kinds = table - struct.unpack_from("<i", content, table)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", content, kinds)[0]:
        return 0
    offset: int = struct.unpack_from("<H", content, kinds + place)[0]
    return table + offset if offset else 0


def _map(folder: Path, shard: ShardEntry) -> _Mapped:
    path = folder / shard.file
    stamp = _stamp(path)
    try:
        # Read once in full, which finds out what a mapped file could only answer by ending the process.
        if is_verified() and (stamp[0] != shard.bytes or sha256_of(path) != shard.sha256):
            came = f"{stamp[0]} bytes with another checksum"
            raise ShardError(
                expected(f"{path} with {shard.bytes} bytes and SHA-256 {shard.sha256[:12]}...", came, AGAIN)
            )
        table = _table(path)
        table.validate(full=True)  # every image and path lies within the file
    except (pa.ArrowException, OSError, ValueError, EOFError, struct.error) as error:
        raise ShardError(expected(f"a readable shard at {path}", error, "ingest the split again")) from error
    whole = table.schema.equals(SCHEMA) and not any(column.null_count for column in table.columns)
    first = table["index"][0].as_py() if table.num_rows and whole else None
    if table.num_rows != shard.rows or first != shard.first_index:
        came = f"{table.num_rows} rows from {first}, columns {table.schema.names}"
        raise ShardError(
            expected(f"{shard.rows} rows from {shard.first_index} in {path}", came, "ingest the split again")
        )
    image = table["image"].chunk(0)
    _, offsets, content = image.buffers()
    return _Mapped(stamp, np.frombuffer(offsets, np.int64, count=len(image) + 1), memoryview(content).cast("B"), table)

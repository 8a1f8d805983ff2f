"""The manifest of a split: what its shards must be. It is written last; a split without one does not exist."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_type_hints

from gracl.errors import ShardError, expected
from gracl.images import storage
from gracl.images.plain_json import check_values, read_values, told

SCHEMA_VERSION = 1
# A row takes at least its numbers: index, object, camera and the end of its image (8 bytes each), height, width and the
# end of its path (4 each).
ROW_BYTES = 44
FILE_NAME = re.compile(r"[\w-][\w.-]*")
MANIFEST = "manifest.json"
# Room for half a million bad images, or for a quarter of a million shards.
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ShardEntry:
    """One shard: file name in the split's folder, index of its first row, rows, size in bytes, SHA-256."""

    file: str
    first_index: int
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BadImage:
    """An image that was left out: its path under the raw root, and why it cannot be read."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """A split as it was ingested.

    `image_bytes` counts the encoded images alone. `num_objects` and `num_cameras` count what is known (not -1).
    `created_by` is the version of gracl. The same raw folder and options give the same manifest, byte for byte.
    """

    schema_version: int
    split: str
    num_images: int
    image_bytes: int
    num_objects: int
    num_cameras: int
    layout: str
    layout_version: str
    source: str
    resize: tuple[int, int] | None
    created_by: str
    notes: dict[str, int]
    bad_images: tuple[BadImage, ...]
    shards: tuple[ShardEntry, ...]

    def to_json(self) -> bytes:
        """The manifest as it stands on disk."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    @property
    def digest(self) -> str:
        """The SHA-256 of the manifest's content: two splits with one digest hold the same images in the same order."""
        return hashlib.sha256(self.to_json()).hexdigest()


def manifest_uri(root: str, split: str) -> str:
    """Where the manifest of a split stands."""
    return storage.join(root, split, MANIFEST)


def read_manifest(root: str, split: str) -> Manifest:
    """Reads and checks the manifest of a split.

    Raises:
        ShardError: there is none (the ingest was not finished), it is torn, of another schema version or of another
            split, or its shards do not follow one another.
    """
    uri = manifest_uri(root, split)
    if not storage.exists(uri):
        raise ShardError(expected(f"a split at {uri}", "no manifest", "ingest it, or let its ingest finish"))
    what = f"a manifest at {uri}"
    values = told(uri, what, partial(read_values, at_most=MAX_BYTES), ShardError, AGAIN)
    told(uri, what, lambda _: check_values(values, {"schema_version": int}), ShardError, AGAIN)
    if values["schema_version"] != SCHEMA_VERSION:
        raise ShardError(expected(f"schema version {SCHEMA_VERSION} in {uri}", values["schema_version"], AGAIN))
    manifest: Manifest = told(
        uri, f"the fields of a manifest in {uri}", lambda _: _from_values(values), ShardError, AGAIN
    )
    _check(manifest, split, uri)
    return manifest


AGAIN = "ingest the split again with this version of gracl"


def _from_values(values: dict[str, Any]) -> Manifest:
    _check_fields(values, Manifest, shards=list[dict[str, Any]], bad_images=list[dict[str, Any]])
    for kind, parts in ((ShardEntry, values["shards"]), (BadImage, values["bad_images"])):
        for part in parts:
            _check_fields(part, kind)
    shards = tuple(ShardEntry(**shard) for shard in values["shards"])
    bad = tuple(BadImage(**image) for image in values["bad_images"])
    resize = tuple(values["resize"]) if values["resize"] is not None else None
    manifest = Manifest(**{**values, "shards": shards, "bad_images": bad, "resize": resize})
    counts = [manifest.num_images, manifest.num_objects, manifest.num_cameras, manifest.image_bytes]
    counts += [number for shard in shards for number in (shard.first_index, shard.rows, shard.bytes)]
    if not all(0 <= count < 2**63 for count in counts):
        raise ValueError("a count that is no whole number from 0")
    return manifest


def _check_fields(values: dict[str, Any], kind: type, **others: Any) -> None:
    kinds = get_type_hints(kind) | others
    if strange := values.keys() - kinds.keys():
        raise ValueError(f"what nobody knows: {', '.join(sorted(strange))}")
    check_values(values, kinds)


def _check(manifest: Manifest, split: str, uri: str) -> None:
    if manifest.split != split:
        raise ShardError(expected(f"the split {split} in {uri}", manifest.split, "do not move manifests about"))
    first = 0
    for shard in manifest.shards:
        if not isinstance(shard.file, str) or not FILE_NAME.fullmatch(shard.file):
            # Shards are read, and copied to a cache, under the name that stands here.
            raise ShardError(expected(f"plain file names in {uri}", repr(shard.file), AGAIN))
        if shard.rows * ROW_BYTES > shard.bytes:
            # Plans are made for so many images before a shard is opened.
            came = f"{shard.rows} rows in {shard.bytes} bytes"
            raise ShardError(expected(f"as many rows as {shard.file} can hold in {uri}", came, AGAIN))
        if shard.first_index != first or shard.rows < 1:
            raise ShardError(expected(f"{shard.file} to begin at {first} in {uri}", shard.first_index, AGAIN))
        first += shard.rows
    if first != manifest.num_images or not first:
        raise ShardError(expected(f"{manifest.num_images} rows in the shards of {uri}", first, AGAIN))

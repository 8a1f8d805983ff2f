"""Writing a split: every image is decoded once, stored as found, and counted; the manifest comes last.

The steps are plain functions on plain values, so that they can run one after another in this process or side by side
on Ray (`ingesting.py` puts them in order): `plan_shards`, `write_shard` for each, `plan_moves`, `move_shard` for each,
`make_manifest`. A shard's rows are numbered as if no image were bad; only when one is, the shards behind it are
numbered anew while they are moved, so that no raw image is read twice.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from gracl.errors import ShardError, expected
from gracl.images import storage
from gracl.images.decoding import decode
from gracl.images.layouts import Listing, RawImage
from gracl.images.layouts.files import is_utf8, spelt
from gracl.images.manifests import SCHEMA_VERSION, BadImage, Manifest, ShardEntry
from gracl.images.preprocess import MAX_FILE_BYTES
from gracl.images.shards import SCHEMA
from gracl.types import UNKNOWN

JPEG_QUALITY = 95
JPEG_START = b"\xff\xd8"
READ_AT_ONCE = 256
NO_NAME = "its name is not UTF-8"
MEGABYTE = 10**6

Size = tuple[int, int]
Row = tuple[bytes, int, int, int, int, str]


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: images next to each other in a split, and the number of the first as if none were bad."""

    root: str
    images: tuple[RawImage, ...]
    sizes: tuple[int, ...]
    first_index: int
    target: str
    resize: Size | None


@dataclass(frozen=True)
class ShardPart:
    """A shard that was written under a passing name; nothing was written where `entry.rows` is 0."""

    split: str
    target: str
    entry: ShardEntry
    image_bytes: int
    bad: tuple[BadImage, ...]


@dataclass(frozen=True)
class ShardMove:
    """A written shard, where it shall stand, and what it shall say of itself there."""

    source: str
    target: str
    first_index: int
    entry: ShardEntry


def plan_shards(listing: Listing, split: str, folder: str, *, shard_mb: int, resize: Size | None) -> list[ShardJob]:
    """Cuts a split into runs of images of about `shard_mb` megabytes each (as found), at least one image in each.

    Args:
        listing: of the raw dataset.
        split: which to cut.
        folder: URI under which the shards are written for the time being.
        shard_mb: 10^6 bytes.
        resize: height and width to store, or None to store the bytes as found.
    """
    mine = [(image, size) for image, size in zip(listing.images, listing.sizes, strict=True) if image.split == split]
    jobs: list[ShardJob] = []
    start = filled = 0
    for stop, (_, size) in enumerate(mine, 1):
        filled += size
        if filled >= shard_mb * MEGABYTE or stop == len(mine):
            images, sizes = zip(*mine[start:stop], strict=True)
            target = storage.join(folder, f"part-{len(jobs):05d}.arrow")
            jobs.append(ShardJob(listing.root, images, sizes, start, target, resize))
            start, filled = stop, 0
    return jobs


def write_shard(job: ShardJob) -> ShardPart:
    """Reads the images of a job, decodes each once to see that it can be, and writes those that can into one file.

    What cannot be read does not raise: it is listed with its reason, and whoever asked decides.
    """
    rows: list[Row] = []
    bad: list[BadImage] = []
    for start in range(0, len(job.images), READ_AT_ONCE):
        images = job.images[start : start + READ_AT_ONCE]
        sizes = job.sizes[start : start + READ_AT_ONCE]
        for image, size, content in zip(images, sizes, _contents(job.root, images, sizes), strict=True):
            checked = _checked(image, size, content, job.resize)
            if isinstance(checked, BadImage):
                bad.append(checked)
            else:
                rows.append(checked)
    return _write(job, rows, tuple(bad))


def _contents(root: str, images: Sequence[RawImage], sizes: Sequence[int]) -> Iterator[bytes | Exception]:
    """What each file holds, or why that is not known. A file that is too large was listed so, and is not read; nor is
    one whose name could not be written down."""
    why = [_unread(image, size) for image, size in zip(images, sizes, strict=True)]
    wanted = [image.path for image, fault in zip(images, why, strict=True) if fault is None]
    read = iter(storage.read_many(root, wanted, at_most=MAX_FILE_BYTES))
    for fault in why:
        yield next(read) if fault is None else fault


def _unread(image: RawImage, size: int) -> Exception | None:
    if not is_utf8(image.path):
        return ValueError(NO_NAME)
    return OSError(f"{size} bytes, more than {MAX_FILE_BYTES}") if size > MAX_FILE_BYTES else None


def _checked(image: RawImage, size: int, content: bytes | Exception, resize: Size | None) -> Row | BadImage:
    """The image's row without its index, or why there is none."""
    if not is_utf8(image.path):
        return BadImage(image.path, NO_NAME)
    if isinstance(content, Exception):
        return BadImage(image.path, f"{type(content).__name__}: {content}")
    if len(content) != size:
        return BadImage(image.path, f"it had {size} bytes when it was listed and {len(content)} when it was read")
    try:
        stored, (height, width) = _prepared(content, resize)
    except Exception as error:  # whatever a decoder says of damaged bytes, it is this image's reason and is reported
        return BadImage(image.path, _reason(error))
    return stored, image.object_id, image.camera_id, height, width, image.path


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, UnidentifiedImageError):  # its own text holds an address, another one in every run
        return "no picture of a known format"
    return str(cause) or type(cause).__name__


def _prepared(content: bytes, resize: Size | None) -> tuple[bytes, Size]:
    """The bytes to store and the size of the picture in them; decoding here is the check."""
    picture = decode(content)
    size = picture.shape[:2]
    if resize is None or (size == resize and content.startswith(JPEG_START)):
        return content, size
    buffer = io.BytesIO()
    small = Image.fromarray(picture).resize((resize[1], resize[0]), Image.Resampling.BICUBIC)
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), resize


def _write(job: ShardJob, rows: Sequence[Row], bad: tuple[BadImage, ...]) -> ShardPart:
    name = job.target.rsplit("/", 1)[-1]
    split = job.images[0].split
    if not rows:
        return ShardPart(split, job.target, ShardEntry(name, job.first_index, 0, 0, ""), 0, bad)
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types[1:], strict=True)]
    content = _file(job.first_index, len(rows), arrays)
    storage.write_bytes(job.target, content)
    entry = _entry(name, job.first_index, len(rows), content)
    return ShardPart(split, job.target, entry, sum(len(row[0]) for row in rows), bad)


def _file(first_index: int, rows: int, arrays: Sequence[pa.Array]) -> memoryview:
    """An Arrow IPC file with one batch: the columns behind `index`, and the index in front."""
    index = pa.array(np.arange(first_index, first_index + rows, dtype=np.int64))
    batch = pa.RecordBatch.from_arrays([index, *arrays], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue()).cast("B")


def _entry(file: str, first_index: int, rows: int, content: memoryview) -> ShardEntry:
    return ShardEntry(file, first_index, rows, len(content), hashlib.sha256(content).hexdigest())


def plan_moves(parts: Sequence[ShardPart], folder: str) -> list[ShardMove]:
    """Gives the parts of one split their final names and first indices, in their order; empty parts fall out."""
    moves: list[ShardMove] = []
    first = 0
    for part in parts:
        if part.entry.rows:
            name = f"shard-{len(moves):05d}.arrow"
            entry = replace(part.entry, file=name)
            moves.append(ShardMove(part.target, storage.join(folder, name), first, entry))
            first += entry.rows
    return moves


def move_shard(move: ShardMove) -> ShardEntry:
    """Puts a written shard in its final place, renumbered where images before it were left out.

    Raises:
        ShardError: what was written is not there.
    """
    version = storage.version_of(move.source)
    moved = storage.version_of(move.target)
    if version is None and moved is not None and moved[0] == move.entry.bytes:
        # A task that is tried again after its process was lost: the shard is where it belongs.
        checksum = hashlib.sha256(storage.read_bytes(move.target)).hexdigest()
        return replace(move.entry, first_index=move.first_index, sha256=checksum)
    if version is None or version[0] != move.entry.bytes:
        raise ShardError(
            expected(
                f"{move.source} with {move.entry.bytes} bytes",
                "no such file" if version is None else f"{version[0]} bytes",
                "on a cluster a local path must be one that all nodes share; and no one may touch it meanwhile",
            )
        )
    if move.entry.first_index == move.first_index:
        storage.move(move.source, move.target)
        return move.entry
    batch = pa.ipc.open_file(pa.py_buffer(storage.read_bytes(move.source))).get_batch(0)
    content = _file(move.first_index, batch.num_rows, batch.columns[1:])
    storage.write_bytes(move.target, content)
    storage.remove(move.source)
    return _entry(move.entry.file, move.first_index, batch.num_rows, content)


def make_manifest(
    listing: Listing, split: str, parts: Sequence[ShardPart], shards: Sequence[ShardEntry], *, resize: Size | None
) -> Manifest:
    """Says of one split what its shards hold; `parts` and `shards` are the split's own, in order.

    Bad images have their names there as they can be written (`spelt`), so two may read the same.
    """
    bad = tuple(image for part in parts for image in part.bad)
    left_out = {image.path for image in bad}
    kept = [image for image in listing.images if image.split == split and image.path not in left_out]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        split=split,
        num_images=len(kept),
        image_bytes=sum(part.image_bytes for part in parts),
        num_objects=len({image.object_id for image in kept} - {UNKNOWN}),
        num_cameras=len({image.camera_id for image in kept} - {UNKNOWN}),
        layout=listing.layout,
        layout_version=listing.version,
        source=listing.root,
        resize=resize,
        created_by=_version(),
        notes=listing.notes,
        bad_images=tuple(replace(image, path=spelt(image.path)) for image in bad),
        shards=tuple(shards),
    )


def _version() -> str:
    try:
        return f"gracl {metadata.version('gracl')}"
    except metadata.PackageNotFoundError:  # run from a working directory that was sent to a cluster
        return "gracl, not installed"

"""From a listing to whole splits: the order of the steps, and what must hold before anything is said to exist.

Everything is written into a folder of its own beside the splits. Only when every shard of every split stands there and
the raw folder still is what it was, the shards are put in their places, and the manifests come last. Whoever is killed
on the way leaves no manifest that says more than is there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, Protocol, TypeVar, runtime_checkable

from gracl.errors import ConfigError, ImageError, LayoutError, StorageError, expected
from gracl.images import storage
from gracl.images.layouts import Listing, list_images
from gracl.images.layouts.files import is_utf8, on_one_line, shown
from gracl.images.manifests import MAX_BYTES, BadImage, Manifest, manifest_uri
from gracl.images.writing import (
    ShardMove,
    ShardPart,
    Size,
    make_manifest,
    move_shard,
    plan_moves,
    plan_shards,
    write_shard,
)
from gracl.locks import holding

Job = TypeVar("Job")
Result = TypeVar("Result")
OnBadImage = Literal["error", "skip"]

BAD_SHOWN = 20
STAGING = "ingest"


@runtime_checkable
class Run(Protocol):
    """Does a function on many jobs, in whatever order and place, and yields (place of the job, its result)."""

    def __call__(self, function: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterable[tuple[int, Result]]:
        """Every job's place is yielded once; an error of a job is raised."""
        ...


def in_this_process(function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
    """Does jobs one after another; yields each one's place and result. The simplest `run` of `write_splits`."""
    for place, job in enumerate(jobs):
        yield place, function(job)


def write_splits(
    listing: Listing,
    out: str,
    *,
    list_again: Callable[[], Listing],
    run: Run = in_this_process,
    progress: Callable[[int], None] = lambda images: None,
    on_bad_image: OnBadImage = "error",
    shard_mb: int = 64,
    resize: Size | None = None,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Writes every split of a listing under `out`, or none of them.

    Args:
        listing: what to write.
        out: URI of the folder that will hold one folder per split.
        list_again: lists the raw folder anew, to see whether it changed meanwhile.
        run: does a function on many jobs and yields (place, result) in any order.
        progress: called with the number of images that were finished since the last call.
        on_bad_image: `error` refuses the whole, listing the first 20 with path and reason; `skip` leaves them out and
            lists them in the manifest.
        shard_mb: size of a shard in 10^6 bytes.
        resize: height and width to store as JPEG of quality 95, or None to store the bytes as found.
        overwrite: replace splits that exist; they stay whole until everything new stands.

    Raises:
        ConfigError: a split exists and `overwrite` is not set, or another ingest is writing there.
        ImageError: images cannot be read.
        LayoutError: paths are no UTF-8 and are not to be skipped, the raw folder changed meanwhile, nothing readable is
            left of a split, or so many are bad that no manifest holds their list.
        ShardError: what was written did not stay.
        StorageError: it could not be written.
    """
    _refuse_existing(listing, out, overwrite)
    if on_bad_image == "error":
        _refuse_unwritable(listing)
    try:
        with holding(out, place_of(out)):
            _refuse_existing(listing, out, overwrite)  # another one may have ended just now
            return _write(listing, out, list_again, run, progress, on_bad_image, shard_mb=shard_mb, resize=resize)
    except OSError as error:
        raise StorageError(
            expected(f"room and leave to write in {out}", error, "see to it, then ingest again")
        ) from error


def place_of(out: str) -> str:
    """What an ingest holds, in words."""
    return f"the shards in {out}"


def _write(
    listing: Listing,
    out: str,
    list_again: Callable[[], Listing],
    run: Run,
    progress: Callable[[int], None],
    on_bad_image: OnBadImage,
    *,
    shard_mb: int,
    resize: Size | None,
) -> dict[str, Manifest]:
    staging = storage.join(out, storage.temporary_name(STAGING))
    try:
        parts = _write_parts(listing, staging, run, progress, shard_mb=shard_mb, resize=resize)
        _judge_bad([image for part in parts for image in part.bad], on_bad_image)
        _refuse_changed(listing, list_again())
        return _publish(listing, out, parts, run, resize)
    finally:
        storage.remove(staging)


def _refuse_existing(listing: Listing, out: str, overwrite: bool) -> None:
    there = [split for split in listing.splits if storage.exists(manifest_uri(out, split))]
    if there and not overwrite:
        raise ConfigError(
            expected(f"no finished split in {out}", ", ".join(there), "choose another out=, or say overwrite=true")
        )


def _refuse_unwritable(listing: Listing) -> None:
    """Names that no manifest can hold, found before a picture is read."""
    strange = [image.path for image in listing.images if not is_utf8(image.path)]
    if strange:
        came = f"{len(strange)} that are not: {shown(strange)}"
        raise LayoutError(expected("paths in UTF-8", came, "rename them, or say on_bad_image=skip"))


def _write_parts(
    listing: Listing, staging: str, run: Run, progress: Callable[[int], None], *, shard_mb: int, resize: Size | None
) -> list[ShardPart]:
    """All shards of all splits under passing names, in order of split and index."""
    plan = partial(plan_shards, listing, shard_mb=shard_mb, resize=resize)
    jobs = [job for split in listing.splits for job in plan(split, storage.join(staging, split))]
    parts: list[ShardPart | None] = [None] * len(jobs)
    for place, part in run(write_shard, jobs):
        parts[place] = part
        progress(len(jobs[place].images))
    written = [part for part in parts if part is not None]
    assert len(written) == len(jobs), "run must do every job"
    return written


def _judge_bad(bad: Sequence[BadImage], on_bad_image: OnBadImage) -> None:
    if not bad or on_bad_image == "skip":
        return
    lines = "".join(f"\n  {on_one_line(image.path)}: {on_one_line(image.reason)}" for image in bad[:BAD_SHOWN])
    more = f"\n  and {len(bad) - BAD_SHOWN} more" if len(bad) > BAD_SHOWN else ""
    advice = "replace or remove them, or say on_bad_image=skip"
    raise ImageError(expected("images that can be read", f"{len(bad)} that cannot:{lines}{more}\n", advice))


def _refuse_changed(before: Listing, after: Listing) -> None:
    """Refuses a folder in which an image came, went, or has another size, stamp, split or identity than before."""
    old, new = (set(zip(listing.images, listing.sizes, listing.stamps, strict=True)) for listing in (before, after))
    if old != new:
        changed = sorted({image.path for image, _, _ in old ^ new})
        raise LayoutError(
            expected(
                f"{before.root} to stay as it was while it is read",
                f"{len(changed)} images added, removed or rewritten: {shown(changed)}",
                "wait until it is complete, then ingest again",
            )
        )


def _publish(
    listing: Listing, out: str, parts: Sequence[ShardPart], run: Run, resize: Size | None
) -> dict[str, Manifest]:
    """Puts the shards in their places and, when all stand, the manifests."""
    by_split = {split: [part for part in parts if part.split == split] for split in listing.splits}
    moves = {split: plan_moves(mine, storage.join(out, split)) for split, mine in by_split.items()}
    for split in listing.splits:
        if not moves[split]:
            raise LayoutError(expected(f"a readable image in the split {split}", "none", "look at the raw images"))
        _refuse_long(listing, split, by_split[split], moves[split])
    for split in listing.splits:
        storage.remove(manifest_uri(out, split))
    for split in listing.splits:
        _remove_shards(storage.join(out, split))
    manifests: dict[str, Manifest] = {}
    for split, wanted in moves.items():
        shards = dict(run(move_shard, wanted))
        ordered = [shards[place] for place in range(len(wanted))]
        manifests[split] = make_manifest(listing, split, by_split[split], ordered, resize=resize)
    for manifest in manifests.values():
        storage.write_bytes(manifest_uri(out, manifest.split), manifest.to_json())
    return manifests


def _refuse_long(listing: Listing, split: str, parts: Sequence[ShardPart], moves: Sequence[ShardMove]) -> None:
    """Refuses a split whose manifest would be longer than its readers take, before anything is put in its place."""
    manifest = make_manifest(listing, split, parts, [move.entry for move in moves], resize=None)
    size = len(manifest.to_json()) + 32 * (1 + len(moves))  # its first indices may have more digits then
    if size > MAX_BYTES:
        came = f"{size} bytes, for {len(moves)} shards and {len(manifest.bad_images)} bad images"
        raise LayoutError(
            expected(
                f"a manifest of the split {split} of at most {MAX_BYTES} bytes",
                came,
                "take the bad images away, or raise shard_mb",
            )
        )


def _remove_shards(folder: str) -> None:
    """Takes away shards of an older ingest, so that none of them outlives its manifest."""
    for name in storage.names_in(folder):
        if name.startswith("shard-") and name.endswith(".arrow"):
            storage.remove(storage.join(folder, name))


def ingest_here(
    raw: str,
    out: str,
    layout: str,
    *,
    allow_shared_identities: bool = False,
    on_bad_image: OnBadImage = "error",
    shard_mb: int = 64,
    resize: Size | None = None,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Lists a raw dataset and writes its splits in this process; the twin of `gracl.runtime.ingest` without Ray.

    Arguments and errors: `list_images` and `write_splits`.
    """
    look = partial(list_images, raw, layout, allow_shared_identities=allow_shared_identities)
    return write_splits(
        look(),
        storage.absolute(out),
        list_again=look,
        on_bad_image=on_bad_image,
        shard_mb=shard_mb,
        resize=resize,
        overwrite=overwrite,
    )

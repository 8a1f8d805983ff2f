"""Ingest on Ray: shards are written side by side, one task each, with a line on the terminal that says how far.

The steps and what must hold between them are in `gracl.images.ingesting`; here is only where they run.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import ray

from gracl.config import IngestConfig
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.ingesting import STAGING, OnBadImage, Run, in_this_process, write_splits
from gracl.images.layouts import Listing, list_images
from gracl.images.manifests import Manifest
from gracl.runtime.session import Demand, session

Job = TypeVar("Job")
Result = TypeVar("Result")
SECONDS_BETWEEN_LINES = 5.0
SECONDS_TO_CANCEL = 10.0


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Packs a raw dataset into shards, on the cluster that Ray is told of or on this machine.

    Returns:
        What `pack` returns.
    """
    if storage.is_in_memory(config.raw) or storage.is_in_memory(config.out):
        return pack(**config.options())
    with session(Demand(cpus=max(1, config.tasks), gpus=0, parts="tasks that write shards")):
        return pack(**config.options())


def pack(
    *,
    raw: str,
    out: str,
    layout: str,
    on_bad_image: OnBadImage = "error",
    shard_mb: int = 64,
    resize: tuple[int, int] | None = None,
    overwrite: bool = False,
    allow_shared_identities: bool = False,
    tasks: int = 0,
) -> dict[str, Any]:
    """Packs a raw dataset into shards; every split becomes visible only when all stand.

    Ray must be initialised. A `memory://` URI lives in this process alone, so with one everything is done here.

    Args:
        raw: URI of the raw folder (for the layout `manifest` also of the list itself).
        out: URI of the folder that will hold the splits.
        layout: see `gracl.images.layouts`.
        on_bad_image: `error` or `skip`.
        shard_mb: size of a shard in 10^6 bytes.
        resize: height and width to store, or None to store the bytes as found.
        overwrite: replace splits that exist.
        allow_shared_identities: let train share identities with query or gallery.
        tasks: shards written at a time; 0: as many as the cluster has CPUs.

    Returns:
        layout, layout version, out, notes, seconds, images per second, where it ran, and per split the number of
        images, identities, cameras, shards, bad images and bytes.

    Raises:
        GraclError: as `list_images` and `write_splits` say; a ConfigError where Ray is not running.
    """
    begun = time.perf_counter()
    raw, out = storage.absolute(raw), storage.absolute(out)
    run, place = _runner(raw, out, tasks)
    look = partial(list_images, raw, layout, allow_shared_identities=allow_shared_identities)
    if left := [name for name in storage.names_in(out) if name.startswith(f".{STAGING}.")]:
        _say(f"ingest: {out} holds what an earlier run left when it was killed; to be deleted: {', '.join(left)}")
    _say(f"ingest: listing {raw} ({layout})")
    listing = look()
    progress = Progress(len(listing.images))
    manifests = write_splits(
        listing,
        out,
        list_again=look,
        run=run,
        progress=progress,
        on_bad_image=on_bad_image,
        shard_mb=shard_mb,
        resize=resize,
        overwrite=overwrite,
    )
    return _summary(listing, out, manifests, place, time.perf_counter() - begun)


def _runner(raw: str, out: str, tasks: int) -> tuple[Run, str]:
    """Who does the jobs, and how to call it in the summary."""
    if storage.is_in_memory(raw) or storage.is_in_memory(out):
        _say("ingest: memory:// lives in one process, so this one does all the work, without Ray")
        return in_this_process, "this process"
    if not ray.is_initialized():
        raise ConfigError(expected("a running Ray", "none", "call ray.init() first, or use pipelines/ingest.py"))
    at_once = tasks or max(1, int(ray.cluster_resources().get("CPU", 1)))
    return partial(on_ray, at_once=at_once), f"Ray, {at_once} at a time"


def on_ray(function: Callable[[Job], Result], jobs: Sequence[Job], *, at_once: int) -> Iterator[tuple[int, Result]]:
    """Does jobs as Ray tasks of one CPU each, at most `at_once` under way; yields (place, result) as they end.

    An error of a job is raised here as it was raised there; the other tasks are then cancelled.
    """
    task = ray.remote(num_cpus=1)(function)
    waiting = list(enumerate(jobs))[::-1]
    under_way: dict[ray.ObjectRef, int] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < at_once:
                place, job = waiting.pop()
                under_way[task.remote(job)] = place
            ended, _ = ray.wait(list(under_way), num_returns=1)
            yield under_way.pop(ended[0]), _result(ended[0])
    finally:
        for reference in under_way:
            ray.cancel(reference)
        if under_way:  # so that nobody still writes where the caller is about to clean up
            ray.wait(list(under_way), num_returns=len(under_way), timeout=SECONDS_TO_CANCEL)


def _result(reference: "ray.ObjectRef") -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None  # the task's own error, without the frames of Ray
        raise


class Progress:
    """Says how many images are done and how long it will still take, on stderr.

    On a terminal it is one line that moves, elsewhere a line every few seconds.

    Args:
        images: how many there are.
        write: takes the text; None: stderr.
        moving: whether `write` leads to a terminal; None: whether stderr does.
    """

    def __init__(
        self, images: int, *, write: Callable[[str], object] | None = None, moving: bool | None = None
    ) -> None:
        self._images = images
        self._write = _stderr if write is None else write
        self._moving = sys.stderr.isatty() if moving is None else moving
        self._done = 0
        self._begun = self._said = time.monotonic()

    def __call__(self, images: int) -> None:
        """Counts images that were finished."""
        self._done += images
        now = time.monotonic()
        last = self._done >= self._images
        if self._moving:
            self._write(f"\r{self._line(now)}\x1b[K" + ("\n" if last else ""))
        elif last or now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            self._write(f"{self._line(now)}\n")

    def _line(self, now: float) -> str:
        share = self._done / max(1, self._images)
        rate = self._done / max(1e-9, now - self._begun)
        left = (self._images - self._done) / max(1e-9, rate)
        bar = "#" * int(20 * share)
        return (
            f"ingest: [{bar:<20}] {share:4.0%} {self._done:,} of {self._images:,} images, "
            f"{rate:,.0f}/s, {left:,.0f} s left"
        )


def _stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _say(line: str) -> None:
    _stderr(f"{line}\n")


def _summary(listing: Listing, out: str, manifests: dict[str, Manifest], place: str, seconds: float) -> dict[str, Any]:
    splits = {
        split: {
            "images": manifest.num_images,
            "identities": manifest.num_objects,
            "cameras": manifest.num_cameras,
            "shards": len(manifest.shards),
            "bad_images": len(manifest.bad_images),
            "image_bytes": manifest.image_bytes,
        }
        for split, manifest in manifests.items()
    }
    return {
        "layout": listing.layout,
        "layout_version": listing.version,
        "raw": listing.root,
        "out": out,
        "ran_in": place,
        "notes": listing.notes,
        "splits": splits,
        "seconds": round(seconds, 3),
        "images_per_second": round(len(listing.images) / seconds, 1),
    }

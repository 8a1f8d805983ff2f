"""Ingest on Ray: shards are written side by side, one task each, with a line on the terminal that says how far.

The steps and what must hold between them are in `gracl.images.ingesting`; here is only where they run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import ray

from gracl.config import IngestConfig
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.ingesting import STAGING, OnBadImage, Run, in_this_process, place_of, write_splits
from gracl.images.layouts import Listing, list_images
from gracl.images.manifests import Manifest
from gracl.locks import refuse_held
from gracl.runtime.progress import Progress, say
from gracl.runtime.session import Demand, session
from gracl.runtime.waiting import OBJECT_S, answer_of, too_long

Job = TypeVar("Job")
Result = TypeVar("Result")
SECONDS_TO_CANCEL = 10.0
# From one shard's end to the next one's, of those under way.
SECONDS_FOR_A_SHARD = 3600.0


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Packs a raw dataset into shards, on the cluster that Ray is told of or on this machine.

    Returns:
        What `pack` returns.

    Raises:
        GraclError: as `pack` says; what the listing finds wrong before Ray starts.
    """
    if storage.is_in_memory(config.raw) or storage.is_in_memory(config.out):
        return pack(**config.options())
    out = storage.absolute(config.out)
    refuse_held(out, place_of(out))
    listing = _listed(storage.absolute(config.raw), config.layout, config.allow_shared_identities)
    tasks = max(1, config.tasks)
    advice = "lower tasks, or add nodes"
    with session(Demand(cpus=float(tasks), gpus=0.0, parts=f"{tasks} tasks that write shards", advice=advice)):
        return pack(**config.options(), listing=listing)


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
    listing: Listing | None = None,
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
        listing: of the raw folder, where it has been listed already.

    Returns:
        layout, layout version, out, notes, seconds, images per second, where it ran, and per split the number of
        images, identities, cameras, shards, bad images and bytes.

    Raises:
        GraclError: as `list_images` and `write_splits` say; a ConfigError where Ray is not running.
    """
    begun = time.perf_counter()
    raw, out = storage.absolute(raw), storage.absolute(out)
    run, place = _runner(raw, out, tasks)
    if left := [name for name in storage.names_in(out) if name.startswith(f".{STAGING}.")]:
        say(f"ingest: {out} holds what an earlier run left when it was killed; to be deleted: {', '.join(left)}")
    listing = listing or _listed(raw, layout, allow_shared_identities)
    progress = Progress("ingest", len(listing.images))
    manifests = write_splits(
        listing,
        out,
        list_again=partial(list_images, raw, layout, allow_shared_identities=allow_shared_identities),
        run=run,
        progress=progress,
        on_bad_image=on_bad_image,
        shard_mb=shard_mb,
        resize=resize,
        overwrite=overwrite,
    )
    return _summary(listing, out, manifests, place, time.perf_counter() - begun)


def _listed(raw: str, layout: str, allow_shared_identities: bool) -> Listing:
    say(f"ingest: listing {raw} ({layout})")
    return list_images(raw, layout, allow_shared_identities=allow_shared_identities)


def _runner(raw: str, out: str, tasks: int) -> tuple[Run, str]:
    """Who does the jobs, and how to call it in the summary."""
    if storage.is_in_memory(raw) or storage.is_in_memory(out):
        say("ingest: memory:// lives in one process, so this one does all the work, without Ray")
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
            ended, _ = ray.wait(list(under_way), num_returns=1, timeout=SECONDS_FOR_A_SHARD)
            if not ended:
                what, advice = f"one of {len(under_way)} shards", "look who holds the cluster's nodes, and at the store"
                raise too_long(what, SECONDS_FOR_A_SHARD, advice)
            yield under_way.pop(ended[0]), _result(ended[0])
    finally:
        for reference in under_way:
            ray.cancel(reference)
        if under_way:  # so that nobody still writes where the caller is about to clean up
            ray.wait(list(under_way), num_returns=len(under_way), timeout=SECONDS_TO_CANCEL)


def _result(reference: "ray.ObjectRef") -> Any:
    try:
        return answer_of(reference, "what a task that has ended gave", OBJECT_S)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None  # the task's own error, without the frames of Ray
        raise


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

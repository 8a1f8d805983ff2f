"""Neighbours on a cluster: actors that each hold all features and answer for a run of rows at a time.

The features are in the object store once for each node, and a shard reads them there without a copy (or uploads them
to its GPU, once an epoch). Runs of rows are handed out as shards become free, so a slow one only gets fewer; the table
is put together in order, and each row's list is that of the whole set, so it does not depend on who made it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

import ray
import torch
from numpy import ndarray
from ray import ObjectRef

from gracl.runtime.session import refusals
from gracl.runtime.waiting import OBJECT_S, answer_beside, answer_of, too_long
from gracl.similarity import Searcher, merged, shares
from gracl.types import Feature, Neighbors

# Runs of rows for each shard: few enough to cost nothing, enough to show progress and to even out the shards.
_RUNS = 8


class Shard:
    """One searcher on some node.

    Args:
        threads: torch and numba threads.
        gpu: search on the GPU that the shard has reserved.
    """

    def __init__(self, *, threads: int, gpu: bool) -> None:
        torch.set_num_threads(threads)
        self._here = {"threads": threads, "device": "cuda" if gpu else "cpu"}
        self._searchers: dict[ObjectRef, Searcher] = {}

    def ready(self) -> bool:
        """True once the shard lives."""
        return True

    def search(self, table: list[ObjectRef], rows: tuple[int, int], k: int, options: dict[str, Any]) -> Neighbors:
        """The lists of some rows.

        Args:
            table: one reference to the features of all.
            options: of `similarity.nearest`.
        """
        if table[0] not in self._searchers:  # another epoch: let go of the one before first
            self._searchers.clear()
            features = answer_of(table[0], "the features of all images from the object store", OBJECT_S)
            self._searchers[table[0]] = Searcher(features, **options | self._here)
        return self._searchers[table[0]].nearest(k, rows=rows)

    def release(self) -> None:
        """Lets go of the features, so that the object store can."""
        self._searchers.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def start_shards(shards: int, *, cpus: float, gpus: float, threads: int, wait_s: float) -> list[Any]:
    """So many shards, alive, each with resources of its own; none for fewer than two."""
    if shards < 2:
        return []
    remote = ray.remote(max_restarts=-1, max_task_retries=-1)(Shard)
    actors = [
        remote.options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD").remote(threads=threads, gpu=gpus > 0)
        for _ in range(shards)
    ]
    for actor in actors:
        what = f"room on the cluster for {shards} shards of {cpus:g} CPUs and {gpus:g} GPUs each"
        answer_beside(actor.ready.remote(), what, wait_s)
    return actors


def find_on(
    actors: Sequence[Any],
    table: ObjectRef,
    features: Feature[ndarray, "images dim"],
    k: int,
    *,
    parts: int,
    progress: Callable[[int, int], None],
    wait_s: float,
    **options: Any,
) -> Neighbors:
    """The neighbour table from shards; the `Find` of `relations.relate` once `actors` and `table` are given.

    Args:
        actors: the shards.
        table: a reference to `features`.
        parts: how many shards there are.
        wait_s: seconds that a shard may take for one run of rows.
    """
    rows = len(features)
    runs = shares(rows, min(parts * _RUNS, -(-rows // 64)))
    free: SimpleQueue[Any] = SimpleQueue()
    for actor in actors:
        free.put(actor)

    def ask(run: tuple[int, int]) -> Neighbors:
        try:
            actor = free.get(timeout=2 * wait_s)
        except Empty:
            raise too_long("a shard that is free", 2 * wait_s, "look at the shards' logs") from None
        try:
            asked = actor.search.remote([table], run, k, options)
            found: Neighbors = answer_beside(asked, f"neighbours of rows {run[0]} to {run[1]} from a shard", wait_s)
        finally:
            free.put(actor)
        return found

    found = []
    with refusals(), ThreadPoolExecutor(len(actors)) as pool:
        for part in pool.map(ask, runs):
            found.append(part)
            progress(runs[len(found) - 1][1], rows)
        for actor in actors:
            actor.release.remote()
    return merged(found)

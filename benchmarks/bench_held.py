"""How much of the stream waits in the object store, and what a limit on it costs a rank that takes all it gets.

Each rank's end of the stream is a thread that takes tickets as they are, without decoding: as fast as they come, or one
every `pause` seconds. The store is asked by `ray memory` twice a second for what is in use.

    python -m benchmarks.bench_held out.json root=shards pictures=1000000 [pause=] [rounds=2] [ranks=1,2,4] [blocks=0,8]

`blocks`: for each rank, what may wait; 0 is no limit of ours. By turns, `rounds` times.
"""

import json
import re
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray._private.internal_api import memory_summary

from benchmarks.bench_epoch import machine
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.runtime import stream
from gracl.runtime.board import open_board
from gracl.types import Plan

SIZE = {"height": 128, "width": 64}


@dataclass(frozen=True)
class Asked:
    """What the command line says; a word that it does not know is refused."""

    root: str
    pictures: int
    batch: int = 256
    pause: float = 0.05
    rounds: int = 2
    ranks: tuple[int, ...] = (1, 2, 4)
    blocks: tuple[int, ...] = (0, 8)

    @classmethod
    def read(cls, words: list[str]) -> "Asked":
        """name=value, several values with commas."""
        several = {"ranks", "blocks"}
        given: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            number = float if name == "pause" else int
            given[name] = (
                value if name == "root" else tuple(map(int, value.split(","))) if name in several else number(value)
            )
        return cls(**given)


def mib_in_use() -> float:
    """What the object store holds, by `ray memory`."""
    found = re.search(r"Plasma memory usage (\d+) MiB", memory_summary(stats_only=True))
    if found is None:
        raise RuntimeError("`ray memory` says no more what the object store holds: read it otherwise")
    return float(found[1])


class InUse:
    """The most that the object store held, from twice a second."""

    def __init__(self) -> None:
        self.most = 0.0
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "InUse":
        self._looking = self._pool.submit(self._look)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._looking.result()
        self._pool.shutdown()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            self.most = max(self.most, mib_in_use())


def emptied() -> None:
    """Waits until what an earlier reading left is gone."""
    deadline = time.monotonic() + 60
    while (left := mib_in_use()) > 20:
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected an empty object store before a reading, found {left:g} MiB of it in use")
        time.sleep(0.5)


def read_once(asked: Asked, store: ShardStore, ranks: int, blocks: int, pause: float) -> dict[str, float]:
    """One reading of the plan by all ranks: seconds, and MiB of the store at most."""
    emptied()
    held = stream.WAITING_BLOCKS
    stream.WAITING_BLOCKS = blocks or 1 << 30
    try:
        board, barrier = open_board(), threading.Barrier(ranks, timeout=600)
        datasets, order = stream.open_stream(
            board,
            root=store.root,
            cache=None,
            digests={"train": store.digest},
            image_bytes=float(np.mean([len(image) for image in store.read(np.arange(64))])),
            task_cpus=0.5,
            ranks=ranks,
        )
    finally:
        stream.WAITING_BLOCKS = held
    view = partial(eval_view, **SIZE)
    common = {"sizes": {"train": len(store)}, "barrier": barrier.wait, "wait_s": 600, "train": "train", **SIZE}
    ends = [
        stream.StreamBatches(
            end[stream.STREAM], board, **common, eval_view=view, train_view=view, rank=rank, ranks=ranks
        )
        for rank, end in enumerate(order.configure(datasets, ranks, None, None))
    ]
    tickets = np.random.default_rng(0).integers(0, len(store), (asked.pictures // asked.batch, asked.batch))

    def take(end: stream.StreamBatches) -> None:
        for _ in end._tickets("train", Plan(epoch=0, tickets=tickets)):
            time.sleep(pause)

    with InUse() as used, ThreadPoolExecutor(ranks) as pool:
        began = time.perf_counter()
        list(pool.map(take, ends))
        seconds = time.perf_counter() - began
    ray.kill(board)
    return {"seconds": seconds, "mib": used.most}


def main() -> None:
    """A line for each number of ranks, limit and pace."""
    out, asked = Path(sys.argv[1]), Asked.read(sys.argv[2:])
    facts, store = machine(), ShardStore.open(asked.root, "train")
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=True)
    read_once(replace(asked, pictures=asked.batch * 8), store, 1, 8, 0.0)  # starts the workers
    found: dict[tuple[int, int, float], list[dict[str, float]]] = {}
    for _ in range(asked.rounds):
        for ranks in asked.ranks:
            for pause in (0.0, asked.pause):
                for blocks in asked.blocks:
                    found.setdefault((ranks, blocks, pause), []).append(read_once(asked, store, ranks, blocks, pause))
    rows = []
    for (ranks, blocks, pause), runs in found.items():
        row = {"ranks": ranks, "blocks_a_rank": blocks, "pause_s": pause}
        row |= {"pictures_per_s": round(asked.pictures / statistics.mean(run["seconds"] for run in runs))}
        row |= {"store_mib": max(run["mib"] for run in runs)}
        rows.append(row)
        print(json.dumps(row))
    asked_for = vars(asked) | {"root": "shards"}
    out.write_text(json.dumps({"machine": facts, "asked": asked_for, "found": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

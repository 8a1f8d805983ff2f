"""Neighbours on 1, 2 and 3 shards of a cluster of three raylets on this machine: labels, seconds, bytes that moved.

The relation actor and one shard are on the first raylet, the others on raylets of their own, so features really cross
between object stores, over the loopback interface, whose counter tells the bytes. All raylets share the machine's
cores, so seconds say little about three machines.

    python -m benchmarks.bench_shards rows=30000 dim=1024 threads=1 out=FILE
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from benchmarks.bench_epoch import machine
from benchmarks.features import district
from gracl.randomness import rng
from gracl.runtime.relation_actor import start_relation_actor
from gracl.runtime.relator import RayRelator
from gracl.types import Assignment, FeatureTable

OPTIONS = {"k1": 30, "k2": 6, "eps": 0.6, "min_samples": 4}


def features(rows: int, dim: int) -> np.ndarray:
    """Rows of several districts, in random order."""
    basis = (rng(7, "basis").standard_normal((96, dim)) / np.sqrt(dim)).astype(np.float32)
    parts = [district(number, min(1800, rows - start), basis)[0] for number, start in enumerate(range(0, rows, 1800))]
    return np.concatenate(parts)[rng(7, "order").permutation(rows)]


def loopback_bytes() -> int:
    """Bytes that have crossed the loopback interface."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def ask(table: np.ndarray, shards: int, threads: int, precision: str) -> tuple[Assignment, dict[str, Any]]:
    """One relation on so many shards, after one that warms the processes."""
    options = OPTIONS | {"shards": shards, "precision": precision, "device": "cpu"}
    actor = start_relation_actor(
        wait_s=3600.0,
        cpus=0,
        gpus=0,
        shards=(1.0, 0.0),
        images=len(table),
        options=options,
        threads=threads,
        board=None,
    )
    relator = RayRelator(actor, attempt="bench", rank=0, ranks=1, precision=precision, wait_s=3600.0)
    part = FeatureTable(np.arange(len(table)), table)
    relator.relate(0, part)
    before, began = loopback_bytes(), time.perf_counter()
    assignment = relator.relate(1, part)
    seconds, moved = time.perf_counter() - began, loopback_bytes() - before
    ray.kill(actor)
    figures = {
        "shards": shards,
        "precision": precision,
        "seconds": round(seconds, 2),
        "knn_seconds": round(assignment.stats["knn_s"], 2),
        "moved_mb": round(moved / 1e6, 1),
        "features_mb": round(table.nbytes / 1e6 / (2 if precision == "float16" else 1), 1),
    }
    return assignment, figures


def main() -> None:
    """Prints and writes the figures of each number of shards."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    rows, dim, threads = int(options["rows"]), int(options["dim"]), int(options["threads"])
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": str(threads)}
    facts, table = machine(), features(rows, dim)
    store = max(200 * 1024**2, 4 * table.nbytes)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=store)
        ray.init(address=cluster.address, logging_level="WARNING", log_to_driver=False)
        found = [ask(table, shards, threads, "float32") for shards in (1, 2, 3)]
        half = ask(table, 3, threads, "float16")
    finally:
        ray.shutdown()
        cluster.shutdown()
    labels = [assignment.labels for assignment, _ in found]
    report = {
        "what": "neighbours by shards on three raylets of one machine",
        "machine": facts,
        "arguments": {"rows": rows, "dim": dim, "threads": threads},
        "same_labels": all(bool((one == labels[0]).all()) for one in labels),
        "clusters": found[0][0].clusters,
        "shards": [figures for _, figures in [*found, half]],
    }
    if "out" in options:
        Path(options["out"]).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

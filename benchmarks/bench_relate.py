"""What the relations cost: against the dense algorithm, by size, by search, by shards. One JSON line for each figure.

    python -m benchmarks.bench_relate do=dense case=msmt generator=PATH/gen_features.py out=FILE
    python -m benchmarks.bench_relate do=scale folders=F1,F2,F3 threads=2 out=FILE     (made by benchmarks.features)
    python -m benchmarks.bench_relate do=order folder=F threads=1 out=FILE
    python -m benchmarks.bench_relate do=approximate folder=F threads=2 out=FILE
    python -m benchmarks.bench_relate do=gpu rows=1000000 dim=2048 threads=16 out=FILE
    (shards: benchmarks.bench_shards)

`dense` and `scale` measure from given neighbour tables; features are read from a memory-mapped file.
"""

import importlib.util
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from benchmarks import dense_twin
from benchmarks.bench_epoch import machine
from benchmarks.features import district, load
from benchmarks.measuring import in_a_child, measured
from gracl.randomness import rng
from gracl.relations import jaccard
from gracl.relations.clusters import dbscan
from gracl.relations.jaccard import jaccard_distance
from gracl.relations.relate import relate
from gracl.similarity import nearest
from gracl.types import Neighbors

ME = "benchmarks.bench_relate"


def prepare(case: str, generator: str, folder: Path) -> None:
    """Features of the golden generator and their exact neighbour table, in `folder`."""
    spec = importlib.util.spec_from_file_location("gen_features", generator)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    features, truth, cameras, sha = made.make(case)
    table = nearest(features, 30)
    for name, array in {
        "features": features,
        "neighbours": table.indices,
        "similarities": table.similarities,
        "truth": truth.astype(np.int64),
        "cameras": cameras.astype(np.int64),
    }.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "sha256").write_text(sha)


def warm() -> None:
    """Compiles or loads every kernel, so that no figure pays for it."""
    for dtype in (np.float32, np.float16):
        small = district(0, 400, rng(0, "warm").standard_normal((96, 64), np.float32))[0].astype(dtype)
        relate(small, k1=10, k2=3)


def ours(folder: Path, threads: int, order: str) -> dict[str, Any]:
    """The whole step but the search, in this process: `relate` with a given table, and features in a file.

    `order` "index" leaves the rows in the order of their images (docs/decisions/0013).
    """
    if order == "index":
        jaccard.nearby = lambda table: np.arange(len(table))
    features, table, truth, _ = load(folder)
    warm()
    Path(folder, "features.npy").read_bytes()  # into the system's cache of files: not what is measured

    def given(*_: Any, **__: Any) -> Neighbors:
        return table

    assignment, cost = measured(lambda: relate(features, find=given, threads=threads))
    labels, stats = assignment.labels, assignment.stats
    steps = ("weights", "jaccard", "cluster", "proxies", "figures")
    real = (truth >= 0) & (labels >= 0)  # noise is no cluster, and would count as one
    return {
        "rows": len(features),
        "threads": threads,
        "order": order,
        **cost,
        "step_wall_s": {step: round(stats[f"{step}_s"], 2) for step in steps},
        "jaccard_and_dbscan_wall_s": round(sum(stats[f"{step}_s"] for step in steps[:3]), 2),
        "bytes_a_row_and_neighbour": round(cost["peak_own_mb_above"] * 1e6 / len(features) / 30, 1),
        "clusters": assignment.clusters,
        "noise": round(float((labels < 0).mean()), 4),
        "silhouette": round(stats["silhouette"], 4),
        "ari_of_clustered": round(float(adjusted_rand_score(truth[real], labels[real])), 4),
    }


def theirs(folder: Path) -> dict[str, Any]:
    """The dense twin in this process."""
    features, table, _, _ = load(folder)
    features = np.array(features)
    steps: dict[str, Any] = {}

    def work() -> np.ndarray:
        # Each step's CPU seconds by itself, memory over both.
        began = time.process_time()
        distance = dense_twin.jaccard(features, table.indices)
        steps["jaccard_cpu_s"] = round(time.process_time() - began, 2)
        labels = dense_twin.labels_of(distance)
        steps["dbscan_cpu_s"] = round(time.process_time() - began - steps["jaccard_cpu_s"], 2)
        return labels

    labels, cost = measured(work)
    np.save(folder / "labels_dense.npy", labels)
    return cost | steps


def in_memory(folder: Path, threads: int) -> dict[str, Any]:
    """Jaccard and DBSCAN in one measurement with features in memory: what is compared with the dense twin."""
    features, table, _, _ = load(folder)
    features = np.array(features)
    warm()

    def work() -> np.ndarray:
        return dbscan(jaccard_distance(table, features, limit=0.6, threads=threads))

    labels, cost = measured(work)
    np.save(folder / f"labels_{threads}.npy", labels)
    return cost | {"threads": threads}


def compare(case: str, generator: str) -> dict[str, Any]:
    """Ours with one and two threads beside the dense twin, in turn, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        prepare(case, generator, folder)
        sha = (folder / "sha256").read_text()
        mine = [in_a_child(ME, do="in_memory", folder=folder, threads=threads) for threads in (1, 2, 1)]
        dense = in_a_child(ME, do="theirs", folder=folder)
        same = [
            by_first_member(np.load(folder / "labels_dense.npy")) == np.load(folder / f"labels_{threads}.npy").tolist()
            for threads in (1, 2)
        ]
        rows = len(np.load(folder / "neighbours.npy"))
    worse = max((one for one in mine if one["threads"] == 1), key=lambda one: one["cpu_s"])
    return {
        "case": case,
        "sha256": sha,
        "rows": rows,
        "same_labels": all(same),
        "ours": mine,
        "dense": dense,
        "cpu_ratio": round(dense["cpu_s"] / worse["cpu_s"], 1),
        "memory_ratio_above_features": round(dense["peak_mb_above"] / worse["peak_mb_above"], 1),
    }


def by_first_member(labels: np.ndarray) -> list[int]:
    """Labels numbered as ours are."""
    numbers: dict[int, int] = {}
    return [-1 if label < 0 else numbers.setdefault(label, len(numbers)) for label in labels.tolist()]


def search(folder: Path, options: dict[str, Any], threads: int) -> dict[str, Any]:
    """A search from scratch, and the labels that follow from its table."""
    features = np.array(load(folder)[0])
    warm()
    table, cost = measured(lambda: nearest(features, 30, threads=threads, **options))
    labels = dbscan(jaccard_distance(table, features, limit=0.6, threads=threads))
    name = "-".join(map(str, options.values())) or "exact"
    np.save(folder / f"search_{name}.npy", table.indices)
    np.save(folder / f"search_labels_{name}.npy", labels)
    return {"options": options, **cost, "recall_told": round(table.recall, 4)}


def approximate(folder: Path, threads: int) -> list[dict[str, Any]]:
    """Exact and approximate searches on the same features: seconds, recall@30 on all rows, ARI of the labels."""
    ways: list[dict[str, Any]] = [
        {},
        {"search": "approximate", "index": "ivf"},
        {"search": "approximate", "index": "hnsw"},
    ]
    found = []
    for options in ways:
        one = in_a_child(ME, do="search", folder=folder, threads=threads, options=json.dumps(options))
        name = "-".join(map(str, options.values())) or "exact"
        table, labels = np.load(folder / f"search_{name}.npy"), np.load(folder / f"search_labels_{name}.npy")
        exact, true = np.load(folder / "search_exact.npy"), np.load(folder / "search_labels_exact.npy")
        hits = [len(np.intersect1d(*rows, assume_unique=True)) for rows in zip(table, exact, strict=True)]
        one |= {
            "recall_at_30": round(float(np.mean(hits)) / 30, 4),
            "ari_against_exact_labels": round(float(adjusted_rand_score(true, labels)), 4),
            "clusters": int(labels.max()) + 1,
        }
        print(json.dumps(one), file=sys.stderr, flush=True)
        found.append(one | {"rows": len(table)})
    return found


def on_gpu(rows: int, dim: int, threads: int) -> dict[str, Any]:
    """The exact search and the whole step on a GPU, and the share of its measured half-precision product rate."""
    features = np.empty((rows, dim), np.float16)
    basis = rng(7, "basis").standard_normal((96, dim), np.float32) / np.float32(np.sqrt(dim))
    order = rng(7, "order").permutation(rows)

    def fill(number: int) -> None:
        places = order[number * 1800 : (number + 1) * 1800]
        features[places] = district(number, len(places), basis)[0]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(-(-rows // 1800))))
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.mm(a, a, out_dtype=torch.float32)
    began.record()
    for _ in range(20):
        torch.mm(a, a, out_dtype=torch.float32)
    ended.record()
    torch.cuda.synchronize()
    rate = 20 * 2 * 8192**3 / (began.elapsed_time(ended) / 1e3)
    nearest(features[:20000], 30, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    _, cost = measured(lambda: nearest(features, 30, device="cuda"))
    memory = torch.cuda.max_memory_allocated() / 1e9
    assignment, whole = measured(lambda: relate(features, device="cuda", threads=threads))
    return {
        "rows": rows,
        "dim": dim,
        "threads": threads,
        "card": torch.cuda.get_device_name(),
        "search": cost,
        "product_tflops": round(rate / 1e12, 1),
        "share_of_product_rate": round(2 * rows * rows * dim / cost["wall_s"] / rate, 3),
        "gpu_gb": round(memory, 2),
        "relate": whole | {"clusters": assignment.clusters, "stats": assignment.stats},
    }


def main() -> None:
    """Does what `do` says."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    do, out, threads = options.pop("do"), options.pop("out", None), int(options.get("threads", "2"))
    folder = Path(options.get("folder", "."))
    facts, result = machine(), None
    if do == "ours":
        result = ours(folder, threads, options.get("order", "near"))
    elif do == "theirs":
        result = theirs(folder)
    elif do == "in_memory":
        result = in_memory(folder, threads)
    elif do == "search":
        result = search(folder, json.loads(options["options"]), threads)
    elif do == "dense":
        result = compare(options["case"], options["generator"])
    elif do == "scale":
        result = [in_a_child(ME, do="ours", folder=one, threads=threads) for one in options["folders"].split(",")]
    elif do == "order":
        ways = ("near", "index") * 2
        result = [in_a_child(ME, do="ours", folder=folder, threads=threads, order=order) for order in ways]
    elif do == "approximate":
        result = approximate(folder, threads)
    elif do == "gpu":
        result = on_gpu(int(options["rows"]), int(options["dim"]), threads)
    else:
        raise SystemExit(f"do={do} is not dense, scale, order, approximate or gpu; see the head of this file")
    if out:
        report = {"what": do, "machine": facts, "arguments": {k: Path(v).name for k, v in options.items()}}
        Path(out).write_text(json.dumps(report | {"result": result}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Search among many stored embeddings: time and memory to build an index, time of one question, recall against exact.

Rows are drawn: objects at random on the sphere, some images around each; queries are further images of drawn objects.

    python -m benchmarks.bench_search rows=1000000 kind=ivf_pq folder=FOLDER out=FILE.json
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.measuring import forget_peak, resident
from gracl.randomness import rng
from gracl.retrieval.engines import need_faiss
from gracl.retrieval.stored import Origin, StoredIndex, build

DIM, IMAGES, SPREAD, PART, QUERIES, K = 512, 20, 0.9, 50_000, 500, 10


def around(dice: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """An image of each object: its place, moved by `SPREAD` of its length at random, of length 1."""
    moved = dice.standard_normal(centres.shape, np.float32)
    rows = centres + SPREAD * moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def objects(number: int, count: int) -> np.ndarray:
    rows = rng(0, "objects", number).standard_normal((count, DIM), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def parts(rows: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
    for number, start in enumerate(range(0, rows, PART)):
        count = min(PART, rows - start)
        centres = np.repeat(objects(number, -(-count // IMAGES)), IMAGES, axis=0)[:count]
        indices = np.arange(start, start + count)
        columns = {"path": [f"{index:09}.jpg" for index in indices], "index": indices}
        columns |= {"camera": [f"c{index % 6}" for index in indices], "track": pa.nulls(count, pa.string())}
        yield around(rng(0, "images", number), centres).astype(np.float16), pa.table(columns)


def queries(rows: int) -> np.ndarray:
    last = rows // PART
    some = np.concatenate([objects(number, PART // IMAGES)[: QUERIES // last + 1] for number in range(last)])[:QUERIES]
    return around(rng(0, "queries"), some)


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not {"rows", "kind", "folder", "out"} <= {*options} <= {"rows", "kind", "folder", "out", "effort"}:
        raise SystemExit(f"expected rows=, kind=, folder=, out= and perhaps effort=; came {' '.join(sys.argv[1:])}")
    rows, kind, folder = int(options["rows"]), options["kind"], Path(options["folder"])
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    need_faiss().omp_set_num_threads(cores)
    found: dict[str, Any] = {"rows": rows, "dim": DIM, "kind": kind, "cores": cores, "load": os.getloadavg()}
    if not (folder / "index.json").exists():
        began = time.perf_counter()
        facts = build(folder, parts(rows), rows, Origin("m", "c", False, "t", "s"), kind=kind)
        found |= {"build_s": round(time.perf_counter() - began, 1), "build_peak_mb": round(resident()[1])}
        found["recall_told"] = facts.recall
    forget_peak()
    began = time.perf_counter()
    index = StoredIndex(folder)
    if "effort" in options:
        index.engine.effort = int(options["effort"])
    found |= {"effort": index.engine.effort, "open_s": round(time.perf_counter() - began, 2)}
    asked = queries(rows)
    index.search(asked[:5], K)
    times, answers = [], []
    for query in asked:
        began = time.perf_counter()
        answers.append(index.search(query[None], K)[0][0])
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    index.search(asked, K)
    together = time.perf_counter() - began
    now, peak, own = resident()
    true = index.exact(asked, K)[0]
    hits = np.mean([len(np.intersect1d(one, other)) / K for one, other in zip(answers, true, strict=True)])
    found |= {
        "p50_ms": round(1000 * float(np.quantile(times, 0.5)), 2),
        "p99_ms": round(1000 * float(np.quantile(times, 0.99)), 2),
        "together_per_s": round(len(asked) / together, 1),
        "recall_at_10": round(float(hits), 4),
        "search_mb": round(now),
        "search_mb_without_mapped_files": round(own),
        "index_mb": round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6),
        "engine_mb": round(sum(path.stat().st_size for path in folder.glob("engine-*")) / 1e6),
    }
    Path(options["out"]).write_text(json.dumps(found, indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""The exact neighbour table by backend, in one process: CPU seconds, wall seconds, GFLOP/s, and whether tables agree.

python -m benchmarks.bench_similarity out.json rows=12936 dim=2048 k=30 threads=1
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.bench_epoch import machine
from gracl.randomness import rng
from gracl.similarity import nearest


def main() -> None:
    """Runs each backend twice by turns and writes the better of each."""
    out = Path(sys.argv[1])
    options = {name: int(value) for name, value in (argument.split("=") for argument in sys.argv[2:])}
    rows, dim, k, threads = (options[name] for name in ("rows", "dim", "k", "threads"))
    facts = machine()
    features = rng(0, "bench").standard_normal((rows, dim), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    nearest(features[:1000], k, backend="torch", threads=threads)  # compile the kernels
    figures: dict[str, dict[str, float]] = {}
    tables = {}
    for backend in ("torch", "faiss") * 2:
        wall, cpu = time.perf_counter(), time.process_time()
        tables[backend] = nearest(features, k, backend=backend, threads=threads)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if backend not in figures or cpu < figures[backend]["cpu_seconds"]:
            figures[backend] = {
                "cpu_seconds": round(cpu, 2),
                "wall_seconds": round(wall, 2),
                "gflops_per_cpu_second": round(2 * rows * rows * dim / cpu / 1e9, 1),
            }
    same = bool((tables["torch"].indices == tables["faiss"].indices).all())
    ratio = round(figures["faiss"]["cpu_seconds"] / figures["torch"]["cpu_seconds"], 2)
    report = {"machine": facts, "options": options, "backends": figures, "same_table": same, "faiss_over_torch": ratio}
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

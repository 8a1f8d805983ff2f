"""Weak scaling on one machine: twice the workers, twice the batch. Seconds of a step, and bytes that cross loopback.

    python -m benchmarks.bench_weak out=FILE.json workers=1,2,4 pipelines/presets/demo.yaml data.root=demo/shards \
        sampling.objects=4 sampling.steps=20 epochs=3

`sampling.objects` is that of one worker. Each has one thread for the network and one to decode, so more workers than
cores share them, which no weak scaling survives: look at the bytes then. Bytes are those that the loopback device sent
from the end of one epoch to that of the next, of whatever is on this machine; beside them what torch's ring should
send for gradients and features. The first epoch, which pays for cold processes, is not counted.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ray.train import UserCallback

from benchmarks.bench_epoch import machine
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.learning.checkpoint import load_state
from gracl.runtime.train import train


class Counted(UserCallback):
    """Notes at the end of each epoch what loopback has sent so far; lives in Ray Train's controller."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """One line for each epoch."""
        with self._file.open("a") as lines:
            print(time.time(), psutil.net_io_counters(pernic=True)["lo"].bytes_sent, file=lines)


def learnt(settings: list[str], folder: Path, workers: int) -> dict[str, float]:
    """One run: medians of its epochs but the first."""
    one = load_config(TrainConfig, settings)
    lines = folder / f"{workers}.txt"
    changes = [f"runs={folder}", f"name=workers-{workers}", f"scale.workers={workers}", "scale.decode_threads=1"]
    changes += [f"sampling.objects={workers * one.sampling.objects}", f"scan_batch={workers * one.scan_batch}"]
    config = load_config(TrainConfig, [*settings, "data.query=", "data.gallery=", "scale.worker_threads=1", *changes])
    state = load_state(train(config, [Counted(lines)])["checkpoint"])
    sent = [int(line.split()[1]) for line in lines.read_text().splitlines()]
    steps = config.sampling.steps
    images = workers * one.sampling.objects * config.sampling.images_per_object
    weights = sum(tensor.numel() for name, tensor in state.model.items() if "running" not in name)
    size = state.model["neck.weight"].numel()
    rows = state.history[1:]
    step_s = statistics.median(row["time/train_s"] for row in rows) / steps
    return {
        "workers": workers,
        "images_a_step": images,
        "step_s": round(step_s, 4),
        "images_per_s": round(images / step_s, 1),
        "scan_s": round(statistics.median(row["time/scan_s"] for row in rows), 2),
        "train_wait_share": round(statistics.median(row["time/train_wait_s"] / row["time/train_s"] for row in rows), 3),
        "loopback_mb_an_epoch": round(
            statistics.median(after - before for before, after in zip(sent, sent[1:], strict=False)) / 1e6, 1
        ),
        "gradients_mb_an_epoch": round(steps * 2 * (workers - 1) * 4 * weights / 1e6, 1),
        "features_mb_an_epoch": round(steps * (workers - 1) * images * 4 * size / 1e6, 1),
    }


def main() -> None:
    """Measures, prints and writes."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:3])
    if {*options} != {"out", "workers"}:
        raise SystemExit(f"expected out= and workers= first; came {' '.join(sys.argv[1:3])}")
    facts, runs = machine(), list[dict[str, float]]()
    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as home:
        for workers in map(int, options["workers"].split(",")):
            runs.append(learnt(sys.argv[3:], Path(home), workers))
            print(json.dumps(runs[-1]), flush=True)
    found = {
        "what": "weak scaling on one machine",
        "machine": facts,
        "command": sys.argv[3:],
        "runs": runs,
        "efficiency": {str(run["workers"]): round(runs[0]["step_s"] / run["step_s"], 3) for run in runs},
    }
    Path(options["out"]).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["efficiency"]))


if __name__ == "__main__":
    main()

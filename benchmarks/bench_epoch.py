"""What the Ray path costs over one process: epochs of the same config, side by side, phase by phase.

Runs `gracl.local` (through `local_twin.py`) and `runtime.train` at once, epoch by epoch in turns (`taking_turns.py`),
and compares each epoch but the first (which pays for cold processes and compilers) with the other's beside it.

    python -m benchmarks.bench_epoch out.json preset.yaml [section.key=value ...]
"""

import json
import math
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.taking_turns import WAYS, end_when_told, take_turns
from gracl.cli import load_config
from gracl.config import TrainConfig

PHASES = ("keep", "scan", "relate", "plan", "train", "judge", "epoch")


def epochs_of(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Seconds by phase of every epoch but the first."""
    return [{phase: row[f"time/{phase}_s"] for phase in PHASES} for row in history[1:]]


def medians(epochs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each phase."""
    return {phase: round(statistics.median(epoch[phase] for epoch in epochs), 3) for phase in PHASES}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "unknown")
    return {
        "cpu": model.split(":")[-1].strip(),
        "cores": os.cpu_count(),
        "load_at_start": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def ratio_of(found: dict[str, list[dict[str, float]]], phase: str) -> dict[str, float]:
    """Ray's seconds over the local ones, pair by pair: their mean, how sure it is, and how many pairs there were."""
    pairs = [there[phase] / here[phase] for here, there in zip(found["local"], found["ray"], strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else math.inf
    return {"mean": round(statistics.mean(pairs), 4), "standard_error": round(error, 4), "pairs": len(pairs)}


def main() -> None:
    """Writes medians, ratios, every epoch and the config."""
    end_when_told()
    out, arguments = Path(sys.argv[1]), sys.argv[2:]
    facts = machine()
    config = load_config(TrainConfig, [*arguments, "runs=unused"])
    if config.scale.workers != 1 or config.epochs < 3:
        raise SystemExit(
            "one process is compared with one worker, by two pairs at least: set scale.workers=1, epochs=3"
        )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        histories = take_turns(Path(folder), arguments, config.epochs)
    found = {way: epochs_of(histories[way]) for way in WAYS}
    ratios = {phase: ratio_of(found, phase) for phase in ("scan", "train", "epoch")}
    middle = {way: medians(epochs) for way, epochs in found.items()}
    report = {
        "what": "seconds of an epoch by phase, Ray Train with stream and actor against gracl.local, in turns by epochs",
        "machine": facts,
        "median_seconds": middle,
        "ratio": ratios,
        "epochs": found,
        "config": config.flat() | {"runs": "a temporary folder"},
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"ratio_epoch": ratios["epoch"], "ratio_train": ratios["train"], **middle}))


if __name__ == "__main__":
    main()

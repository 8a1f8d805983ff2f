"""What the Ray path costs over one process: epochs of the same config, side by side, phase by phase.

Runs `gracl.local` (through `local_twin.py`) and `runtime.train` by turns, so that a busy machine hurts both, and
compares the medians of their epochs but the first (which pays for cold processes and compilers).

    python -m benchmarks.bench_epoch out.json rounds=2 preset.yaml [section.key=value ...]
"""

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.learning.checkpoint import load_state
from gracl.runtime.train import train

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


def main() -> None:
    """Writes medians, ratios, every epoch and the config."""
    out, rounds = Path(sys.argv[1]), int(sys.argv[2].removeprefix("rounds="))
    facts = machine()
    runs = tempfile.mkdtemp(prefix="bench-")
    config = load_config(TrainConfig, [*sys.argv[3:], f"runs={runs}"])
    if config.scale.workers != 1:
        raise SystemExit("one process is compared with one worker: set scale.workers=1")
    found: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    for number in range(rounds):
        found["local"] += epochs_of(learn(config).history)
        result = train(config.model_copy(update={"name": f"round-{number}"}))
        found["ray"] += epochs_of(load_state(result["checkpoint"]).history)
    shutil.rmtree(runs, ignore_errors=True)
    middle = {way: medians(epochs) for way, epochs in found.items()}
    report = {
        "what": "seconds of an epoch by phase, Ray Train with stream and actor against gracl.local",
        "machine": facts,
        "median_seconds": middle,
        "ratio_epoch": round(middle["ray"]["epoch"] / middle["local"]["epoch"], 4),
        "epochs": found,
        "config": config.flat() | {"runs": "a temporary folder"},
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"ratio_epoch": report["ratio_epoch"], **middle}))


if __name__ == "__main__":
    main()

"""Does what is learnt depend on the number of workers? The loss of every step with 1, 2 and 4 of them, in one picture.

Once with batch norm in groups of `group` images, the same for any number of workers, and once with each worker's whole
share as its group (`encoder.bn_group=0`), as plain data-parallel training has it.

    python -m benchmarks.bench_workers out=FILE.json picture=FILE.png group=16 preset.yaml [section.key=value ...]
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient

from benchmarks.bench_epoch import machine
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.runtime.train import train

WORKERS = (1, 2, 4)
COLOURS = {1: "#222222", 2: "#2f6db3", 4: "#c4622d"}


def learnt(settings: Sequence[str], runs: str, workers: int, group: int) -> dict[str, Any]:
    """One run: the loss of each step, clusters of each epoch, and how well its last epoch finds."""
    name = f"group{group}-workers{workers}"
    changes = [f"runs={runs}", f"name={name}", f"scale.workers={workers}", f"encoder.bn_group={group}"]
    config = load_config(TrainConfig, [*settings, *changes])
    result = train(config)
    client, run_id = MlflowClient(result["tracking_uri"]), result["mlflow_run_id"]
    points = sorted(client.get_metric_history(run_id, "step/loss"), key=lambda point: point.step)
    clusters = sorted(client.get_metric_history(run_id, "cluster/number"), key=lambda point: point.step)
    return {
        "workers": workers,
        "bn_group": group,
        "losses": [point.value for point in points],
        "clusters": [int(point.value) for point in clusters],
        "mAP": result["final"]["mAP"],
    }


def apart(run: Mapping[str, Any], alone: Mapping[str, Any], steps: int) -> list[float]:
    """The largest relative distance of the loss from that of one worker, epoch by epoch."""
    one, other = np.array(alone["losses"]), np.array(run["losses"])
    far = np.abs(other - one) / np.abs(one)
    return [float(f"{part.max():.3g}") for part in far.reshape(-1, steps)]


def draw(kinds: Mapping[str, Sequence[Mapping[str, Any]]], picture: Path) -> None:
    """The curves, one panel for each kind of batch norm."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True)
    for panel, (title, runs) in zip(panels, kinds.items(), strict=True):
        for width, run in zip((5.0, 2.5, 1.0), runs, strict=True):
            steps, workers = range(1, len(run["losses"]) + 1), run["workers"]
            label = f"{workers} worker{'s' * (workers > 1)}: mAP {run['mAP']:.1%}"
            panel.plot(steps, run["losses"], color=COLOURS[workers], linewidth=width, label=label)
        panel.set_title(title)
        panel.set_xlabel("training step")
        panel.legend(frameon=False)
    panels[0].set_ylabel("loss")
    FigureCanvasAgg(figure).print_png(picture)


def main() -> None:
    """Writes the figures and draws the picture."""
    options = dict(word.split("=", 1) for word in sys.argv[1:] if word.startswith(("out=", "picture=", "group=")))
    settings = [word for word in sys.argv[1:] if not word.startswith(("out=", "picture=", "group="))]
    facts, group = machine(), int(options["group"])
    with tempfile.TemporaryDirectory(prefix="bench-") as runs:
        kinds = {
            f"groups of {group} images": [learnt(settings, runs, workers, group) for workers in WORKERS],
            "each worker's share": [learnt(settings, runs, workers, 0) for workers in WORKERS],
        }
    steps = load_config(TrainConfig, settings).sampling.steps
    report = {
        "what": "the loss of each step with 1, 2 and 4 workers",
        "machine": facts,
        "arguments": settings,
        "runs": [
            run | {"apart_from_one_worker": apart(run, runs[0], steps)} for runs in kinds.values() for run in runs
        ],
    }
    Path(options["out"]).write_text(json.dumps(report, indent=1) + "\n")
    draw(kinds, Path(options["picture"]))
    print(json.dumps([{name: run[name] for name in run if name != "losses"} for run in report["runs"]]))


if __name__ == "__main__":
    main()

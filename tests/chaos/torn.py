"""Small states and runs to be torn."""

import json
from pathlib import Path

import numpy as np
import torch

from gracl.learning.checkpoint import TrainState, save_state
from gracl.runtime import salvage
from gracl.runtime.salvage import SNAPSHOT


def small(epoch: int = 1) -> TrainState:
    """A state of few bytes."""
    history = [{"epoch": float(number), "val/mAP": 0.1 * number} for number in range(1, epoch + 1)]
    view = {"height": 1, "width": 2}
    return TrainState(epoch, {"a": torch.arange(6.0)}, {"state": {}}, 0.5, epoch, {"x": 1}, {}, view, history)


def run_of(folder: Path, *epochs: int, finished: int = 0) -> Path:
    """A run's folder as Ray Train leaves it, with the checkpoints of these epochs."""
    entries = []
    for epoch in epochs:
        save_state(small(epoch), folder / f"epoch-{epoch:04d}")
        metrics = small(epoch).history[-1]
        entries.append({"version": 0, "checkpoint_dir_name": f"epoch-{epoch:04d}", "metrics": metrics})
    snapshot = {name: [] for name in salvage._EMPTY} | {
        "ray_version": "0",
        "checkpoint_results": entries,
        "checkpoint_report_indices": [epoch - 1 for epoch in epochs],
        "latest_checkpoint_result": entries[-1],
        "current_report_index": epochs[-1],
    }
    (folder / SNAPSHOT).write_text(json.dumps(snapshot))
    (folder / "run.json").write_text(json.dumps({"finished": finished, "recipe": {}, "mlflow_run_id": "none"}))
    return folder


def listed(folder: Path) -> tuple[list[str], str, int]:
    """Ray Train's list: which checkpoints, the last, how many reports."""
    saved = json.loads((folder / SNAPSHOT).read_text())
    names = [one["checkpoint_dir_name"] for one in saved["checkpoint_results"]]
    assert len(saved["checkpoint_report_indices"]) == len(names)
    return names, saved["latest_checkpoint_result"]["checkpoint_dir_name"], saved["current_report_index"]


def damage(file: Path) -> None:
    """One bit of a weight of `small`."""
    content = bytearray(file.read_bytes())
    content[content.index(np.float32(5).tobytes())] ^= 1
    file.write_bytes(content)

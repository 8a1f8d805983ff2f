"""Functions that Ray tests run on workers: those must be able to import them, and cannot import a test file."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from mlflow import MlflowClient
from ray.train import UserCallback

from gracl.errors import ImageError
from gracl.learning.encoder import Encoder
from gracl.runtime import worker


def double(number: int) -> int:
    return 2 * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ImageError("three")
    return 2 * number


def most_at_once(job: tuple[str, int]) -> int:
    """Says how many of these jobs were under way at once, by files in a folder."""
    folder, number = job
    mine = Path(folder) / str(number)
    mine.touch()
    most = 0
    for _ in range(100):
        most = max(most, len(os.listdir(folder)))
        time.sleep(0.01)
    mine.unlink()
    return most


class KillAfterFirstEpoch(UserCallback):
    """Kills an MLflow server of this machine once it has the first epoch of a run of that name."""

    def __init__(self, pid: int, uri: str, name: str) -> None:
        self._pid, self._uri, self._name = pid, uri, name

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if metrics[0]["epoch"] == 1:
            deadline = time.monotonic() + 60
            while not self._there() and time.monotonic() < deadline:
                time.sleep(0.2)
            os.killpg(self._pid, signal.SIGKILL)

    def _there(self) -> bool:
        client = MlflowClient(self._uri)
        known = [one.experiment_id for one in client.search_experiments()]
        found = client.search_runs(known, filter_string=f"attributes.run_name = '{self._name}'")
        return any("epoch" in run.data.metrics for run in found)


def train_spoilt(spoil: str, job: worker.Job) -> None:
    """The training of a rank; the second one's encoder is spoilt: "step" or "scan" (features are NaN), or "bit"."""
    build = worker.build

    def built(*arguments: Any) -> Any:
        encoder, *others = build(*arguments)
        if ray.train.get_context().get_world_rank() == 1:
            (_flip_a_bit if spoil == "bit" else _break_features)(encoder, spoil == "step")
        return encoder, *others

    worker.build = built
    try:
        worker.train_worker(job)
    finally:
        worker.build = build


def _break_features(encoder: Encoder, training: bool) -> None:
    """One feature of the second batch that is learnt from, or of the first that is scanned."""
    seen = 0

    def broken(module: Encoder, _: Any, features: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        # What the ranks pass once before all else, in evaluation mode too, is no scan.
        if module.training != training or (not training and not torch.is_inference_mode_enabled()):
            return features
        seen += 1
        at = torch.zeros_like(features)
        at[0, 0] = float("nan") if seen == (2 if training else 1) else 0.0
        return features + at

    encoder.register_forward_hook(broken)


def _flip_a_bit(encoder: Encoder, _: bool) -> None:
    """The lowest bit of one weight, before the third step."""
    seen = 0

    def flip(module: Encoder, _: Any) -> None:
        nonlocal seen
        seen += module.training
        if module.training and seen == 3:
            weight = next(module.parameters())
            weight.data.view(torch.int32).view(-1)[7] ^= 1

    encoder.register_forward_pre_hook(flip)

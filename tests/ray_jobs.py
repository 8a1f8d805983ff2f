"""Functions that Ray tests run on workers: those must be able to import them, and cannot import a test file."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from ray.train import UserCallback

from gracl.errors import ImageError


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

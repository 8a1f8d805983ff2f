"""Functions that Ray tests run on workers: those must be able to import them, and cannot import a test file."""

import os
import signal
import time
from pathlib import Path
from typing import Any

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
    """Kills a process of this machine once an epoch has been reported; heard after MLflow's callback."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if metrics[0]["epoch"] == 1:
            os.killpg(self._pid, signal.SIGKILL)

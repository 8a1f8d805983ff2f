"""Functions that Ray tests run on workers: those must be able to import them, and cannot import a test file."""

import os
import time
from pathlib import Path

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

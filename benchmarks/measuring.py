"""One measurement in a process of its own: CPU and wall seconds, and memory above what was there before it began."""

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def resident() -> tuple[float, float, float]:
    """Megabytes of this process: now, at most since the last `forget_peak`, and now without pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak, anonymous = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM", "RssAnon"))
    return now, peak, anonymous


def forget_peak() -> None:
    """The largest size is counted anew from here on."""
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def watched_anonymous() -> Iterator[list[float]]:
    """A list whose only number is, at the end, the most memory without pages of files, looked at every 10 ms."""
    most, stop = [resident()[2]], threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            most[0] = max(most[0], resident()[2])

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        stop.set()
        watcher.join()


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `work` gives, with its cost; memory is above what there was before it began.

    `peak_mb_above` counts pages of mapped files that were touched, `peak_own_mb_above` does not (and may miss what
    comes and goes within 10 ms).
    """
    forget_peak()
    before, _, own = resident()
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    with watched_anonymous() as most:
        result = work()
    wall, used = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "cpu_s": round(used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime, 3),
        "wall_s": round(wall, 3),
        "peak_mb_above": round(resident()[1] - before, 1),
        "peak_own_mb_above": round(max(most[0], resident()[2]) - own, 1),
    }
    return result, cost


def in_a_child(module: str, **arguments: object) -> Any:
    """Runs `python -m module name=value ...` and returns the JSON of its last line."""
    command = [sys.executable, "-m", module, *(f"{name}={value}" for name, value in arguments.items())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])

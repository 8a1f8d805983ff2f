"""One measurement in a process of its own: CPU and wall seconds, and memory above what was there before it began."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident() -> tuple[float, float]:
    """Megabytes of this process now, and at most since the last `forget_peak`."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def forget_peak() -> None:
    """The largest size is counted anew from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `work` gives, with its cost."""
    forget_peak()
    before, _ = resident()
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    wall, used = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "cpu_s": round(used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime, 3),
        "wall_s": round(wall, 3),
        "peak_mb_above": round(resident()[1] - before, 1),
    }
    return result, cost


def in_a_child(module: str, **arguments: object) -> Any:
    """Runs `python -m module name=value ...` and returns the JSON of its last line."""
    command = [sys.executable, "-m", module, *(f"{name}={value}" for name, value in arguments.items())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])

"""What a phase of work costs: its seconds, and how large the process was at most; and whether memory is there."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from gracl.errors import GraclError, expected

_EVERY = 0.02
_MEGABYTE = 10**6
# Limit, use and details of the control group that containers run in, in versions 2 and 1 of the system's interface.
_GROUPS = tuple(
    tuple(Path("/sys/fs/cgroup", name) for name in names)
    for names in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
)


@contextmanager
def phase(name: str, stats: dict[str, float]) -> Iterator[None]:
    """Writes `{name}_s` and `{name}_peak_mb` of what is done inside into `stats`, unless it fails.

    The peak is the highest resident set size of the whole process, in 10^6 bytes, looked at when the phase starts,
    when it ends, and every 20 ms between; nothing is subtracted, so what was there before counts. It does not see

    - a spike that comes and goes within 20 ms, or while one call holds Python's lock (the watching thread waits);
    - other processes, swapped pages and the memory of a GPU.

    It does see pages of mapped files and of shared memory once they were touched, though the system could take them
    back. Other threads' work counts, too.
    """
    watch = _Watch()
    watch.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        watch.end()
    stats[f"{name}_s"] = seconds
    stats[f"{name}_peak_mb"] = watch.peak / _MEGABYTE


class _Watch(threading.Thread):
    """Looks at the size of this process until it is ended; a look takes some 20 microseconds."""

    def __init__(self) -> None:
        super().__init__(name="gracl-watch", daemon=True)
        self.peak = 0
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._look()

    def run(self) -> None:
        while not self._ended.wait(_EVERY):
            self._look()

    def end(self) -> None:
        """Stops the thread, waits until it is gone, and takes a last look."""
        self._ended.set()
        self.join()
        self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, self._process.memory_info().rss)


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or its control group where that has less."""
    free = int(psutil.virtual_memory().available)
    for limit, used, details in _GROUPS:
        if limit.is_file() and limit.read_text().strip().isdigit():
            # Pages of files that nobody uses count as used, but the system gives them back.
            stat = dict(line.split() for line in details.read_text().splitlines())
            spare = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            free = min(free, int(limit.read_text()) - int(used.read_text()) + spare)
    return free


def require_memory(needed: int, what: str, do: str) -> None:
    """Refuses work that memory is too small for, before it begins.

    Args:
        needed: bytes.
        what: they are needed for.
        do: what the user can do about it.

    Raises:
        GraclError: less is free.
    """
    free = available_memory()
    if needed > free:
        raise GraclError(expected(f"{needed / 1e9:.1f} GB of free memory for {what}", f"{free / 1e9:.1f} GB", do))

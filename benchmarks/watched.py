"""A training watched from outside: what its terminal shows, its processes, their memory."""

import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

import psutil

from benchmarks.rehearse_jobs import ROOT


class Driver:
    """The train command on a terminal of its own; what it shows is read as it comes."""

    def __init__(self, environment: Mapping[str, str], settings: Sequence[str]) -> None:
        ours, theirs = pty.openpty()
        self.phase, self.epochs, self.text = "", list[tuple[int, float]](), ""
        self.process = subprocess.Popen(
            [sys.executable, "pipelines/train.py", *settings],
            cwd=ROOT,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, terminal: int) -> None:
        with os.fdopen(terminal, "rb", buffering=0) as shown:
            while True:
                try:
                    piece = shown.read(4096)
                except OSError:  # how Linux says that nobody has the other side open any more
                    return
                if not piece:
                    return
                self._take(piece.decode(errors="replace"))

    def _take(self, piece: str) -> None:
        self.text += piece
        for line in re.split(r"[\r\n]|\x1b\[K", piece):
            if done := re.match(r"epoch (\d+)/\d+: ", line):
                self.epochs.append((int(done[1]), time.monotonic()))
            elif now := re.match(r"epoch (\d+)/\d+  (.+)", line):
                self.phase = now[2]

    def done(self) -> int:
        """The last epoch that was shown as done; 0 for none."""
        return max((epoch for epoch, _ in self.epochs), default=0)

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None


def children(pid: int) -> list[psutil.Process]:
    """All processes below one; none where it has ended."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return found
    except psutil.NoSuchProcess:
        return []


def name_of(process: psutil.Process) -> str:
    """The title that Ray gave a process, or its program's name; empty where it has ended."""
    try:
        title = " ".join(process.cmdline()).strip()
        return title if title.startswith("ray::") else process.name()
    except psutil.Error:
        return ""


def look(pid: int) -> dict[str, dict[str, float]]:
    """Resident and shared memory in MB, and open files, of each process of a run by its name and number."""
    seen = {}
    for process in [psutil.Process(pid), *children(pid)]:
        try:
            memory = process.memory_info()
            files = process.num_fds()
        except psutil.NoSuchProcess:
            continue
        name = re.sub(r"^ray::|[.:(].*", "", name_of(process)) or process.name()
        seen[f"{name} {process.pid}"] = {
            "own_mb": (memory.rss - memory.shared) / 2**20,
            "shared_mb": memory.shared / 2**20,
            "files": float(files),
        }
    return seen

"""Two trainings of one config that take turns epoch by epoch: one is held while the other works.

A shared machine changes its speed by the minute, so two runs one after the other differ by more than what they are
compared for. Here each epoch of one has an epoch of the other right before or after it, and while it works nothing of
the other has the processor: all processes of a training (Ray's own, too) are stopped with SIGSTOP meanwhile.

    python -m benchmarks.taking_turns local|ray FOLDER preset.yaml [section.key=value ...]    # one of the two
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.local_twin import learn
from benchmarks.watched import children
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.learning.checkpoint import TrainState, load_state
from gracl.runtime import train, worker
from gracl.types import EpochReport

WAYS = ("local", "ray")
LOOK_S = 0.01
ENDS_WITHIN_S = 60
WAITED, HISTORY, ASKER = "waited.jsonl", "history.json", "asker"


class Gate:
    """Where a training waits after each epoch. Files in a folder, since a rank is a process that Ray starts."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def wait(self, epoch: int) -> None:
        """Says that `epoch` epochs are done, and returns when the next may begin.

        Raises:
            RuntimeError: whoever would let it go on is gone.
        """
        began, asker = time.perf_counter(), int((self._folder / ASKER).read_text())
        self.came(epoch).touch()
        while not self.goes(epoch).exists():
            if not psutil.pid_exists(asker):
                raise RuntimeError(f"nobody waits for epoch {epoch + 1}: process {asker} is gone")
            time.sleep(LOOK_S)
        with (self._folder / WAITED).open("a") as file:
            file.write(json.dumps([epoch, time.perf_counter() - began]) + "\n")

    def came(self, epoch: int) -> Path:
        """A file that is there once so many epochs are done."""
        return self._folder / f"came-{epoch}"

    def goes(self, epoch: int) -> Path:
        """A file that lets the training go on from there."""
        return self._folder / f"goes-{epoch}"

    def waited(self) -> dict[int, float]:
        """Seconds of each wait, by the number of epochs that were done."""
        return dict(json.loads(line) for line in (self._folder / WAITED).read_text().splitlines())


def gated(folder: str, job: worker.Job) -> None:
    """`train_worker`, whose rank waits at the gate when it has reported an epoch."""
    report = worker.report_epoch

    def report_and_wait(rank: int, system: Any, done: EpochReport, state: TrainState) -> None:
        report(rank, system, done, state)
        Gate(folder).wait(state.epoch)

    worker.report_epoch = report_and_wait
    try:
        worker.train_worker(job)
    finally:
        worker.report_epoch = report


class Training:
    """One of the two, as a process with its descendants."""

    def __init__(self, way: str, folder: Path, arguments: Sequence[str]) -> None:
        folder.mkdir()
        (folder / ASKER).write_text(str(os.getpid()))
        self._way, self._gate, self._folder = way, Gate(str(folder)), folder
        self._log = folder / "log"
        command = [sys.executable, "-m", "benchmarks.taking_turns", way, str(folder), *arguments]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def run_until(self, epoch: int) -> None:
        """Works until so many epochs are done, and is held there."""
        self._send(psutil.Process.resume)
        if epoch > 1:
            self._gate.goes(epoch - 1).touch()
        while not self._gate.came(epoch).exists():
            if self._process.poll() is not None:
                raise SystemExit(f"{self._way} ended before epoch {epoch}:\n{self._log.read_text()[-3000:]}")
            time.sleep(LOOK_S)
        self._send(psutil.Process.suspend)

    def finish(self, epochs: int) -> list[dict[str, float]]:
        """Works to its end; the rows of its history without what was waited at the gate."""
        self._send(psutil.Process.resume)
        self._gate.goes(epochs).touch()
        if self._process.wait() != 0:
            raise SystemExit(f"{self._way} failed:\n{self._log.read_text()[-3000:]}")
        rows, waited = json.loads((self._folder / HISTORY).read_text()), self._gate.waited()
        for done, row in enumerate(rows):  # the wait after an epoch is within `keep` of the one that follows
            row["time/keep_s"] -= waited.get(done, 0.0)
            row["time/epoch_s"] -= waited.get(done, 0.0)
        return list(rows)

    def stop(self) -> None:
        """Ends what is left of it; nothing, where it has ended by itself."""
        end(self._process)

    def _send(self, act: Callable[[psutil.Process], None]) -> None:
        if self._process.poll() is None:
            each_of(family_of(self._process), act)


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process that is there, and all that came of it."""
    return [psutil.Process(process.pid), *children(process.pid)]


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that is there still; what is left of its family after a while is killed."""
    if process.poll() is not None:
        return
    family = family_of(process)
    each_of(family, psutil.Process.resume)
    process.terminate()
    psutil.wait_procs(family, ENDS_WITHIN_S)
    each_of(family, psutil.Process.kill)
    process.wait()


def end_when_told() -> None:
    """SIGTERM ends this process as Ctrl-C does, with all that it has to do at its end: others may stand still."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def each_of(processes: Sequence[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    """Does it to each that is still there."""
    for process in processes:
        try:
            act(process)
        except psutil.NoSuchProcess:  # a worker that ended just now
            continue


def take_turns(folder: Path, arguments: Sequence[str], epochs: int) -> dict[str, list[dict[str, float]]]:
    """The histories of both ways. The first epoch of each is its own; of the later ones every other pair begins with
    Ray, so that a machine that grows steadily slower hurts both the same."""
    trainings: dict[str, Training] = {}
    with ExitStack() as at_the_end:
        for way in WAYS:
            trainings[way] = Training(way, folder / way, [*arguments, f"runs={folder / way}"])
            at_the_end.callback(trainings[way].stop)
            trainings[way].run_until(1)
        for epoch in range(2, epochs + 1):
            for way in WAYS if epoch % 2 == 0 else WAYS[::-1]:
                trainings[way].run_until(epoch)
        return {way: training.finish(epochs) for way, training in trainings.items()}


def main() -> None:
    """Trains and leaves the history in FOLDER."""
    way, folder = sys.argv[1], sys.argv[2]
    config = load_config(TrainConfig, sys.argv[3:])
    if way == "local":
        gate = Gate(folder)
        history = learn(config, reporter=lambda report, state: gate.wait(state.epoch)).history
    else:
        train.train_worker = partial(gated, folder)
        history = load_state(train.train(config)["checkpoint"]).history
    Path(folder, HISTORY).write_text(json.dumps(history))


if __name__ == "__main__":
    main()

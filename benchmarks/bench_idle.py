"""What a step of a rank costs more for the processes of Ray that stand beside it and wait.

A training with one rank runs; everything of Ray's but the rank is stopped (SIGSTOP) and let go on by turns of some
seconds, and the steps of each turn are compared with those of the next. So the machine's own changes, which are slower,
fall out. What each process used meanwhile stands beside it.

    python -m benchmarks.bench_idle out.json seconds=180 turn=6 preset.yaml [section.key=value ...]
"""

import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench_epoch import machine
from benchmarks.taking_turns import each_of, end, end_when_told, family_of
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.runtime import train, worker

RANK = "ray::RayTrainWorker"
STAMP = "d"
STAMPS = "stamps"
Turn = tuple[bool, float, float]
Used = Counter[str]


def stamped(folder: str, job: worker.Job) -> None:
    """`train_worker`, which leaves the time of each training step in a file."""
    progress_of = worker.throttled

    def stamping(board: Any) -> Callable[[str, int, int], None]:
        progress = progress_of(board)

        def advance(phase: str, done: int, total: int) -> None:
            if phase == "train":
                with Path(folder, STAMPS).open("ab") as file:
                    file.write(struct.pack(STAMP, time.monotonic()))
            progress(phase, done, total)

        return advance

    worker.throttled = stamping
    worker.train_worker(job)


def child(folder: str, arguments: list[str]) -> None:
    """The training."""
    train.train_worker = partial(stamped, folder)
    train.train(load_config(TrainConfig, arguments))


def stamps_of(folder: str) -> list[float]:
    """When each step ended, on the clock that all processes of a machine share."""
    file = Path(folder, STAMPS)
    return [stamp for (stamp,) in struct.iter_unpack(STAMP, file.read_bytes())] if file.exists() else []


def take_turns(others: list[psutil.Process], seconds: float, turn: float) -> list[Turn]:
    """Turns with the others stopped, and going, from the first on by turns: (stopped, from, to)."""
    turns: list[Turn] = []
    ends, stopped = time.monotonic() + seconds, False
    try:
        while time.monotonic() < ends:
            stopped = not stopped
            each_of(others, psutil.Process.suspend if stopped else psutil.Process.resume)
            began = time.monotonic()
            time.sleep(turn)
            turns.append((stopped, began, time.monotonic()))
    finally:
        each_of(others, psutil.Process.resume)
    return turns


def step_in(turn: Turn, stamps: list[float]) -> float:
    """Mean seconds of the steps that lie within a turn."""
    steps = [after - before for before, after in pairwise(stamps) if turn[1] <= before and after <= turn[2]]
    if not steps:
        raise SystemExit("no step lies within a turn: give longer turns (turn=), or a run with more steps")
    return statistics.mean(steps)


def named(process: psutil.Process) -> str:
    """Its title, or the programs of its command."""
    return " ".join(Path(part).name for part in process.cmdline()[:3] if not part.startswith("-")).strip()


def cpu_s(process: psutil.Process, otherwise: float = 0.0) -> float:
    """CPU seconds of a process so far; what is said otherwise for one that has ended."""
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.NoSuchProcess:
        return otherwise


def measure(folder: str, arguments: list[str], seconds: float, turn: float) -> tuple[list[Turn], list[float], Used]:
    """The turns, when each step ended, and what each process used, of a training that is ended afterwards."""
    command, log = [sys.executable, "-m", "benchmarks.bench_idle", "child", folder, *arguments], Path(folder, "log")
    with log.open("wb") as file:
        running = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    with ExitStack() as at_the_end:
        at_the_end.callback(end, running)
        while len(stamps_of(folder)) < 3:
            if running.poll() is not None:
                raise SystemExit(f"the training ended before its third step:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        # By their names of now: Ray gives a worker that waits for tasks the name of each task.
        names = {process: named(process) for process in family_of(running)}
        before = {process: cpu_s(process) for process in names}
        turns = take_turns([process for process, name in names.items() if RANK not in name], seconds, turn)
        used: Used = Counter()
        for process, name in names.items():
            used[name] += cpu_s(process, before[process]) - before[process]
        return turns, stamps_of(folder), used


def asked(words: list[str]) -> tuple[Path, float, float]:
    """Where to write, for how long to look, and how long a turn is."""
    options = dict(word.partition("=")[::2] for word in words[1:])
    if {*options} != {"seconds", "turn"}:
        raise SystemExit(f"expected OUT seconds= turn= first; came {' '.join(words)}")
    return Path(words[0]), float(options["seconds"]), float(options["turn"])


def main() -> None:
    """Writes the ratio, its error, and what each process used."""
    end_when_told()
    out, seconds, turn = asked(sys.argv[1:4])
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        arguments = [*sys.argv[4:], f"runs={folder}"]
        config = load_config(TrainConfig, arguments)
        if config.scale.workers != 1:
            raise SystemExit("the steps of one rank are looked at: set scale.workers=1")
        turns, stamps, used = measure(folder, arguments, seconds, turn)
    steps = [step_in(some, stamps) for some in turns]
    # Each turn with all going against the mean of the two beside it: what grows steadily falls out.
    ratios = [
        steps[place] / statistics.mean((steps[place - 1], steps[place + 1]))
        for place in range(1, len(turns) - 1)
        if not turns[place][0]
    ]
    lasted = {going: sum(stop - start for stopped, start, stop in turns if not (going and stopped)) for going in (0, 1)}
    report: dict[str, Any] = {
        "what": "seconds of a step with Ray's other processes going, over those with them stopped, turn by turn",
        "machine": facts,
        "ratio": round(statistics.mean(ratios), 4),
        # Ratios that are neighbours share a turn, so that each counts for three quarters of one by itself.
        "standard_error": round(statistics.stdev(ratios) / (0.75 * len(ratios)) ** 0.5, 4),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "step_s_by_turn": [round(step, 4) for step in steps],
        "turn_s": turn,
        "cores": {name: round(used[name] / lasted[RANK not in name], 4) for name in sorted(used)},  # while going
        "config": config.flat() | {"runs": "a temporary folder"},
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    others = sum(cores for name, cores in report["cores"].items() if RANK not in name)
    print(json.dumps({key: report[key] for key in ("ratio", "standard_error")} | {"others_cores": round(others, 3)}))


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(sys.argv[2], sys.argv[3:])
    else:
        main()

"""Epoch after epoch for a long time: do memory, open files or shared memory of any process grow?

A run of the training door on a private Ray of this machine, looked at every few seconds; then Ctrl-C. Growth is the
slope of a straight line through what was seen after the first third, in which caches fill.

    python -m tests.chaos.soak shards=shards/demo runs=FOLDER minutes=120 out=FILE.json
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rehearse_jobs import ROOT
from benchmarks.watched import look
from tests.chaos.kills import SETTINGS

EVERY_S = 5.0


def growth(times: list[float], values: list[float]) -> dict[str, float]:
    """The slope over the last two thirds, in an hour; with where it began and ended and its peak."""
    hours, level = np.asarray(times) / 3600, np.asarray(values)
    late = hours >= hours[0] + (hours[-1] - hours[0]) / 3
    slope = np.polyfit(hours[late], level[late], 1)[0] if late.sum() > 2 else float("nan")
    return {
        "after_a_third": round(float(level[late][:3].mean()), 1),
        "end": round(float(level[late][-3:].mean()), 1),
        "peak": round(float(level.max()), 1),
        "per_hour": round(float(slope), 2),
    }


def soak(shards: str, runs: Path, minutes: float) -> dict[str, Any]:
    """Trains for so many minutes and says how each process that lived through them grew."""
    seen: dict[str, dict[str, tuple[list[float], list[float]]]] = defaultdict(dict)
    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as home:  # short: sockets lie in it
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        settings = [*SETTINGS, "epochs=100000", f"data.root={shards}", f"runs={runs}", "name=soak"]
        with (runs / "terminal.txt").open("w") as terminal:
            driver = subprocess.Popen(
                [sys.executable, "pipelines/train.py", *settings],
                cwd=ROOT,
                env=inherited | {"HOME": home, "RAY_TMPDIR": f"{home}/ray", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=terminal,
                start_new_session=True,
            )
            try:
                begun = time.monotonic()
                while time.monotonic() - begun < 60 * minutes:
                    if driver.poll() is not None:  # what was seen until then is worth having
                        break
                    now = time.monotonic() - begun
                    for name, figures in look(driver.pid).items():
                        for figure, value in figures.items():
                            times, values = seen[name].setdefault(figure, ([], []))
                            times.append(now)
                            values.append(value)
                    time.sleep(EVERY_S)
            finally:
                ended_with = driver.poll()
                if ended_with is None:
                    os.killpg(driver.pid, signal.SIGINT)
                    driver.wait(120)
                lasted = (time.monotonic() - begun) / 60
    whole = {name for name, kinds in seen.items() if kinds["files"][0][-1] - kinds["files"][0][0] > 45 * lasted}
    epochs = sum(1 for line in (runs / "terminal.txt").read_text().splitlines() if re.match(r"epoch \d+/\d+: ", line))
    return {
        "minutes": round(lasted, 1),
        "ended_by_itself_with": ended_with,
        "epochs": epochs,
        "processes": {
            name: {figure: growth(*series) for figure, series in seen[name].items()} for name in sorted(whole)
        },
        "ended_on_the_way": len(seen) - len(whole),
    }


def main() -> None:
    """Soaks, and writes down what came of it."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if {*options} != {"shards", "runs", "out", "minutes"}:
        raise SystemExit(f"expected shards=, runs=, minutes= and out=; came {' '.join(sys.argv[1:])}")
    shards, runs = Path(options["shards"]).absolute(), Path(options["runs"]).absolute()
    runs.mkdir(parents=True)
    found = soak(str(shards), runs, float(options["minutes"]))
    Path(options["out"]).write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""A training from outside: seconds from the command to its first batch, and the memory of each process in each phase.

    python -m benchmarks.bench_run out=FILE.json rounds=3 pipelines/presets/demo.yaml data.root=demo/shards epochs=3

`help`: every door's `--help`. `alone`: the command on a machine where no Ray runs, by rounds. `cluster`: the same
command by rounds on a cluster of one node that has run it once. The first epoch's own seconds are what the run says of
itself; what went by before it is the rest of the time until its line was shown, which comes at most 1.5 s late: the
checkpoint is written before, and controller and terminal look twice a second. Memory is looked at five times a second,
in the first round of `alone`: `own` is without what is shared with other processes, the object store is what the raylet
shares.
"""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.bench_epoch import machine
from benchmarks.rehearse_jobs import ROOT, local_cluster
from benchmarks.watched import Driver, look
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.learning.checkpoint import load_state

EVERY_S = 0.2
Peaks = dict[str, dict[str, dict[str, float]]]


def help_seconds() -> dict[str, dict[str, float]]:
    """Wall and CPU seconds of each door's help; the middle of three."""
    found = {}
    for door in sorted(ROOT.glob("pipelines/*.py")):
        walls, cpus = [], []
        for _ in range(3):
            before, started = _children_cpu(), time.perf_counter()
            subprocess.run([sys.executable, str(door), "--help"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
            walls.append(time.perf_counter() - started)
            cpus.append(_children_cpu() - before)
        found[door.stem] = {
            "wall_s": round(statistics.median(walls), 2),
            "cpu_s": round(statistics.median(cpus), 2),
        }
    return found


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(environment: Mapping[str, str], settings: Sequence[str], peaks: Peaks | None = None) -> dict[str, float]:
    """One training to its end.

    Args:
        peaks: takes the most that was seen of each phase, process and figure, where it is given.

    Returns:
        Seconds until the first epoch began, of its phases until the first batch, until that was there, and in all.
    """
    begun = time.monotonic()
    driver = Driver(environment, settings)
    while not driver.ended():
        if peaks is not None:
            _note(peaks, driver)
        time.sleep(EVERY_S)
    ended = time.monotonic() - begun
    out = driver.process.communicate()[0]
    if driver.process.returncode:
        raise RuntimeError(f"ended with {driver.process.returncode}:\n{driver.text[-4000:]}")
    history = load_state(json.loads(out.splitlines()[-1])["checkpoint"]).history
    first = history[0]
    before = min(when for epoch, when in driver.epochs if epoch == 1) - begun - first["time/epoch_s"]
    within = {phase: first[f"time/{phase}_s"] for phase in ("scan", "relate", "plan")}
    within["train_first"] = first["time/train_first_s"]
    return {
        "until_the_first_epoch_s": round(before, 1),
        **{f"{phase}_s": round(seconds, 2) for phase, seconds in within.items()},
        "until_the_first_batch_s": round(before + sum(within.values()), 1),
        "epochs_s": round(sum(row["time/epoch_s"] for row in history), 1),
        "in_all_s": round(ended, 1),
    }


def _note(peaks: Peaks, driver: Driver) -> None:
    phase = re.split(r" {2}|$", driver.phase)[0] or ("after" if driver.done() else "start")
    together: dict[str, float] = defaultdict(float)
    for name, figures in look(driver.process.pid).items():
        kind = name.rsplit(" ", 1)[0]
        own = peaks[phase][kind]
        own["most_mb"] = max(own["most_mb"], round(figures["own_mb"]))
        together[kind] += figures["own_mb"]
        if kind == "raylet":
            store = peaks[phase]["object store"]
            store["most_mb"] = max(store["most_mb"], round(figures["shared_mb"]))
    for kind, sum_mb in together.items():
        peaks[phase][kind]["all_of_them_mb"] = max(peaks[phase][kind]["all_of_them_mb"], round(sum_mb))


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The middle of each figure."""
    return {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}


def main() -> None:
    """Measures, prints and writes."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:3])
    if {*options} != {"out", "rounds"}:
        raise SystemExit(f"expected out= and rounds= first; came {' '.join(sys.argv[1:3])}")
    config = load_config(TrainConfig, sys.argv[3:])
    facts, helped = machine(), help_seconds()
    peaks: Peaks = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    alone, cluster = [], []
    # Short, for sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as home:
        words = [os.path.abspath(word) if word.endswith(".yaml") else word for word in sys.argv[3:]]
        words += [f"data.root={os.path.abspath(config.data.root)}", f"runs={home}/runs", "eval_untrained=false"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = inherited | {"HOME": home, "RAY_TMPDIR": f"{home}/ray"}
        for number in range(int(options["rounds"])):
            alone.append(run(own, [*words, f"name=alone-{number}"], None if number else peaks))
        with local_cluster(nodes=1, cpus=4) as warm:
            run(warm.driving(), [*words, "name=warming"])
            for number in range(int(options["rounds"])):
                cluster.append(run(warm.driving(), [*words, f"name=cluster-{number}"]))
    found = {
        "what": "a training from outside: seconds until the first batch, and memory by process and phase",
        "machine": facts,
        "command": sys.argv[3:],
        "help": helped,
        "alone": middle(alone),
        "cluster": middle(cluster),
        "rounds": {"alone": alone, "cluster": cluster},
        "memory": peaks,
        "config": config.flat(),
    }
    Path(options["out"]).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("help", "alone", "cluster", "memory")}, indent=1))


if __name__ == "__main__":
    main()

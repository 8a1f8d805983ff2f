"""kill -9 in every phase of a run on three raylets: what a run loses, and how long it takes to go on.

Victims and phases are drawn from a seed. A run of two ranks is watched through the line that it shows on a terminal; as
soon as the phase is there, the victim dies. The run goes on by itself, or the same command is typed again. In the end
it is held against a run that nobody disturbed: weights, optimizer, figures, MLflow, and what was left behind.

    python -m tests.chaos.kills shards=shards/demo kills=60 seed=0 out=FILE.json
"""

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import psutil

from benchmarks.rehearse_jobs import LocalCluster, local_cluster, wait_until
from benchmarks.watched import Driver, children, name_of
from gracl.learning.checkpoint import load_state
from tests.local.test_fit import assert_same_run

EPOCHS = 10
# By the name that Ray gives the process of each; the driver and the raylets are known without.
VICTIMS = {
    "worker": "RayTrainWorker",
    "relation actor": "RelationActor",
    "data task": "ReadPlan",
    "controller": "TrainController",
    "raylet": "",
    "driver": "",
}
# As the line on the terminal names them; `plan` is the begin of picking, `checkpoint` the folder that a rank writes.
PHASES = {
    "scan": "scan",
    "relate": "knn|jaccard|cluster|proxies|figures",
    "plan": "train",
    "pick": "train",
    "checkpoint": "",
    "evaluate": "query|gallery",
}
# Ray's own, which stay as long as the cluster: agents, workers that wait for work, detached actors.
OF_THE_CLUSTER = "Agent|IDLE|_AutoscalingCoordinatorActor|_StatsActor"
SETTINGS = (
    "pipelines/presets/demo.yaml",
    f"epochs={EPOCHS}",
    "eval_every=2",
    "data.height=32",  # small pictures: what is tried here is not the network
    "data.width=16",
    "views.pad=2",
    "sampling.steps=12",
    "scale.workers=2",
    "scale.worker_cpus=0.5",
    "scale.relation_cpus=0.5",
    "scale.stream_cpus=0.5",
)


@dataclass
class Kill:
    """What was done and what came of it; `went_on` says how, `seconds` until the next epoch was done."""

    victim: str
    phase: str
    run: str
    at: str
    epochs_before: int
    went_on: str = "by itself"
    repeated: int = 0
    seconds: float = 0.0


@dataclass
class Chaos:
    """Runs that are disturbed, one after the other, until all kills of the list are done or were not possible."""

    cluster: LocalCluster
    runs: Path
    common: tuple[str, ...]
    dice: random.Random
    seen: dict[int, float] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)
    impossible: set[tuple[str, str]] = field(default_factory=set)

    def disturb(self, name: str, wanted: list[tuple[str, str]]) -> dict[str, Any]:
        """One run to its end; takes from `wanted` what the phase allows, at most one kill before an epoch is done.

        Returns:
            The run's own result.
        """
        command = (*self.common, f"name={name}")
        driver, open_kill, open_since = Driver(self.cluster.driving(), command), None, 0.0
        began, looked = time.monotonic(), 0.0
        while True:
            if time.monotonic() - began > 1500:
                raise RuntimeError(f"the run {name} does not end; its terminal said:\n{driver.text[-3000:]}")
            if time.monotonic() - looked > 0.5:
                self._note_processes(driver)
                looked = time.monotonic()
            if driver.ended():
                out = driver.process.communicate()[0]
                if driver.process.returncode == 0:
                    self._close(open_kill, open_since, driver)
                    return dict(json.loads(out.splitlines()[-1]))
                if open_kill is None:
                    raise RuntimeError(f"ended with {driver.process.returncode} undisturbed:\n{driver.text[-4000:]}")
                open_kill.went_on = "by the same command"
                driver = Driver(self.cluster.driving(), command)
            if open_kill and not driver.ended() and self._close(open_kill, open_since, driver):
                open_kill = None
            if open_kill is None and (driver.phase or driver.done()):
                for pair in [pair for pair in wanted if self._is(pair[1], driver)]:
                    done, where = driver.done() if driver.epochs else kept(self.runs / name), driver.phase
                    if self._kill(pair[0], driver):
                        open_kill, open_since = Kill(*pair, name, where, done), time.monotonic()
                        self.kills.append(open_kill)
                        wanted.remove(pair)
                        print(f"{name}: {pair[0]} in {pair[1]} ({where}), {done} epochs done", flush=True)
                        break
            time.sleep(0.02)

    def _close(self, kill: Kill | None, since: float, driver: Driver) -> bool:
        """Whether the run has done an epoch since the kill, or has ended; then the kill is written down."""
        after = [done for done in driver.epochs if done[1] > since]
        if kill is None or not (after or driver.ended()):
            return False
        epoch, when = after[0] if after else (kill.epochs_before + 1, time.monotonic())
        kill.seconds = round(when - since, 1)
        kill.repeated = max(0, kill.epochs_before + 1 - epoch)
        if kill.victim == "raylet":
            self.cluster.join()
        return True

    def _is(self, phase: str, driver: Driver) -> bool:
        if phase == "checkpoint":
            return any(Path(self.cluster.environment["GRACL_TMP"]).glob("gracl-*"))
        if not re.match(PHASES[phase], driver.phase):
            return False
        begun = re.search(r" 0/| [1-3]/", driver.phase) is not None
        return begun if phase == "plan" else not (phase == "pick" and begun)

    def _kill(self, victim: str, driver: Driver) -> bool:
        pids = self._pids(victim, driver)
        if not pids:
            return False
        if victim == "driver":
            os.killpg(driver.process.pid, signal.SIGKILL)
        else:
            psutil.Process(self.dice.choice(pids)).kill()
        return True

    def _pids(self, victim: str, driver: Driver) -> list[int]:
        if victim == "driver":
            return [driver.process.pid]
        if victim == "raylet":  # not the head's, whose loss is the cluster's; those first that have a part of the run
            families = [children(raylet.pid) for raylet in self.cluster.raylets[1:]]
            families.sort(key=lambda family: not any(re.search("RayTrain|Relation", name_of(one)) for one in family))
            return [one.pid for family in families for one in family if name_of(one) == "raylet"][:1]
        return [process.pid for process in self._family() if re.search(f"ray::.*({VICTIMS[victim]})", name_of(process))]

    def _family(self) -> list[psutil.Process]:
        return [child for raylet in self.cluster.raylets for child in children(raylet.pid)]

    def _note_processes(self, driver: Driver) -> None:
        for process in [*self._family(), *children(driver.process.pid)]:
            if process.pid not in self.seen:
                try:
                    self.seen[process.pid] = process.create_time()
                except psutil.Error:
                    continue  # it has ended meanwhile: nothing is left of it

    def left(self) -> list[str]:
        """The processes that still live of all that were seen."""
        found = []
        for pid, begun in self.seen.items():
            try:
                process = psutil.Process(pid)
                if process.create_time() == begun and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(name_of(process))
            except psutil.NoSuchProcess:
                continue
        return found

    def busy(self) -> list[str]:
        """The processes of a run that still live, beside those that Ray keeps for a cluster."""
        return [name for name in self.left() if name.startswith("ray::") and not re.search(OF_THE_CLUSTER, name)]


def kept(folder: Path) -> int:
    """The newest epoch among a run's checkpoints."""
    return max((int(place.name[6:]) for place in folder.glob("epoch-????")), default=0)


def recorded(result: Mapping[str, Any]) -> list[int]:
    """The epochs that MLflow has of a run, each as often as it has it."""
    client = mlflow.MlflowClient(result["tracking_uri"])
    return sorted(point.step for point in client.get_metric_history(result["mlflow_run_id"], "train/loss"))


def schedule(dice: random.Random, impossible: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Every victim in every phase, in a drawn order, without those that were found not to occur."""
    every = [(victim, phase) for victim in VICTIMS for phase in PHASES]
    return [pair for pair in dice.sample(every, len(every)) if pair not in impossible]


@contextmanager
def chaos(runs: Path, settings: tuple[str, ...], seed: int) -> Iterator[Chaos]:
    """A cluster of three raylets to disturb runs on."""
    temporary = runs / "tmp"
    temporary.mkdir(parents=True)
    extra = {"GRACL_TMP": str(temporary), "TMPDIR": str(temporary), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    with local_cluster(extra=extra) as cluster:
        yield Chaos(cluster, runs, (*settings, f"runs={runs}", "scale.max_failures=-1"), random.Random(seed))


def rehearse(
    shards: str, runs: Path, out: Path, *, kills: int, seed: int, settings: tuple[str, ...] = ()
) -> dict[str, Any]:
    """All of it.

    Args:
        shards: of a world to train on.
        runs: an empty folder.
        out: a JSON file; what was seen so far is written there after each run.
        kills: how many.
        seed: they are drawn from it.
        settings: of the training, beside `SETTINGS`.

    Returns:
        Each kill, what differed from the unbroken run, and what was left.
    """
    shared, drawn, wanted = set(os.listdir("/dev/shm")), random.Random(seed), list[tuple[str, str]]()
    results, differences, doubled = list[dict[str, Any]](), list[str](), list[str]()
    with chaos(runs, (*SETTINGS, f"data.root={shards}", *settings), seed) as running:
        began = time.monotonic()
        unbroken = load_state(running.disturb("unbroken", [])["checkpoint"])
        alone = time.monotonic() - began
        while (missing := kills - len(running.kills)) > 0:
            if not wanted and not (wanted := schedule(drawn, running.impossible)):
                break  # nothing that is asked for can be killed
            name, asked = f"killed-{len(results):02d}", wanted[:missing]
            later = wanted[missing:]
            results.append(running.disturb(name, asked))
            wanted = asked + later
            if missing == kills - len(running.kills):  # a run in which nothing that is wanted lived in that phase
                running.impossible |= {*asked}
                wanted = [pair for pair in later if pair not in running.impossible]
            try:
                assert_same_run(load_state(results[-1]["checkpoint"]), unbroken)
            except AssertionError as error:
                differences.append(f"{name}: {error}")
            if (steps := recorded(results[-1])) != list(range(1, EPOCHS + 1)):
                doubled.append(f"{name}: {steps}")
            out.write_text(json.dumps(_seen(running, results, alone, differences, doubled), indent=1))
        temporary = sorted(place.name for place in (runs / "tmp").iterdir())
        wait_until(lambda: not running.busy(), 30)
        busy = running.busy()
    gone = wait_until(lambda: not running.left(), 30)
    found = _seen(running, results, alone, differences, doubled) | {
        "left": {
            "processes_after_the_runs": busy,
            "processes_after_the_cluster": [] if gone else running.left(),
            "shared_memory": sorted(set(os.listdir("/dev/shm")) - shared),
            "temporary": temporary,
        },
    }
    out.write_text(json.dumps(found, indent=1))
    return found


def _seen(
    running: Chaos, results: list[dict[str, Any]], alone: float, differences: list[str], doubled: list[str]
) -> dict[str, Any]:
    return {
        "kills": [asdict(kill) for kill in running.kills],
        "by_victim": Counter(kill.victim for kill in running.kills),
        "by_phase": Counter(kill.phase for kill in running.kills),
        "not_possible": sorted(f"{victim} in {phase}" for victim, phase in running.impossible),
        "runs": len(results),
        "unbroken_s": round(alone, 1),
        "differing_from_the_unbroken_run": differences,
        "mlflow_not_once_each": doubled,
        "epochs_repeated_beside_the_one_under_way": sum(kill.repeated for kill in running.kills),
    }


def main() -> None:
    """Kills, and writes down what came of it."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not {"shards", "runs", "out"} <= {*options} <= {"shards", "runs", "out", "kills", "seed"}:
        raise SystemExit(f"expected shards=, runs=, out=, kills=, seed=; came {' '.join(sys.argv[1:])}")
    shards, runs = Path(options["shards"]).absolute(), Path(options["runs"]).absolute()
    number, seed = int(options.get("kills", 60)), int(options.get("seed", 0))
    found = rehearse(str(shards), runs, Path(options["out"]), kills=number, seed=seed)
    print(json.dumps({name: value for name, value in found.items() if name != "kills"}, indent=1))


if __name__ == "__main__":
    main()

"""Workers that go and come: a run that may have one worker or two, on nodes that have room for one each.

A node is killed, the run goes on with one worker; a node joins, the run goes on with two. The loss of each step is held
against that of a run that always had two.

    python -m tests.chaos.elastic shards=shards/demo runs=FOLDER out=FILE.json
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow

from benchmarks.rehearse_jobs import LocalCluster, local_cluster
from benchmarks.watched import Driver, children, name_of
from gracl.learning.checkpoint import load_state
from tests.chaos.kills import EPOCHS, SETTINGS

STEPS = 12
ELASTIC = ("scale.min_workers=1", "scale.resize_s=5")
# A node has one CPU: room for one worker and the tasks of the stream, whatever Ray thinks of what is reserved.
ROOM = ("scale.worker_cpus=0.9", "scale.relation_cpus=0", "scale.stream_cpus=0.05")


def follow(driver: Driver, there: Callable[[], bool], what: str, seconds: float = 400.0) -> float:
    """Waits for something of a run; says how long it took."""
    begun = time.monotonic()
    while not there():
        if driver.ended() or time.monotonic() - begun > seconds:
            raise RuntimeError(f"waited for {what}; the terminal said:\n{driver.text[-4000:]}")
        time.sleep(0.1)
    return time.monotonic() - begun


def workers(cluster: LocalCluster) -> list[list[int]]:
    """The training workers of each raylet."""
    return [
        [child.pid for child in children(raylet.pid) if "RayTrainWorker" in name_of(child)]
        for raylet in cluster.raylets
    ]


def losses(result: dict[str, Any]) -> list[list[float]]:
    """The loss of each step, epoch by epoch, as MLflow has it last: a step that was repeated stands there once."""
    client = mlflow.MlflowClient(result["tracking_uri"])
    points = client.get_metric_history(result["mlflow_run_id"], "step/loss")
    latest = {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}
    return [[latest[epoch * STEPS + step] for step in range(1, STEPS + 1)] for epoch in range(EPOCHS)]


def finished(driver: Driver) -> dict[str, Any]:
    """The result of a run, once it has ended."""
    out = driver.process.communicate(timeout=900)[0]
    if driver.process.returncode:
        raise RuntimeError(f"ended with {driver.process.returncode}:\n{driver.text[-4000:]}")
    return dict(json.loads(out.splitlines()[-1]))


def rehearse(shards: str, runs: Path) -> dict[str, Any]:
    """All of it: workers in each epoch, seconds until the run went on, distances from the run of two."""
    common = (*SETTINGS, *ROOM, f"data.root={shards}", f"runs={runs}", "scale.max_failures=-1")
    with local_cluster(nodes=2, cpus=1) as cluster:
        fixed = finished(Driver(cluster.driving(), (*common, "name=fixed")))
        driver = Driver(cluster.driving(), (*common, *ELASTIC, "name=elastic"))
        follow(driver, lambda: driver.done() >= 3, "three epochs")
        before = [len(some) for some in workers(cluster)]
        lost = next(child for child in children(cluster.raylets[1].pid) if name_of(child) == "raylet")
        done = driver.done()
        os.kill(lost.pid, signal.SIGKILL)
        fewer = follow(driver, lambda: driver.done() > done + 1, "an epoch with one worker")
        alone = driver.done()
        cluster.join()
        more = follow(driver, lambda: sum(map(len, workers(cluster))) == 2, "a second worker")
        elastic = finished(driver)
    client = mlflow.MlflowClient(elastic["tracking_uri"])
    points = client.get_metric_history(elastic["mlflow_run_id"], "system/workers")
    crews = {point.step: int(point.value) for point in points}
    ours, theirs = load_state(elastic["checkpoint"]).history, load_state(fixed["checkpoint"]).history
    distances = [
        [abs(one - other) / abs(other) for one, other in zip(*pair, strict=True)]
        for pair in zip(losses(elastic), losses(fixed), strict=True)
    ]
    return {
        "workers_by_raylet_before": before,
        "workers_in_epoch": [crews[epoch] for epoch in range(1, EPOCHS + 1)],
        "seconds_until_two_epochs_after_the_loss": round(fewer, 1),
        "epochs_done_when_a_node_came": alone,
        "seconds_until_a_second_worker": round(more, 1),
        "largest_relative_distance_of_the_loss": {
            f"epoch {epoch}": {"steps 1 to 3": max(some[:3]), "all": max(some)}
            for epoch, some in enumerate(distances, 1)
        },
        "mAP": {"elastic": ours[-1]["val/mAP"], "always two": theirs[-1]["val/mAP"]},
    }


def main() -> None:
    """Rehearses, and writes down what came of it."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if {*options} != {"shards", "runs", "out"}:
        raise SystemExit(f"expected shards=, runs= and out=; came {' '.join(sys.argv[1:])}")
    shards, runs = Path(options["shards"]).absolute(), Path(options["runs"]).absolute()
    found = rehearse(str(shards), runs)
    Path(options["out"]).write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

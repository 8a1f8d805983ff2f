"""kill -9 of a rank, and of the driver, within an epoch: the run goes on from the step, and ends as an unbroken one."""

import json
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from benchmarks.rehearse_jobs import wait_until
from gracl.learning.checkpoint import load_state
from gracl.runtime.checkpoints import load_model, load_run_state
from gracl.runtime.midway import NAME, find_midway
from gracl.runtime.train import train
from tests.local.test_fit import assert_same_run
from tests.ray.test_survival import Door, ranks_here
from tests.toy import toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS, STEPS, EVERY = 2, 30, 5
RUN: dict[str, Any] = {"epochs": EPOCHS, "sampling__steps": STEPS, "scale__workers": 2, "eval_every": 1}
NOTE = r"note: goes on within epoch (\d+), after step (\d+)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, with_mlflow):
    return with_mlflow(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def unbroken(ray_cluster, toy_shards, runs):
    """Two ranks that nobody disturbs, without a checkpoint on the way."""
    return load_state(train(toy_config(toy_shards, runs, name="unbroken", **RUN))["checkpoint"])


def step_of(place: str) -> int:
    return int(NAME.fullmatch(Path(place).name)[2])


def left_in(folder: Path) -> list[str]:
    return [name.name for name in folder.iterdir() if NAME.fullmatch(name.name)]


def assert_told_once(uri: str, run_id: str) -> None:
    """MLflow has every epoch and every step once."""
    client = mlflow.MlflowClient(uri)
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == list(range(1, EPOCHS + 1))
    steps = [point.step for point in client.get_metric_history(run_id, "step/loss")]
    assert sorted(steps) == list(range(1, EPOCHS * STEPS + 1))


class Killer(threading.Thread):
    """Kills one of the ranks once a checkpoint within the second epoch is there, and looks which is the newest then."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self.killed, self.newest = folder, None, ""

    def run(self) -> None:
        if wait_until(lambda: find_midway(str(self._folder), 1), 240):
            self.killed = ranks_here()[-1].pid
            os.kill(self.killed, signal.SIGKILL)
            time.sleep(0.5)  # rank 0 may be about to write one; a new group takes longer than this
            self.newest = find_midway(str(self._folder), 1)


@pytest.mark.long
@pytest.mark.timeout(600)  # the run that nobody disturbs, and one that begins twice
def test_a_run_whose_worker_is_killed_within_an_epoch_goes_on_from_the_step(
    ray_cluster, toy_shards, runs, unbroken, capfd
):
    killer = Killer(runs / "killed")
    killer.start()
    result = train(toy_config(toy_shards, runs, name="killed", checkpoint__every_steps=EVERY, **RUN))
    killer.join(10)
    assert killer.killed, "no worker was killed: this run proves nothing"
    assert not psutil.pid_exists(killer.killed)
    assert re.findall(NOTE, capfd.readouterr().err) == [("2", str(step_of(killer.newest)))]
    assert_same_run(load_state(result["checkpoint"]), unbroken)
    assert_told_once(result["tracking_uri"], result["mlflow_run_id"])
    assert left_in(runs / "killed") == [], "the epoch's own checkpoint is there"


@pytest.fixture
def home() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as home:  # short: sockets lie in it
        yield home


@pytest.mark.long
@pytest.mark.timeout(600)  # two programs with a Ray each, on a machine that may be busy
def test_a_driver_that_is_killed_within_an_epoch_and_started_again_goes_on_from_the_step(
    toy_shards, runs, home, unbroken
):
    settings = {**RUN, "name": "driver", "checkpoint__every_steps": EVERY}
    folder, first = runs / "driver", Door(toy_shards, runs, home, **settings)
    try:
        # In the first epoch: no checkpoint of Ray Train is there yet.
        assert wait_until(lambda: find_midway(str(folder), 0) or first.process.poll() is not None, 240)
        os.kill(first.process.pid, signal.SIGKILL)
        assert wait_until(lambda: not first.family(), 60), "processes of Ray are left"
    finally:
        first.end()
    place = find_midway(str(folder), 0)
    assert place, "the epoch had ended before the kill: this proves nothing"
    assert not (folder / "epoch-0001").exists()
    state = load_state(place)
    assert (state.epoch, state.midway.step, state.midway.losses.shape) == (0, step_of(place), (2, step_of(place), 5))
    assert load_model(place)[1] == {"height": 32, "width": 16}
    with pytest.raises(Exception, match="one from within epoch 1, after step"):
        load_run_state(place)

    second = Door(toy_shards, runs, home, **settings)
    try:
        out, err = second.process.communicate(timeout=300)
    finally:
        second.end()
    assert second.process.returncode == 0, err
    assert re.findall(NOTE, err) == [("1", str(step_of(place)))]
    result = json.loads(out.splitlines()[-1])
    assert_same_run(load_state(result["checkpoint"]), unbroken)
    assert_told_once(result["tracking_uri"], result["mlflow_run_id"])
    assert left_in(folder) == []

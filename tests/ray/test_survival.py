"""A run survives the loss of a worker, and Ctrl-C: what is learnt in the end is what an unbroken run learns."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import psutil
import pytest

from benchmarks.local_twin import learn
from benchmarks.rehearse_jobs import wait_until
from gracl.learning.checkpoint import load_state
from gracl.runtime.train import train
from tests.local.test_fit import assert_same_run
from tests.toy import TOY, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EPOCHS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory, with_mlflow):
    return with_mlflow(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def unbroken(toy_shards):
    """The same run in one process, to which a Ray run of one worker is bit-equal (test_train.py)."""
    return learn(toy_config(toy_shards, epochs=EPOCHS))


def kept(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}" / "state.pt"


def ranks_here() -> list[psutil.Process]:
    """The processes of Ray Train's workers below this one."""
    return [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in child.name()]


class Killer(threading.Thread):
    """Kills the one rank of a run as soon as an epoch has been kept."""

    def __init__(self, folder: Path, epoch: int) -> None:
        super().__init__(daemon=True)
        self._state, self.killed = kept(folder, epoch), None

    def run(self) -> None:
        if wait_until(self._state.exists, 120):
            (rank,) = ranks_here()
            os.kill(rank.pid, signal.SIGKILL)
            self.killed = rank.pid


@pytest.mark.long
def test_a_run_whose_worker_is_killed_ends_as_an_unbroken_one(ray_cluster, toy_shards, runs, unbroken):
    killer = Killer(runs / "killed", 2)
    killer.start()
    result = train(toy_config(toy_shards, runs, name="killed", epochs=EPOCHS))
    killer.join(10)
    assert killer.killed, "no worker was killed: this run proves nothing"
    assert not psutil.pid_exists(killer.killed)
    assert_same_run(load_state(result["checkpoint"]), unbroken)

    client = mlflow.MlflowClient(result["tracking_uri"])
    experiment = client.get_experiment_by_name("gracl")
    found = client.search_runs([experiment.experiment_id], filter_string="attributes.run_name = 'killed'")
    assert [run.info.run_id for run in found] == [result["mlflow_run_id"]]
    assert found[0].info.status == "FINISHED"
    steps = {point.step for point in client.get_metric_history(result["mlflow_run_id"], "train/loss")}
    assert steps == set(range(1, EPOCHS + 1))
    lost = [value for name, value in found[0].data.tags.items() if name.startswith("gracl.lost_workers.")]
    assert lost == ["[0]"]


class Door:
    """`python pipelines/train.py` in a session of its own, so that Ctrl-C reaches all of it and nothing else."""

    def __init__(self, root: str, runs: Path, home: str, **changes: object) -> None:
        self._mark = uuid.uuid4().hex
        settings = {**TOY, "epochs": EPOCHS, "data.root": root, "runs": runs, "name": "interrupted"}
        settings |= {name.replace("__", "."): value for name, value in changes.items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        apart = {"HOME": home, "RAY_TMPDIR": f"{home}/ray", "OMP_NUM_THREADS": "1", "GRACL_TEST_MARK": self._mark}
        self.process = subprocess.Popen(
            [sys.executable, "pipelines/train.py", *(f"{name}={value}" for name, value in settings.items())],
            cwd=ROOT,
            env=inherited | apart,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def family(self) -> list[int]:
        """Every process that was started by this door, whoever its parent is now."""
        return [process.pid for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("GRACL_TEST_MARK") == self._mark
        except psutil.Error:
            return False

    def end(self) -> None:
        for pid in self.family():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def door(toy_shards, runs) -> Iterator[Callable[[], Door]]:
    """Opens doors on the same run; nothing of them outlives the test."""
    opened: list[Door] = []
    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as home:  # short: sockets lie in it

        def open_door() -> Door:
            opened.append(Door(toy_shards, runs, home))
            return opened[-1]

        yield open_door
        for one in opened:
            one.end()


@pytest.mark.long
@pytest.mark.timeout(600)  # two programs with a Ray each, on a machine that may be busy
def test_ctrl_c_ends_a_run_cleanly_and_the_same_command_goes_on(door, runs, unbroken):
    first = door()
    folder = runs / "interrupted"
    assert wait_until(lambda: kept(folder, 2).exists() or first.process.poll() is not None, 180)
    assert len(first.family()) > 5, "the run is meant to be under way, with Ray's processes"
    first.interrupt()
    out, err = first.process.communicate(timeout=60)
    assert first.process.returncode == 130, err
    assert "To go on, run the same command with name=interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert wait_until(lambda: not first.family(), 15), "processes of Ray are left"
    assert not kept(folder, EPOCHS).exists(), "the run had ended before Ctrl-C: this proves nothing"
    record = json.loads((folder / "run.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    assert client.get_run(record["mlflow_run_id"]).info.status == "KILLED"

    second = door()
    out, err = second.process.communicate(timeout=240)
    assert second.process.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["mlflow_run_id"] == record["mlflow_run_id"]
    assert_same_run(load_state(result["checkpoint"]), unbroken)
    steps = [point.step for point in client.get_metric_history(record["mlflow_run_id"], "train/loss")]
    assert set(steps) == set(range(1, EPOCHS + 1))
    assert len(steps) <= EPOCHS + 1, "more than the epoch under way was done again"
    assert client.get_run(record["mlflow_run_id"]).info.status == "FINISHED"
    assert wait_until(lambda: not second.family(), 15), "processes of Ray are left"

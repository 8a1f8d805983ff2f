"""A real MLflow server on loopback, killed in the middle of a training and started again after its end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
import requests

from benchmarks.rehearse_jobs import free_ports, wait_until
from gracl.runtime.train import train
from tests.ray_jobs import KillAfterFirstEpoch
from tests.toy import TOY, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow]

EPOCHS = 3


@contextmanager
def server(folder: Path, port: int) -> Iterator[int]:
    """An MLflow server while the block goes on: the id of its process group."""
    words = ["server", "--host=127.0.0.1", f"--port={port}", "--workers=1", f"--artifacts-destination={folder}/files"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, f"--backend-store-uri=sqlite:///{folder}/mlflow.db"],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: answers(port), 120), "the server did not start"
        yield process.pid
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=2).ok
    except requests.RequestException:
        return False


@pytest.mark.long
def test_a_run_ends_well_without_its_server_and_the_same_command_tells_the_rest(
    ray_cluster, toy_shards, tmp_path, with_mlflow, monkeypatch
):
    said: list[str] = []
    monkeypatch.setattr("gracl.runtime.train.say", said.append)
    (port,) = free_ports(1)
    with_mlflow(tmp_path)
    uri = f"http://127.0.0.1:{port}"
    config = toy_config(toy_shards, tmp_path / "runs", name="told", epochs=EPOCHS, tracking__uri=uri)
    with server(tmp_path, port) as pid:
        result = train(config, callbacks=[KillAfterFirstEpoch(pid, uri, "told")])
        assert not answers(port), "the server was not killed: this run proves nothing"
    assert result["epochs"] == EPOCHS
    assert "once it is back, the same command tells it the rest" in said[-1]

    with server(tmp_path, port):
        client, run_id = mlflow.MlflowClient(uri), result["mlflow_run_id"]
        assert client.get_run(run_id).info.status == "RUNNING"
        again = train(config)
        assert again["final"] == result["final"]
        run = client.get_run(run_id)
        assert (run.info.status, run.data.metrics["epoch"]) == ("FINISHED", EPOCHS)
        assert run.data.metrics["val/mAP"] == pytest.approx(result["final"]["mAP"])
        assert {point.step for point in client.get_metric_history(run_id, "train/loss")} == set(range(1, EPOCHS + 1))
        assert {"config.yaml", "ranked.png"} <= {file.path for file in client.list_artifacts(run_id)}
        # Of the epoch that the server heard: the loss of each step, and what the node did.
        steps = {point.step for point in client.get_metric_history(run_id, "step/loss")}
        assert steps == set(range(1, TOY["sampling.steps"] + 1))
        assert run.data.metrics["system/node0/system_memory_usage_megabytes"] > 0
    assert "MLflow was away: epochs 2, 3 were written to it at the end" in said

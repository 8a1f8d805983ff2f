"""`ray job submit` against a head and two more raylets, with token authentication: as people use clusters."""

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from benchmarks.rehearse_jobs import LocalCluster, json_in, local_cluster, submit, wait_until
from gracl.runtime.runs import latest_epoch
from tests.toy import TOY

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS = 200  # more than there is time for: the job is to be stopped


@pytest.fixture(scope="module")
def cluster():
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def runs(tmp_path_factory, with_mlflow):
    return with_mlflow(tmp_path_factory.mktemp("runs"))


def training(root: str, runs: Path, name: str, **changes: object) -> list[str]:
    settings = {**TOY, "data.root": root, "runs": runs, "name": name, "epochs": EPOCHS, "scale.workers": 2}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["python", "pipelines/train.py", *(f"{name}={value}" for name, value in settings.items())]


# Ray's own: one for each job, and two that Ray Data keeps for the whole cluster, none of which reserves anything.
RAYS_OWN = ("JobSupervisor", "_AutoscalingCoordinatorActor", "_StatsActor")


def busy_actors(cluster: LocalCluster) -> list[dict[str, str]]:
    """Actors that live and are not Ray's own."""
    said = cluster.command("ray", "list", "actors", "--filter", "state=ALIVE", "--format", "json").text
    return [one for one in json_in(said) if one["class_name"] not in RAYS_OWN]


def test_a_training_ends_as_a_job_with_its_result(cluster, toy_shards, runs):
    said = cluster.command(*submit("short", *training(toy_shards, runs, "short", epochs=1)))
    assert (said.code, cluster.job("short")) == (0, "SUCCEEDED"), said.text
    result = json.loads(next(line for line in said.text.splitlines() if line.startswith('{"run"')))
    assert (result["epochs"], latest_epoch(str(runs / "short"))) == (1, 1)
    told = mlflow.MlflowClient(result["tracking_uri"]).get_run(result["mlflow_run_id"])
    assert (told.info.status, told.data.metrics["epoch"]) == ("FINISHED", 1)
    assert wait_until(lambda: not busy_actors(cluster), 30), busy_actors(cluster)


@pytest.mark.long
def test_a_stopped_job_frees_its_actors_and_the_next_one_goes_on(cluster, toy_shards, runs):
    command = training(toy_shards, runs, "job")
    assert cluster.command(*submit("first", *command, options=["--no-wait"])).code == 0

    def two() -> bool:
        return (runs / "job").exists() and latest_epoch(str(runs / "job")) >= 2

    assert wait_until(two, 240), cluster.command("ray", "job", "logs", "first").text
    stopped = cluster.command("ray", "job", "stop", "first")
    assert (stopped.code, cluster.job("first")) == (0, "STOPPED"), stopped.text
    assert wait_until(lambda: not busy_actors(cluster), 30), busy_actors(cluster)
    record = json.loads((runs / "job" / "run.json").read_text())
    assert record["finished"] == 0, "the job had ended before it was stopped: this proves nothing"

    done = latest_epoch(str(runs / "job"))
    epochs = done + 2
    said = cluster.command(*submit("second", *training(toy_shards, runs, "job", epochs=epochs)))
    assert (said.code, cluster.job("second")) == (0, "SUCCEEDED"), said.text
    assert f"epoch {done + 1}/{epochs}" in said.text
    # The last may be done again: its folder is there before Ray's controller knows of it (docs/operations.md).
    assert [epoch for epoch in range(1, done) if f"epoch {epoch}/{epochs}" in said.text] == []
    result = json.loads(next(line for line in said.text.splitlines() if line.startswith('{"run"')))
    assert (result["epochs"], result["mlflow_run_id"]) == (epochs, record["mlflow_run_id"])
    client = mlflow.MlflowClient(result["tracking_uri"])
    told = client.get_run(result["mlflow_run_id"])
    assert (told.info.status, told.data.metrics["epoch"]) == ("FINISHED", epochs)
    assert "gracl.resumed" in told.data.tags
    losses = [point.step for point in client.get_metric_history(told.info.run_id, "train/loss")]
    assert sorted(losses) == list(range(1, epochs + 1))
    steps = [point.step for point in client.get_metric_history(told.info.run_id, "step/loss")]
    assert len(steps) == len(set(steps))
    # Those of the epoch at whose end the job was stopped may be lost: the history has none that mend could write.
    assert TOY["sampling.steps"] * (epochs - 1) <= len(steps) <= TOY["sampling.steps"] * epochs


def test_a_training_that_is_refused_is_a_failed_job(cluster, toy_shards, runs):
    said = cluster.command(*submit("refused", *training(toy_shards, runs, "refused", data__query="nosuch")))
    assert "ConfigError: expected a split named 'nosuch'" in said.text
    assert said.code == 1
    assert cluster.job("refused") == "FAILED"


def test_without_the_token_nobody_is_let_in(cluster):
    stranger = replace(cluster, environment={**cluster.environment, "RAY_AUTH_TOKEN": "0" * 64})
    said = stranger.command("ray", "job", "list")
    assert said.code != 0
    assert "401" in said.text or "nauthorized" in said.text or "token" in said.text

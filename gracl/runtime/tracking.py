"""MLflow: one run per training, made by the driver, written by the Train controller, closed by the driver.

The controller writes, not a worker, so one run has a complete history whatever happens to workers. Tracking never
fails a training that has begun: what MLflow does not take is logged, and epochs that it did not take while it was away
are written at the end, from the run's own history.
"""

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy
import ray
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from ray.train import UserCallback

import gracl
from gracl.errors import ConfigError, expected
from gracl.images import storage

LOG = logging.getLogger("gracl.tracking")


def tracking_uri(uri: str | None, runs: str) -> str:
    """The URI to use: the one given, else a SQLite file in the runs folder.

    Raises:
        ConfigError: no URI with runs kept on remote storage, where no SQLite file can lie; or a relative SQLite path,
            which would be another file in every process.
    """
    if uri is None:
        if not storage.is_local(runs):
            raise ConfigError(
                expected(
                    "tracking.uri beside remote runs", f"none, runs={runs}", "name an MLflow server or a SQLite file"
                )
            )
        return f"sqlite:///{Path(runs, 'mlflow.db')}"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        raise ConfigError(
            expected("an absolute SQLite path (sqlite:////...)", uri, "give the whole path: workers run elsewhere")
        )
    return uri


@dataclass(frozen=True)
class DataSplit:
    """A split of a run, as MLflow lists its data sets: what it is for, where it lies, what it holds."""

    role: str
    name: str
    place: str
    digest: str
    profile: Mapping[str, Any]

    def entity(self) -> DatasetInput:
        """As MLflow has it, which keeps 36 characters of a digest; the whole one is among the parameters."""
        dataset = Dataset(
            self.name, self.digest[:36], "gracl", json.dumps({"uri": self.place}), None, json.dumps(dict(self.profile))
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", self.role)])


def start_run(
    uri: str,
    *,
    experiment: str,
    name: str,
    artifacts: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    splits: Sequence[DataSplit] = (),
) -> str:
    """Makes the run of a training, a comparison or a sweep and writes its parameters under their dotted names.

    Args:
        uri: of MLflow.
        experiment, name: of the run.
        artifacts: where a new experiment keeps files, with a SQLite file.
        parameters, tags: of the run.
        splits: the data that it reads.

    Returns:
        The id of the run.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    where = artifacts if uri.startswith("sqlite:") else None  # a server knows its own place for artifacts
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifact_location=where)
    # Without this tag the pages of MLflow 3 open in their mode for language models.
    client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags) | versions())
    client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
    if splits:
        client.log_inputs(run.info.run_id, [split.entity() for split in splits])
    return str(run.info.run_id)


def nesting(parent: str) -> dict[str, str]:
    """The tag by which MLflow's pages show a run under another; none for no parent."""
    return {"mlflow.parentRunId": parent} if parent else {}


def reopen_run(uri: str, run_id: str, tags: Mapping[str, str] | None = None) -> None:
    """What is resumed goes on in its own run."""

    def reopen(client: MlflowClient) -> None:
        client.update_run(run_id, status="RUNNING")
        news = {"gracl.resumed": str(int(time.time()))} | dict(tags or {})
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in news.items()])

    attempt(uri, reopen, "that the run goes on")


def versions() -> dict[str, str]:
    """What the figures were made with."""
    return {
        "gracl.version": gracl.__version__,
        "gracl.python": platform.python_version(),
        "gracl.torch": torch.__version__,
        "gracl.ray": ray.__version__,
        "gracl.numpy": numpy.__version__,
        "gracl.mlflow": mlflow.__version__,
    }


class MlflowCallback(UserCallback):
    """Writes each epoch's report from the controller of Ray Train. Hooks are called by keyword: the names stay."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._uri, self._run_id = uri, run_id

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """One batch of metrics, with the epoch as their step."""
        batch, step = as_metrics(metrics[0]), int(metrics[0]["epoch"])
        self._write(lambda client: client.log_batch(self._run_id, metrics=batch), f"the figures of epoch {step}")

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """A tag that says that the run lost workers and when."""
        tag = RunTag(f"gracl.lost_workers.{int(time.time())}", str(sorted(worker_exceptions)))
        self._write(lambda client: client.log_batch(self._run_id, tags=[tag]), "the loss of workers")

    def _write(self, write: Callable[[MlflowClient], Any], what: str) -> None:
        attempt(self._uri, write, what)  # an exception in a callback would end the training (ray.md 2.2)


def as_metrics(figures: Mapping[str, float]) -> list[Metric]:
    """The figures of an epoch at its step; those from before the training at step 0."""
    step, now = int(figures["epoch"]), int(time.time() * 1000)
    return [Metric(name, value, now, 0 if name.startswith("untrained/") else step) for name, value in figures.items()]


def mend(uri: str, run_id: str, history: Sequence[Mapping[str, float]]) -> list[int]:
    """Writes the epochs that MLflow does not have, from the run's own history: it may have been away.

    Returns:
        The epochs that were missing and are there now. Nothing fails where MLflow is away still: that is logged.
    """
    missing: list[int] = []

    def write(client: MlflowClient) -> None:
        there = {point.step for point in client.get_metric_history(run_id, "epoch")}
        for figures in history:
            if int(figures["epoch"]) not in there:
                client.log_batch(run_id, metrics=as_metrics(figures))
                missing.append(int(figures["epoch"]))

    attempt(uri, write, "the epochs that it lacks")
    return missing


def attempt(uri: str, write: Callable[[MlflowClient], Any], what: str) -> bool:
    """Writes to MLflow; what it does not take is logged, and nothing fails. Whether it took it."""
    try:
        write(MlflowClient(uri))
    except Exception:
        LOG.exception("MLflow at %s did not take %s; the run's folder holds it", uri, what)
        return False
    return True


@contextmanager
def closing(uri: str, run_id: str) -> Iterator[None]:
    """The run while the driver waits; at the end its status says how it went."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        attempt(uri, lambda client: client.set_terminated(run_id, status=status), f"the status {status}")

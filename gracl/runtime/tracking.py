"""MLflow: one run per training, made by the driver, written by the Train controller, closed by the driver.

The controller writes, not a worker, so one run has a complete history whatever happens to workers. Tracking never
fails a training that has begun: what MLflow does not take while it is away is kept and tried again, and epochs that it
lacks at the end are written from the run's own history.
"""

import json
import logging
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy
import ray
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from ray.train import UserCallback

import gracl
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.learning.epoch_report import STEP_LOSSES
from gracl.runtime.buffering import Buffer, Write, client_of, is_refusal
from gracl.runtime.nodes import SYSTEM
from gracl.runtime.progress import say

# As many as MLflow takes at once.
_MOST_METRICS = 1000

# user:password@ as SQLAlchemy reads it (a password may hold / and #), and as an option of a database's client.
_PASSWORD = re.compile(r"^[^:]+://[^:/@]*:[^@]*@|[?&](password|passwd|pwd)=", re.IGNORECASE)
LOG = logging.getLogger("gracl.tracking")


def tracking_uri(uri: str | None, runs: str) -> str:
    """The URI to use: the one given, else a SQLite file in the runs folder.

    Raises:
        ConfigError: no URI with runs kept on remote storage, where no SQLite file can lie; or a relative SQLite path,
            which would be another file in every process; or a password in it.
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
    return without_password(uri)


def without_password(uri: str) -> str:
    """The URI of an MLflow, which a run writes into its record, its parameters and the terminal.

    Raises:
        ConfigError: there is a password in it; it is not repeated.
    """
    if not _PASSWORD.search(uri):
        return uri
    advice = (
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on driver and nodes, or for a database the file of "
    )
    advice += "its client (~/.pgpass): a URI is written down in many places. Where a run's record has it already, name "
    advice += "another in tracking_uri="
    raise ConfigError(expected("an MLflow URI without a password", f"{uri.partition('://')[0]}://...", advice))


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
    wait_s: float = 0.0,
) -> str:
    """Makes the run of a training, a comparison or a sweep and writes its parameters under their dotted names.

    Args:
        uri: of MLflow.
        experiment, name: of the run.
        artifacts: where a new experiment keeps files, with a SQLite file.
        parameters, tags: of the run.
        splits: the data that it reads.
        wait_s: how long to wait for a server that does not answer.

    Returns:
        The id of the run.

    Raises:
        ConfigError: the server does not answer, or nothing of MLflow.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    client = client_of(uri)
    found = _reached(uri, wait_s, lambda: client.get_experiment_by_name(experiment))
    where = artifacts if uri.startswith("sqlite:") else None  # a server knows its own place for artifacts
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifact_location=where)
    # Without this tag the pages of MLflow 3 open in their mode for language models.
    client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags) | versions())
    client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
    if splits:
        client.log_inputs(run.info.run_id, [split.entity() for split in splits])
    return str(run.info.run_id)


def _reached(uri: str, wait_s: float, ask: Callable[[], Any]) -> Any:
    """The first answer of a server; one that is away or overtaxed is asked again for `wait_s` seconds."""
    begun, pause = time.monotonic(), 1.0
    while True:
        try:
            return ask()
        except MlflowException as error:
            answered = is_refusal(error) or "not in a valid JSON format" in str(error)  # somebody else's page
            left = begun + wait_s - time.monotonic()
            if answered or not uri.startswith("http") or left <= 0:
                what = expected(
                    f"an MLflow server at {uri}", _first_line(error), "start it, or mend tracking.uri (or keys)"
                )
                raise ConfigError(what) from error
        say(f"MLflow at {uri} does not answer; waiting for it, {left:.0f} s at most")
        time.sleep(min(pause, left))
        pause = min(2 * pause, 30.0)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
        self._made: Buffer | None = None  # in the controller: the thread cannot travel there

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """The figures with the epoch as their step, the loss of each step, and what all nodes did meanwhile."""
        figures = plain(metrics[0])
        step, now = int(figures["epoch"]), int(time.time() * 1000)
        losses: Sequence[float] = metrics[0].get(STEP_LOSSES, ())
        # First the epoch: at the end it is asked for, and what stands with it is there then, too.
        points = as_metrics(figures)
        points += [
            Metric("step/loss", value, now, (step - 1) * len(losses) + place) for place, value in enumerate(losses, 1)
        ]
        points += [Metric(name, value, now, step) for one in metrics for name, value in one.get(SYSTEM, {}).items()]
        for start in range(0, len(points), _MOST_METRICS):
            batch = points[start : start + _MOST_METRICS]
            self._write(partial(_log, self._run_id, batch), f"the figures of epoch {step}")

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """A tag that says that the run lost workers and when."""
        tag = RunTag(f"gracl.lost_workers.{int(time.time())}", str(sorted(worker_exceptions)))
        self._write(lambda client: client.log_batch(self._run_id, tags=[tag]), "the loss of workers")

    def _write(self, write: Write, what: str) -> None:
        if self._made is None:
            self._made = Buffer(self._uri)
        self._made.put(write, what)


def _log(run_id: str, batch: Sequence[Metric], client: MlflowClient) -> None:
    client.log_batch(run_id, metrics=batch)


def plain(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch without what else its report to Ray Train brings."""
    return {name: value for name, value in report.items() if name not in (STEP_LOSSES, SYSTEM)}


def as_metrics(figures: Mapping[str, float]) -> list[Metric]:
    """The figures of an epoch at its step; those from before the training at step 0.

    Without the checksums, which are there to be compared, not looked at: they stay in the history.
    """
    step, now = int(figures["epoch"]), int(time.time() * 1000)
    return [
        Metric(name, value, now, 0 if name.startswith("untrained/") else step)
        for name, value in figures.items()
        if not name.startswith("check/")
    ]


def mend(uri: str, run_id: str, history: Sequence[Mapping[str, float]]) -> list[int] | None:
    """Writes the epochs that MLflow does not have, from the run's own history: it may have been away.

    Returns:
        The epochs that were missing and are there now; None where MLflow did not take them: that is logged.
    """
    missing: list[int] = []

    def write(client: MlflowClient) -> None:
        there = {point.step for point in client.get_metric_history(run_id, "epoch")}
        for figures in history:
            if int(figures["epoch"]) not in there:
                client.log_batch(run_id, metrics=as_metrics(figures))
                missing.append(int(figures["epoch"]))

    return missing if attempt(uri, write, "the epochs that it lacks") else None


def is_complete(uri: str, run_id: str, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether MLflow has a run as done, with its last epoch; false where it does not answer."""
    seen: list[bool] = []

    def look(client: MlflowClient) -> None:
        run = client.get_run(run_id)
        seen.append(run.info.status == "FINISHED" and run.data.metrics.get("epoch") == history[-1]["epoch"])

    return attempt(uri, look, "the question what it has") and seen[0]


def attempt(uri: str, write: Write, what: str) -> bool:
    """Writes to MLflow; what it does not take is logged, and nothing fails. Whether it took it."""
    try:
        write(client_of(uri))
    except Exception:
        LOG.exception("MLflow at %s did not take %s; the run's folder holds it", uri, what)
        return False
    return True


def leave_text(run_id: str, text: str, name: str, client: MlflowClient) -> None:
    """A file of a run in MLflow, where it has none of that name; for `attempt`."""
    if name not in {file.path for file in client.list_artifacts(run_id)}:
        client.log_text(run_id, text, name)


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

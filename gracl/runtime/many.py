"""What a comparison and a sweep have in common: many trainings at a time, under one MLflow run."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mlflow import MlflowClient

from gracl.config import TrainConfig
from gracl.images import storage
from gracl.runtime.runs import RECORD
from gracl.runtime.session import Demand
from gracl.runtime.tracking import attempt, nesting, reopen_run, start_run
from gracl.runtime.train import demand
from gracl.sections import Tracking

# Of what Tune reserves for a trial, since it knows no trial that reserves nothing.
TRIAL_CPUS = 0.01


def demand_of(configs: Sequence[TrainConfig], concurrent: int) -> Demand:
    """What the trainings may hold of the cluster at one time: the sum over the `concurrent` largest of them."""
    wanted, many = [demand(config) for config in configs], min(concurrent, len(configs))

    def largest(sizes: Sequence[float]) -> float:
        return sum(sorted(sizes, reverse=True)[:many])

    return Demand(
        cpus=largest([one.cpus for one in wanted]) + many * TRIAL_CPUS,
        gpus=largest([one.gpus for one in wanted]),
        parts=f"{many} runs at a time, each of {max(wanted, key=lambda one: (one.gpus, one.cpus)).parts}",
        largest=max(one.largest for one in wanted),
        advice="lower concurrent or what a run reserves, add nodes, or set scale.autoscaling=true for the runs",
        waits=all(one.waits for one in wanted),
    )


def begin_parent(
    place: str,
    uri: str,
    *,
    name: str,
    kind: str,
    artifacts: str,
    parameters: Mapping[str, Any],
    tracking: Tracking,
) -> str:
    """The id of the MLflow run over the trainings: made, or taken up where `place` names one on this server."""
    saved = json.loads(storage.read_bytes(place)) if storage.exists(place) else {}
    if saved.get("tracking_uri") == uri:
        reopen_run(uri, saved["mlflow_run_id"], nesting(tracking.parent))
        return str(saved["mlflow_run_id"])
    parent = start_run(
        uri,
        experiment=tracking.experiment,
        name=name,
        artifacts=artifacts,
        parameters=parameters,
        tags={"gracl.kind": kind} | nesting(tracking.parent),
    )
    news = {"mlflow_run_id": parent, "tracking_uri": uri}
    storage.write_bytes(place, json.dumps({**saved, **news}, indent=1).encode())
    return parent


def leave(configs: Sequence[TrainConfig], uri: str) -> None:
    """MLflow hears that runs were stopped which cannot say so themselves, since their processes are killed."""
    for config in configs:
        place = storage.join(config.runs, config.name, RECORD)
        saved = json.loads(storage.read_bytes(place)) if storage.exists(place) else {}
        if saved and saved["finished"] < config.epochs:
            attempt(uri, partial(_close, saved["mlflow_run_id"]), f"that {config.name} was stopped")


def _close(run_id: str, client: MlflowClient) -> None:
    if client.get_run(run_id).info.status == "RUNNING":  # one that failed before has said so
        client.set_terminated(run_id, status="KILLED")

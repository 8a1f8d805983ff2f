"""What a comparison and a sweep have in common: many trainings at a time, under one MLflow run."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from mlflow import MlflowClient
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gracl.config import TrainConfig
from gracl.errors import CheckpointError, ConfigError, GraclError
from gracl.images import storage
from gracl.runtime.records import read_parent, read_run
from gracl.runtime.runs import Run, prepare
from gracl.runtime.session import Demand
from gracl.runtime.tracking import attempt, nesting, reopen_run, start_run
from gracl.runtime.train import demand, tell_rest
from gracl.sections import Tracking

# Of what Tune reserves for a trial, since it knows no trial that reserves nothing.
TRIAL_CPUS = 0.01


def demand_of(configs: Sequence[TrainConfig], concurrent: int) -> Demand:
    """What the trainings may hold of the cluster at one time: the sum over the `concurrent` largest of them.

    Of an elastic one every worker that it asks for counts where another may be beside it: Ray counts for how many there
    is room by all that nodes have, so each would begin with what the others hold too, and wait for it. Those that run
    one at a time ask for as few as at their own doors.
    """
    many = min(concurrent, len(configs))
    wanted = [demand(config) for config in configs]
    elastic = wanted[0].elastic
    if many > 1 or any(one.elastic != elastic for one in wanted):
        wanted, elastic = [one.whole() for one in wanted], None

    def largest(sizes: Sequence[float]) -> float:
        return sum(sorted(sizes, reverse=True)[:many])

    return Demand(
        cpus=largest([one.cpus for one in wanted]) + many * TRIAL_CPUS,
        gpus=largest([one.gpus for one in wanted]),
        parts=f"{many} runs at a time, each of {max(wanted, key=lambda one: (one.gpus, one.cpus)).parts}",
        largest=max(one.largest for one in wanted),
        advice="lower concurrent or what a run reserves, add nodes, or set scale.autoscaling=true for the runs",
        waits=all(one.waits for one in wanted),
        elastic=elastic,
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
    saved = read_parent(place)
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
        wait_s=tracking.wait_s,
    )
    news = {"mlflow_run_id": parent, "tracking_uri": uri}
    storage.write_bytes(place, json.dumps({**saved, **news}, indent=1).encode())
    return parent


def leave(configs: Sequence[TrainConfig], uri: str) -> None:
    """MLflow hears that runs were stopped which cannot say so themselves, since their processes are killed."""
    for config in configs:
        saved = read_run(storage.join(config.runs, config.name))
        if saved and saved["finished"] < config.epochs:
            attempt(uri, partial(_close, saved["mlflow_run_id"]), f"that {config.name} was stopped")


def tell_rest_of(configs: Sequence[TrainConfig], uri: str) -> None:
    """MLflow hears of trainings that are done what it did not take at their ends, because it was away."""
    for config in configs:
        saved = read_run(storage.join(config.runs, config.name))
        if not saved.get("told", True) and saved["finished"] >= config.epochs:
            tell_rest(prepare(config), uri)


def _close(run_id: str, client: MlflowClient) -> None:
    if client.get_run(run_id).info.status == "RUNNING":  # one that failed before has said so
        client.set_terminated(run_id, status="KILLED")


def prepared(config: TrainConfig, name: str, advice: str) -> Run:
    """The run of one of the trainings, refused where its own door would refuse it, with its name.

    Args:
        config: of the training.
        name: which one it is, in words.
        advice: what to do where another run is in its folder.
    """
    try:
        return prepare(config)
    except CheckpointError as error:
        folder = storage.join(config.runs, config.name)
        raise ConfigError(f"{name}: {error}; here: {advice}, or delete {folder}") from None
    except GraclError as error:
        raise type(error)(f"{name}: {error}") from None


def beside(work: Callable[..., Any], *arguments: Any) -> ray.ObjectRef:
    """A call of `work` in a Ray task on this node, outside the placement group of the trial that asks for it.

    Inside, everything that a training starts would have to find room in that group, beside the group that Ray Train
    makes for its ranks; outside, it asks the cluster for what it asks for at its own door.
    """
    return ray.remote(num_cpus=0, max_retries=0)(work).options(scheduling_strategy=here()).remote(*arguments)


def here() -> NodeAffinitySchedulingStrategy:
    """This node, and no placement group."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)

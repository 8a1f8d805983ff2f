"""How a door meets Ray: the cluster it is told of, else a private one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from gracl.errors import ConfigError, expected


@dataclass(frozen=True)
class Demand:
    """What a run will hold of the cluster at one time."""

    cpus: float
    gpus: float
    parts: str


@contextmanager
def session(demand: Demand) -> Iterator[None]:
    """A connection to Ray for the length of a verb; a cluster that we started is stopped at the end.

    With `RAY_ADDRESS` in the environment (as under `ray job submit`) or Ray already initialised, that cluster is used.
    Else one is started on this machine, with as many logical CPUs as the run needs: they say who may run, not how
    fast.

    Raises:
        ConfigError: a cluster that can never give what the run needs.
    """
    ours = not ray.is_initialized()
    if ours:
        quieten()
        if os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
        else:
            _start(demand)
    try:
        _check(demand)
        yield
    finally:
        if ours:
            ray.shutdown()


def quieten() -> None:
    """Ray's own bars and banners off: the terminal belongs to the run. What is set already stays."""
    for name, value in {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint counts once the controller has polled it
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # cold nodes import torch for longer than Ray's 60 s
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)


def _start(demand: Demand) -> None:
    # Since Ray 2.59 a local cluster may switch token authentication on and leave a token behind that later clusters
    # trip over (ray.md 5.1). Ours listens on this machine alone and ends with the run.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        num_cpus=max(os.cpu_count() or 1, int(demand.cpus) + 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def _check(demand: Demand) -> None:
    has = ray.cluster_resources()
    cpus, gpus = has.get("CPU", 0), has.get("GPU", 0)
    if cpus < demand.cpus or gpus < demand.gpus:
        raise ConfigError(
            expected(
                f"a cluster with {demand.cpus:g} CPUs and {demand.gpus:g} GPUs ({demand.parts})",
                f"one with {cpus:g} CPUs and {gpus:g} GPUs",
                "lower scale.workers, scale.worker_cpus or scale.relation_cpus, or add nodes",
            )
        )

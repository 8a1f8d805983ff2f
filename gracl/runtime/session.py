"""How a door meets Ray: the cluster it is told of, else a private one on this machine."""

import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import ray
from ray._private import ray_constants

from gracl.errors import ConfigError, GraclError, expected
from gracl.runtime.waiting import RANKS_S


@dataclass(frozen=True)
class Demand:
    """What a run will hold of the cluster at one time; `waits` for a cluster that grows when more is asked for.

    `largest` has the GPUs and CPUs of the largest part, which one node must have. `elastic`, where fewer workers would
    do: how few are in `cpus` and `gpus`, how many there may be, and the CPUs and GPUs of each.
    """

    cpus: float
    gpus: float
    parts: str
    largest: tuple[float, float] = (0.0, 0.0)
    advice: str = "lower scale.workers or what each part reserves, add nodes, or set scale.autoscaling=true"
    waits: bool = False
    elastic: tuple[int, int, float, float] | None = None

    def cpus_at_most(self) -> float:
        """What it holds with as many workers as there may be."""
        return self.whole().cpus

    def whole(self) -> "Demand":
        """The same with as many workers as there may be, and none of them to do without."""
        fewest, most, cpus, gpus = self.elastic or (0, 0, 0.0, 0.0)
        more = most - fewest
        return replace(self, cpus=self.cpus + more * cpus, gpus=self.gpus + more * gpus, elastic=None)


@contextmanager
def session(demand: Demand) -> Iterator[None]:
    """A connection to Ray for the length of a verb; a cluster that we started is stopped at the end.

    With `RAY_ADDRESS` in the environment (as under `ray job submit`) or Ray already initialised, that cluster is used.
    Else one is started on this machine, with as many logical CPUs as the run needs: they say who may run, not how
    fast.

    Raises:
        ConfigError: a cluster that can never give what the run needs, or where nobody answers.
    """
    with ExitStack() as at_the_end:
        if not ray.is_initialized():
            quieten(elastic=demand.elastic is not None)
            if address := os.environ.get("RAY_ADDRESS"):
                if why := unreachable(address):
                    what, do = f"a Ray cluster at RAY_ADDRESS={address}", "start it, or name another"
                    raise ConfigError(expected(what, why, f"{do}; without RAY_ADDRESS a private Ray is started here"))
                ray.init(logging_level=logging.WARNING, log_to_driver=False)
            else:
                at_the_end.enter_context(_on_loopback())
                at_the_end.enter_context(_unwatched())
                _start(demand)
            at_the_end.callback(ray.shutdown)
        _check(demand)
        yield


def unreachable(address: str, seconds: float = 10.0) -> str | None:
    """Why nobody takes connections at `host:port` or `[host]:port`; None where somebody does, or for another form of
    address (`auto`, `ray://...`), which is left to Ray. It is tried again for so long where it is refused; a host that
    is silent is waited for once. Ray itself tries for minutes, with warnings alone.
    """
    form = re.fullmatch(r"(?:\[([^/\[\]]+)\]|([^/:\[\]]+)):(\d{1,5})", address)
    if form is None:
        return None
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((form[1] or form[2], int(form[3])), timeout=seconds).close()
            return None
        except (OSError, UnicodeError) as error:  # the latter of a name that cannot be one
            if time.monotonic() > deadline or not isinstance(error, ConnectionRefusedError):
                return str(error)
        time.sleep(0.5)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started in this block listens at 127.0.0.1 alone (not so torch's ranks: where they meet is open).

    Else it listens on every address of the machine, and whoever reaches it can run what he likes. Ray has no setting
    for that, and takes `_node_ip_address="127.0.0.1"` for the machine's own address; but it keeps to loopback where it
    believes that there can be no cluster (macOS, Windows), and that can be said. `tests/chaos/test_secrets.py` looks.
    """
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    said, believed = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name] = "0"  # for the processes that it starts
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read it already
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = believed
        os.environ.pop(name)
        if said is not None:
            os.environ[name] = said


@contextmanager
def _unwatched() -> Iterator[None]:
    """Ray Train's actor that asks whether a node is about to be taken away does not run in this block: ours is not.

    Each worker of Ray's wakes a hundred times a second, and what waits of Ray costs a step on two cores some 3 %
    (`benchmarks/bench_idle.py`); this is one of them. On a cluster that is joined later it may matter, and runs.
    """
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    said = os.environ.get(name)
    os.environ.setdefault(name, "0")
    try:
        yield
    finally:
        if said is None:
            os.environ.pop(name, None)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C during the block is a KeyboardInterrupt, and the handler of before is back at its end.

    Ray Train answers Ctrl-C by itself: it aborts the ranks and then ends this process with SystemExit, so that nobody
    could say how to resume; and its handler stays when `fit` has returned. (SIGTERM, for which Ray has a handler too,
    also comes as SystemExit and is a stop as well.)
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def refusals() -> Iterator[None]:
    """What gracl refused in a task or an actor is raised as it was, without the way it came."""
    try:
        yield
    except ray.exceptions.RayError as error:
        refusal = _refusal_behind(error)
        if refusal is None:
            raise
        raise refusal from None


def _refusal_behind(error: BaseException) -> GraclError | None:
    """An error may have passed through several actors: each wraps the one before as its `cause`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, GraclError) and not isinstance(seen, ray.exceptions.RayError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def quieten(*, elastic: bool = False) -> None:
    """Ray's own bars and banners off: the terminal belongs to the run. What is set already stays."""
    # Cold nodes import torch for longer than Ray's 60 s. But after a node was lost Ray still counts it, and an elastic
    # run waits for this long before it takes fewer workers.
    patience = "90" if elastic else "300"
    for name, value in {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint counts once the controller has polled it
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": patience,
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": f"{RANKS_S:g}",  # for ranks to meet in a report; Ray would wait without end
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off


def _start(demand: Demand) -> None:
    # Since Ray 2.59 a local cluster may switch token authentication on and leave a token behind that later clusters
    # trip over (ray.md 5.1). Ours listens on this machine alone and ends with the run.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray counts for each data set that ran (each scan, each reading of a plan) and forgets none of it: 3 MB an epoch in
    # agent and actors (docs/reliability.md). Nobody asks a Ray that has no dashboard; of its tasks it keeps the last.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "10000")
    ray.init(
        address="local",  # not the cluster that somebody else may have begun on this machine
        num_cpus=max(os.cpu_count() or 1, int(demand.cpus_at_most()) + 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def _check(demand: Demand) -> None:
    if demand.waits:
        return
    has = ray.cluster_resources()
    cpus, gpus = has.get("CPU", 0), has.get("GPU", 0)
    if cpus < demand.cpus or gpus < demand.gpus:
        raise ConfigError(
            expected(
                f"a cluster with {demand.cpus:g} CPUs and {demand.gpus:g} GPUs ({demand.parts})",
                f"one with {cpus:g} CPUs and {gpus:g} GPUs",
                demand.advice,
            )
        )
    gpus, cpus = demand.largest
    nodes = [
        (node["Resources"].get("GPU", 0.0), node["Resources"].get("CPU", 0.0)) for node in ray.nodes() if node["Alive"]
    ]
    if not any(node[0] >= gpus and node[1] >= cpus for node in nodes):
        raise ConfigError(
            expected(
                f"a node with {cpus:g} CPUs and {gpus:g} GPUs, for the largest part of the run",
                f"nodes with {', '.join(f'{node[1]:g} and {node[0]:g}' for node in sorted(nodes))}",
                "lower what a worker or a shard reserves, or use larger nodes",
            )
        )
    if demand.elastic:
        _check_elastic(demand, demand.elastic, nodes)


def _check_elastic(
    demand: Demand, elastic: tuple[int, int, float, float], nodes: Sequence[tuple[float, float]]
) -> None:
    """Ray counts for how many workers there is room by all that nodes have, whoever else of this run holds some of it:
    so many are begun, and what is not there beside them is waited for in vain, again and again."""
    fewest, most, cpus, gpus = elastic
    room = sum(int(min(has_cpus // cpus, has_gpus // gpus if gpus else math.inf)) for has_gpus, has_cpus in nodes)
    workers = min(room, most)
    wanted = (demand.cpus + (workers - fewest) * cpus, demand.gpus + (workers - fewest) * gpus)
    has = (sum(node[1] for node in nodes), sum(node[0] for node in nodes))
    if wanted[0] > has[0] or wanted[1] > has[1]:
        raise ConfigError(
            expected(
                f"{wanted[0]:g} CPUs and {wanted[1]:g} GPUs: Ray will begin {workers} workers on these nodes, and the "
                "relation actor, shards and stream want theirs beside them",
                f"a cluster with {has[0]:g} and {has[1]:g}",
                "lower scale.workers to what there is room for, or reserve less for a worker or for the others",
            )
        )

"""One trial of a sweep: trained as at the training door, its judged epochs told to Tune as they come.

What is known of a trial lies in a record of its own from its beginning on, so that a sweep that is stopped anyhow can
go on; Tune's own state is of no use to us and is not read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_type_hints

import ray
from ray import tune
from ray.train import UserCallback
from ray.util.queue import Empty, Queue

from gracl.config import TrainConfig
from gracl.experiments import TuneConfig
from gracl.images import storage
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.many import beside, here
from gracl.runtime.points import START, Values, config_of, name_of
from gracl.runtime.records import read_entry
from gracl.runtime.session import quieten, refusals
from gracl.runtime.tracking import plain
from gracl.runtime.train import train

POINT = "point"
COPY = re.compile(r"t-[0-9a-f]{10}/start-\d{4,}")


@dataclass(frozen=True)
class Point:
    """What is known of one trial.

    Attributes:
        name: of its run.
        values: of the settings that are swept.
        state: "begun" as long as nobody knows better; "stopped" by the scheduler.
        epochs: completed and told of.
        history: the figures of each epoch that had the metric, in order.
        why: it failed.
    """

    name: str
    values: dict[str, Any]
    state: Literal["begun", "done", "stopped", "failed"] = "begun"
    epochs: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    why: str = ""

    def reached(self, metric: str) -> float | None:
        """The metric at the last epoch that is known; None where there is none."""
        return self.history[-1][metric] if self.history else None


@dataclass(frozen=True)
class Sweep:
    """What every trial of a sweep has in common.

    Attributes:
        config: with whole paths, and the parent of the MLflow runs.
        base: the settings of all trials, nested.
        runs, records: folders.
        until: epochs of a trial for now; 0: all of them.
    """

    config: TuneConfig
    base: Mapping[str, Any]
    runs: str
    records: str
    until: int = 0

    def training(self, values: Values) -> TrainConfig:
        """The training of a trial, as far as it is to go for now."""
        config = config_of(self.base, values, runs=self.runs, tracking=self.config.tracking)
        return config.model_copy(update={"epochs": self.until}) if self.until else config

    def place(self, name: str) -> str:
        """Where the record of a trial lies."""
        return storage.join(self.records, f"{name}.json")

    def write(self, point: Point) -> None:
        """Puts a record in the place of the one before."""
        storage.write_bytes(self.place(point.name), json.dumps(asdict(point), indent=1).encode())

    def read(self, name: str) -> Point | None:
        """The record of a trial; None where there is none, or one of another make.

        Raises:
            CheckpointError: it is torn, or of values that this sweep does not try, with its name.
        """
        if not storage.exists(self.place(name)):
            return None
        judge = partial(self._foreign, name)
        saved = read_entry(self.place(name), "the record of a trial", get_type_hints(Point), judge)
        return Point(**saved) if saved else None

    def _foreign(self, name: str, saved: Mapping[str, Any]) -> str:
        """What is wrong with a record for this sweep; "" for nothing."""
        values, metric = saved["values"], self.config.metric
        start = values.get(START)
        if saved["name"] != name or name_of(values) != name or {*values} - {START} != {*self.config.space}:
            return f"values of another trial than {name}"
        # A folder of that name is copied to and deleted.
        if start is not None and not (isinstance(start, str) and COPY.fullmatch(start)):
            return f"{START}: {start!r}"
        told = [row for row in saved["history"] if not {metric, "epoch"} <= row.keys()]
        return f"an epoch without {metric} or its number" if told else ""

    def known(self) -> list[Point]:
        """All trials that have begun, in order of name."""
        names = sorted(name.removesuffix(".json") for name in storage.names_in(self.records))
        return [point for name in names if (point := self.read(name))]


class QueueCallback(UserCallback):
    """Puts each epoch's report into a queue, from the controller of Ray Train."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """The figures of rank 0, which are those of all."""
        self._queue.put(plain(metrics[0]))


def sweep_trial(chosen: Mapping[str, Values], swept: Sweep) -> None:
    """What Ray Tune runs for each trial: `chosen["point"]` has the values of the settings that are swept.

    The training happens in a Ray task of its own, see `many.beside`.
    The last epoch is told when its record is written: at the last epoch Tune may end this process.
    """
    values = dict(chosen[POINT])
    name, config = name_of(values), swept.training(values)
    # What was reached before the last exchange is known; a trial that is not of a population begins or is begun anew.
    point = (swept.read(name) if swept.until else None) or Point(name, values)
    swept.write(point)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here()})
    task = beside(finish, config, queue)
    metric, last = swept.config.metric, config.epochs
    waiting = True
    while waiting:
        waiting = not ray.wait([task], timeout=0.5)[0]
        for figures in taken(queue):
            if metric in figures and figures["epoch"] < last:
                _tell(figures, metric)
    with refusals():
        history = ray.get(task)
    judged = [row for row in history if metric in row]
    whole = config.epochs >= replace(swept, until=0).training(values).epochs
    swept.write(replace(point, state="done" if whole else "begun", epochs=len(history), history=judged))
    _tell(judged[-1], metric)


def taken(queue: Queue) -> list[dict[str, float]]:
    """All that lies in a queue."""
    found = []
    while True:
        try:
            found.append(queue.get(block=False))
        except Empty:
            return found


def _tell(figures: Mapping[str, float], metric: str) -> None:
    tune.report({metric: figures[metric], "epoch": int(figures["epoch"]), "figures": dict(figures)})


def finish(config: TrainConfig, queue: Queue) -> list[dict[str, float]]:
    """Trains, or resumes, or finds it done: the figures of all epochs."""
    quieten(elastic=bool(config.scale.min_workers))
    result = train(config, callbacks=[QueueCallback(queue)])
    return list(load_run_state(result["checkpoint"]).history)

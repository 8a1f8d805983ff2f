"""sweep(config): trials of a sweep through Ray Tune, each trained as at the training door, in one table.

A record of each trial says what became of it, so the same command goes on where it was stopped and repeats nothing
that is done; Tune's own state is of no use to us and is not read.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from gracl.errors import ConfigError, TrainingFailed, expected
from gracl.experiments import TuneConfig
from gracl.idle import idle
from gracl.images import storage
from gracl.locks import holding
from gracl.runtime.grid import runs_of
from gracl.runtime.many import TRIAL_CPUS, begin_parent, demand_of, leave, prepared, tell_rest_of
from gracl.runtime.points import Values, base_of, check_sweep, corners, distributions, name_of, points, told
from gracl.runtime.population import evolve, generation, remove_starts, try_again
from gracl.runtime.progress import say
from gracl.runtime.records import read_parent, read_run
from gracl.runtime.session import Demand, interruptible, session
from gracl.runtime.sweep_findings import report
from gracl.runtime.sweep_trial import POINT, Point, Sweep, sweep_trial
from gracl.runtime.tracking import attempt, closing, tracking_uri
from gracl.runtime.tuning import Tally, error_of, quieten_tune, reason

SWEEP = "sweep.json"
# What may be changed when a sweep goes on: how many trials, how many at a time, who is told.
_FREE = ("trials", "concurrent", "out", "runs", "tracking")
ENDED = ("done", "stopped")
# Corners that are looked at as trainings where no point is known.
_LOOKED_AT = 16
# Proposals that were made before, after which there is nothing new.
_MOST_REPEATS = 200


def sweep(config: TuneConfig) -> dict[str, Any]:
    """Tries the points that have not been tried yet and writes the table of all.

    Returns:
        Folder, paths of what was written, the best trial that did all epochs, how many ended how, rank correlations.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts, when a trial cannot be what it is to be; and from a
            cluster that can never hold `concurrent` trials, before anything is written; and where the same sweep is
            under way.
        TrainingFailed: no trial did all its epochs.
    """
    config, base = _with_whole_places(config), base_of(config)
    check_sweep(config, base)
    with holding(config.out, f"the sweep in {config.out}"):
        return _swept(config, base)


def _swept(config: TuneConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    uri = tracking_uri(config.tracking.uri, config.runs)
    swept = Sweep(config, base, config.runs, storage.join(config.out, "trials"))
    known = {point.name: point for point in swept.known()}
    listed = points(config)
    digests = _check_trials(swept, listed or _some_corners(config))
    what = {"base": base, "digests": digests} | json.loads(config.model_dump_json(exclude={*_free(config), "base"}))
    _check_same(config, what)
    open_points = [values for values in listed if name_of(values) not in known or not _ended(known[name_of(values)])]
    ended = sum(_ended(point) for point in known.values())
    told_done = f"{ended} of them done"
    left = len(open_points) if config.search != "tpe" else max(0, config.trials - ended)
    if config.scheduler == "pbt":
        try_again(swept, listed)
        now = generation(config, swept.training(listed[0]).epochs, listed, {one.name: one for one in swept.known()})
        left = len(listed) if now.left else 0
        told_done = f"{len(now.left)} of them have not come to epoch {now.until} yet" if now.left else "all done"
    say(f"{len(listed) or config.trials} trials in {config.out}, {told_done}")
    try:
        with session(_demand(swept, left)) if left else nullcontext():
            parent = _begin(config, what, uri)
            with closing(uri, parent):
                tell_rest_of([swept.training(one.values) for one in known.values() if one.state == "done"], uri)
                if left:
                    tried = config.model_copy(
                        update={"tracking": config.tracking.model_copy(update={"parent": parent})}
                    )
                    trying = replace(swept, config=tried)
                    if config.scheduler == "pbt":
                        evolve(trying, listed, lambda now, some: _learn(now, some, [], len(some), uri))
                    else:
                        _learn(trying, open_points, list(known.values()), left, uri)
                found = swept.known()
                if config.scheduler == "pbt":
                    remove_starts(swept)  # also those that a call before left when it was killed at its very end
                result = report(config, base, found, uri, parent)
                if not result["best"]:
                    raise TrainingFailed(
                        expected("a trial that does all its epochs", "none", f"{result['table']} has the reasons")
                    )
    except KeyboardInterrupt:
        begun = [point for point in swept.known() if point.state == "begun"]
        leave([swept.training(point.values) for point in begun], uri)
        say("stopped; what is done is kept. To go on, run the same command")
        raise
    return result


def _free(config: TuneConfig) -> tuple[str, ...]:
    """Names of the settings that do not make it another sweep; the trials of a population do."""
    if config.scheduler != "pbt":
        return *_FREE, "exchange_every", "exchanged"  # sweeps of before there was pbt did not write these down
    return tuple(name for name in _FREE if name != "trials")


def _ended(point: Point) -> bool:
    return point.state in ENDED


def _with_whole_places(config: TuneConfig) -> TuneConfig:
    """Ray's workers run in other folders, so a relative path would be another one there."""
    return config.model_copy(update={"out": storage.absolute(config.out), "runs": runs_of(config)})


def _check_same(config: TuneConfig, what: Mapping[str, Any]) -> None:
    """Refuses to put the trials of two sweeps into one table.

    Raises:
        ConfigError: `out` has those of another.
    """
    place = storage.join(config.out, SWEEP)
    if not storage.exists(place):
        return
    saved = read_parent(place).get("sweep", {})
    changed = [name for name in what if saved.get(name) != json.loads(json.dumps(what[name]))]
    if changed:
        raise ConfigError(
            expected(f"the sweep that is in {config.out}", f"another {', '.join(changed)}", "choose another out=")
        )


def _some_corners(config: TuneConfig) -> list[Values]:
    """Corners of the space to look at as trainings: all where they are few."""
    every: list[Values] = [*corners(config.space)]
    return every if len(every) <= _LOOKED_AT else [every[0], every[-1]]


def _check_trials(swept: Sweep, some: Sequence[Values]) -> dict[str, str]:
    """Refuses what a training would refuse at its own door, for points that are known; the digests of their data."""
    if swept.config.search == "tpe" and find_spec("optuna") is None:
        what = expected("the package optuna for search=tpe", "no such package", "install gracl[tpe], or search=random")
        raise ConfigError(what)
    notes, digests = dict[str, None](), dict[str, str]()
    for values in some:
        run = prepared(swept.training(values), told(values), "choose another out=")
        notes |= dict.fromkeys(idle(run.config))
        digests |= {name: str(value) for name, value in run.recipe.items() if name.endswith("_digest")}
    for words in notes:
        say(f"note: {words}")
    return digests


def _demand(swept: Sweep, left: int) -> Demand:
    """What the trials hold at one time: of each resource as much as any corner of the space may want."""
    config = swept.config
    many = min(left, config.concurrent)
    wanted = [demand_of([swept.training(corner)] * many, many) for corner in corners(config.space)]
    largest = max(wanted, key=lambda one: (one.gpus, one.cpus))
    return replace(
        largest,
        cpus=max(one.cpus for one in wanted),
        largest=max(one.largest for one in wanted),
        waits=all(one.waits for one in wanted),
    )


def _begin(config: TuneConfig, what: Mapping[str, Any], uri: str) -> str:
    """The id of the sweep's MLflow run; and what the sweep is, for those that go on with it."""
    place = storage.join(config.out, SWEEP)
    saved = read_parent(place)
    saved["sweep"] = what
    storage.write_bytes(place, json.dumps(saved, indent=1).encode())
    space = {f"space.{name}": f"{domain.kind} {list(domain.ends)}" for name, domain in config.space.items()}
    plain = {name: getattr(config, name) for name in ("base", "metric", "search", "trials", "scheduler", "seed")}
    return begin_parent(
        place,
        uri,
        name=f"sweep-{Path(config.out).name}",
        kind="sweep",
        artifacts=storage.join(config.runs, "artifacts"),
        parameters={**space, **plain},
        tracking=config.tracking,
    )


class Listener(tune.Callback):
    """Says on the terminal what begins and ends, and keeps what a trial that did not end by itself had reached."""

    def __init__(self, swept: Sweep, trials: int, uri: str) -> None:
        self._sweep, self._uri, self._tally = swept, uri, Tally(trials)
        self._seen: dict[str, list[dict[str, float]]] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins."""
        values = trial.config[POINT]
        say(f"{name_of(values)} ({told(values)}): begins or goes on")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        """A judged epoch is told."""
        self._seen.setdefault(name_of(trial.config[POINT]), []).append(dict(result["figures"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is done, or the scheduler has stopped it."""
        name, metric = name_of(trial.config[POINT]), self._sweep.config.metric
        point = self._sweep.read(name)
        if point and point.state != "done" and not (self._sweep.until and point.epochs >= self._sweep.until):
            seen = self._seen.get(name, [])
            point = _with(point, seen, state="stopped")
            self._sweep.write(point)
            self._say_stopped(point)
        reached = point.reached(metric) if point else None
        how = "no figure" if reached is None else f"{metric} {reached:.4f}"
        if point and point.state == "stopped":
            how += f", stopped at epoch {point.epochs}"
        self._tally.end(name, how)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed; the others go on."""
        values, why = trial.config[POINT], reason(error_of(trial))
        point = self._sweep.read(name_of(values)) or Point(name_of(values), dict(values))
        seen = self._seen.get(point.name, [])
        self._sweep.write(_with(point, seen, state="failed", why=why))
        self._tally.end(point.name, f"failed: {why}")

    def _say_stopped(self, point: Point) -> None:
        """The MLflow run of a trial that was stopped says when; its process may be gone and cannot."""
        if saved := read_run(storage.join(self._sweep.runs, point.name)):
            run_id = saved["mlflow_run_id"]
            attempt(self._uri, partial(_end_early, run_id, point.epochs), f"that {point.name} was stopped early")


def _with(point: Point, seen: Sequence[dict[str, float]], **news: Any) -> Point:
    """The record of a trial with the epochs that were told since it was begun or gone on with."""
    history = [*point.history, *seen]
    return replace(point, history=history, epochs=int(history[-1]["epoch"]) if history else 0, **news)


def _end_early(run_id: str, epochs: int, client: MlflowClient) -> None:
    client.set_tag(run_id, "gracl.stopped_early", str(epochs))
    client.set_terminated(run_id, status="KILLED")


def _learn(swept: Sweep, listed: Sequence[Values], known: Sequence[Point], left: int, uri: str) -> None:
    """Runs the trials through Tune, so many at a time."""
    quieten_tune()
    config, scratch = swept.config, storage.join(swept.config.out, "tune")
    algorithm = _proposals(config, known) if config.search == "tpe" else None
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(sweep_trial, swept=swept), {"cpu": TRIAL_CPUS}),
        # The space of proposals is known to who makes them.
        param_space=None if algorithm else {POINT: tune.grid_search([dict(values) for values in listed])},
        tune_config=tune.TuneConfig(
            metric=config.metric,
            mode="max",
            num_samples=left if algorithm else 1,
            search_alg=algorithm,
            scheduler=_scheduler(swept),
            max_concurrent_trials=config.concurrent,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=scratch,
            callbacks=[Listener(swept, left, uri)],
            verbose=0,
        ),
    )
    try:
        with interruptible():
            tuner.fit()
    finally:
        storage.remove(scratch)


def _scheduler(swept: Sweep) -> TrialScheduler | None:
    config = swept.config
    if config.scheduler != "asha":
        return None
    most = max(swept.training(corner).epochs for corner in corners(config.space))
    return ASHAScheduler(time_attr="epoch", max_t=most, grace_period=config.grace, reduction_factor=config.reduction)


class Distinct(OptunaSearch):
    """Tree-structured Parzen estimation that proposes each point once: another trial of it would be the same run.

    Args:
        seen: names of the points that are known.
        options: of `OptunaSearch`.
    """

    def __init__(self, *, seen: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._seen = set(seen)

    def suggest(self, trial_id: str) -> Any:
        """The next point that has not been; `FINISHED` where 200 proposals in a row have."""
        for number in range(_MOST_REPEATS):
            # Under a name of its own for each draw, since of one trial the same point is given again.
            name = f"{trial_id}/{number}"
            found = super().suggest(name)
            if found is None or found == self.FINISHED:
                return found
            if name_of(found[POINT]) not in self._seen:
                self._seen.add(name_of(found[POINT]))
                self._ot_trials[trial_id] = self._ot_trials.pop(name)
                return found
        return self.FINISHED


def _proposals(config: TuneConfig, known: Sequence[Point]) -> Distinct:
    """Proposals that know what was tried, and begin with what was begun."""
    logging.getLogger("optuna").setLevel(logging.WARNING)

    def flatten(point: Point) -> dict[str, Any]:
        return {f"{POINT}/{name}": value for name, value in point.values.items()}

    ended = [point for point in known if _ended(point)]
    searcher = Distinct(
        seen=[point.name for point in ended],
        space={POINT: distributions(config.space)},
        metric=config.metric,
        mode="max",
        points_to_evaluate=[flatten(point) for point in known if not _ended(point)] or None,
        # Another seed each time: with the same one what is drawn at first would be drawn again.
        seed=config.seed + len(known),
    )
    for point in ended:
        if point.history:
            searcher.add_evaluated_point(flatten(point), point.history[-1][config.metric])
    return searcher

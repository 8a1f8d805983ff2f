"""The runs of a comparison through Ray Tune: so many at a time, told of on the terminal; why some failed."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune

from gracl.images import storage
from gracl.retrieval.comparison import METRICS
from gracl.runtime.grid import Trial
from gracl.runtime.many import TRIAL_CPUS
from gracl.runtime.progress import say
from gracl.runtime.session import interruptible
from gracl.runtime.terminal import clock
from gracl.runtime.trial import learn_trial


class Told(tune.Callback):
    """Says on the terminal what begins and ends, and keeps why runs failed."""

    def __init__(self, runs: int) -> None:
        self.failures: dict[str, str] = {}
        self._tally = Tally(runs)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A run begins."""
        say(f"{trial.config['run']}: begins or goes on")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A run is done."""
        name, value = next((name, trial.last_result[name]) for name in METRICS if name in trial.last_result)
        self._tally.end(trial.config["run"], f"{METRICS[name]} {value:.1%}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A run failed; the others go on."""
        self.failures[trial.config["run"]] = why = reason(error_of(trial))
        self._tally.end(trial.config["run"], f"failed: {why}")


class Tally:
    """Says which of so many runs has ended, how, and when all will have.

    Args:
        runs: how many there will be.
    """

    def __init__(self, runs: int) -> None:
        self._runs, self._ended, self._begun = runs, 0, time.monotonic()

    def end(self, name: str, how: str) -> None:
        """One has ended."""
        self._ended += 1
        pace = (time.monotonic() - self._begun) / self._ended
        left = f"{clock(pace * (self._runs - self._ended))} left" if self._ended < self._runs else "all ended"
        say(f"{name}: {how} ({self._ended}/{self._runs}, {left})")


def error_of(trial: Any) -> BaseException | None:
    """What a trial failed of, from where Tune has just put it; on the storage it appears later, too late for us."""
    place = trial.pickled_error_file
    return cloudpickle.loads(Path(place).read_bytes()) if place and Path(place).exists() else None


def reason(error: BaseException | None) -> str:
    """Why a run failed, in a line or two."""
    error = getattr(error, "cause", None) or error
    return f"{type(error).__name__}: {error}" if error else "its process ended without a word"


def learn(trials: Sequence[Trial], *, metric: str, concurrent: int, out: str) -> dict[str, str]:
    """Runs the trials through Tune, `concurrent` at a time; why some of them failed, by name."""
    quieten_tune()
    listener, scratch = Told(len(trials)), storage.join(out, "tune")
    trainable = tune.with_parameters(learn_trial, trials={trial.name: trial for trial in trials}, metric=metric)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": TRIAL_CPUS}),
        param_space={"run": tune.grid_search([trial.name for trial in trials])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent,
            trial_name_creator=lambda trial: trial.config["run"],
            trial_dirname_creator=lambda trial: trial.config["run"],
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"), storage_path=scratch, callbacks=[listener], verbose=0
        ),
    )
    try:
        with interruptible():
            tuner.fit()
    finally:
        storage.remove(scratch)  # Tune's own state, which nobody reads: a record beside each run says that it is done
    return listener.failures


def quieten_tune() -> None:
    """No banner on stdout, no files of figures (MLflow and the runs have them), and Ctrl-C is ours to answer."""
    os.environ.update(RAY_AIR_NEW_OUTPUT="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)

"""compare(config): arms x data x seeds, each trained as at the training door, side by side in one table.

A record beside each run says that it is done, so the same command goes on where it was stopped; Tune's own state is
of no use to us and is not read.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from gracl.errors import ConfigError, TrainingFailed, expected
from gracl.experiments import CompareConfig
from gracl.idle import idle
from gracl.images import storage
from gracl.locks import holding
from gracl.runtime.findings import report
from gracl.runtime.grid import Trial, grid, runs_of
from gracl.runtime.many import begin_parent, demand_of, leave, prepared, tell_rest_of
from gracl.runtime.progress import say
from gracl.runtime.runs import latest_epoch
from gracl.runtime.session import session
from gracl.runtime.tracking import closing, tracking_uri
from gracl.runtime.trial import recorded
from gracl.runtime.tuning import learn

COMPARISON = "comparison.json"


def compare(config: CompareConfig) -> dict[str, Any]:
    """Runs what is not done yet and writes the table of all.

    Returns:
        Folder, paths of what was written, MLflow run, and a line for each arm on each data set.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts, naming the run that cannot be what was asked for;
            from a cluster that can never hold `concurrent` runs, before anything is written; and where the same
            comparison is under way.
        TrainingFailed: some runs failed; the table holds the others, and the reasons.
    """
    out = storage.absolute(config.out)
    with holding(out, f"the comparison in {out}"):
        return _compared(config)


def _compared(config: CompareConfig) -> dict[str, Any]:
    uri, out = tracking_uri(config.tracking.uri, runs_of(config)), storage.absolute(config.out)
    trials = [checked(trial) for trial in grid(config)]
    pending = [trial for trial in trials if recorded(trial, config.metric) is None]
    for words in dict.fromkeys(f"{trial.arm}: {words}" for trial in trials for words in idle(trial.config)):
        say(f"note: {words}")
    say(f"{len(trials)} runs in {runs_of(config)}, {len(trials) - len(pending)} of them done")
    try:
        with session(demand_of([one.config for one in pending], config.concurrent)) if pending else nullcontext():
            parent = begin(config, uri)
            with closing(uri, parent):
                tell_rest_of([trial.config for trial in trials if trial not in pending], uri)
                how: dict[str, Any] = {"metric": config.metric, "concurrent": config.concurrent, "out": out}
                failures = learn(under(pending, parent), **how) if pending else {}
                failures |= {name: "it ended without a record" for name in unrecorded(pending, config.metric, failures)}
                result = report(config, trials, failures, uri, parent)
                if failures:
                    raise TrainingFailed(told(failures, len(trials), result["table"]))
    except KeyboardInterrupt:
        leave([one.config for one in pending], uri)
        say("stopped; what is done is kept. To go on, run the same command")
        raise
    return result


def unrecorded(trials: Sequence[Trial], metric: str, failures: Mapping[str, str]) -> list[str]:
    """The runs of which nothing is known."""
    return [one.name for one in trials if one.name not in failures and recorded(one, metric) is None]


def checked(trial: Trial) -> Trial:
    """The trial with paths that hold everywhere; refuses what its training would refuse."""
    run = prepared(trial.config, f"run {trial.name}", "name the arm anew")
    done = max(latest_epoch(run.folder), run.record.get("finished", 0))
    if done > trial.config.epochs:
        raise ConfigError(
            expected(
                f"a run {trial.name} of at most {trial.config.epochs} epochs in {run.runs}",
                f"one of {done}",
                "raise epochs, or choose another runs=",
            )
        )
    return replace(trial, config=run.config)


def under(trials: Sequence[Trial], parent: str) -> list[Trial]:
    """The trials as children of an MLflow run."""

    def child(trial: Trial) -> Trial:
        tracking = trial.config.tracking.model_copy(update={"parent": parent})
        return replace(trial, config=trial.config.model_copy(update={"tracking": tracking}))

    return [child(trial) for trial in trials]


def begin(config: CompareConfig, uri: str) -> str:
    """The id of the comparison's MLflow run: made, or taken up where `out` has one on this server."""
    lists = {
        f"{what}.{name}": arguments for what in ("presets", "data") for name, arguments in getattr(config, what).items()
    }
    plain = {name: getattr(config, name) for name in ("common", "seeds", "baseline", "metric", "concurrent")}
    out = storage.absolute(config.out)
    return begin_parent(
        storage.join(out, COMPARISON),
        uri,
        name=f"compare-{Path(out).name}",
        kind="comparison",
        artifacts=storage.join(runs_of(config), "artifacts"),
        parameters={**lists, **plain},
        tracking=config.tracking,
    )


def told(failures: Mapping[str, str], runs: int, table: str) -> str:
    """The one string of a comparison of which some runs failed."""
    return expected(
        f"{runs} runs that end well",
        f"{len(failures)} that failed ({', '.join(failures)})",
        f"their reasons are in {table}; the same command tries them again and repeats nothing else",
    )

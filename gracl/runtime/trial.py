"""One run of a comparison: trained as at the training door, then described in a record beside its `run.json`.

The record says that a run is done: whoever finds it need not run it again.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_type_hints

import ray
from ray import tune

from gracl.config import TrainConfig
from gracl.errors import ClusteringCollapsed, ConfigError, expected
from gracl.images import storage
from gracl.retrieval.comparison import RunRecord
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.grid import Trial
from gracl.runtime.many import beside
from gracl.runtime.records import read_entry
from gracl.runtime.runs import prepare
from gracl.runtime.session import quieten, refusals
from gracl.runtime.train import train
from gracl.runtime.truth import final_labels, label_figures

RECORD = "compared.json"


def learn_trial(chosen: Mapping[str, str], trials: Mapping[str, Trial], metric: str) -> None:
    """What Ray Tune runs for each trial: `chosen["run"]` names one of `trials`.

    The training happens in a Ray task of its own, see `many.beside`.
    """
    with refusals():
        record = ray.get(beside(finish, trials[chosen["run"]], metric))
    tune.report({metric: record.reached(metric)})


def finish(trial: Trial, metric: str) -> RunRecord:
    """Trains, or resumes, or finds it done; then looks at the labels and writes the record."""
    quieten(elastic=bool(trial.config.scale.min_workers))
    result = train(trial.config)
    run = prepare(trial.config)
    record = describe_run(trial, load_run_state(result["checkpoint"]).history, metric, run.record.get("begins", 0))
    try:
        seen: dict[str, Any] = dict(label_figures(run, final_labels(run, result["checkpoint"])))
        record = replace(record, **seen)
    except ClusteringCollapsed as error:
        record = replace(record, note=str(error))
    storage.write_bytes(_place(trial), json.dumps(asdict(record), indent=1).encode())
    return record


def describe_run(trial: Trial, history: Sequence[Mapping[str, float]], metric: str, begins: int = 0) -> RunRecord:
    """The record of a run from the figures of its epochs, without what must be looked at anew.

    Args:
        history: the figures of every epoch, in order; the last one was judged.
        metric: by which the best epoch is chosen; of equal ones the later.
        begins: epochs that were done by a run that this one started from; not counted for the best and the seconds.

    Raises:
        ConfigError: the last epoch was not judged.
    """
    if metric not in history[-1]:
        raise ConfigError(
            expected(
                f"a run {trial.name} that was judged at its last epoch, {len(history)}",
                "one that was stopped there and was to be longer",
                "raise epochs, or delete the run's folder",
            )
        )
    own = history[begins:]
    judged = [row for row in own if metric in row]
    best = max(judged, key=lambda row: (row[metric], row["epoch"]))
    return RunRecord(
        arm=trial.arm,
        data=trial.data,
        seed=trial.seed,
        run=trial.name,
        epochs=len(history),
        fingerprint=trial.config.fingerprint(),
        cameras=cameras_used(trial.config),
        mean_ap=history[-1]["val/mAP"],
        rank1=history[-1]["val/rank1"],
        best_by=metric,
        best=best[metric],
        best_epoch=int(best["epoch"]),
        untrained=history[0].get(metric.replace("val/", "untrained/")),
        epoch_seconds=statistics.median(row["time/epoch_s"] - row["time/judge_s"] for row in own),
    )


def cameras_used(config: TrainConfig) -> str:
    """What of a training takes cameras, in words, and whether surroundings stood for them."""
    relations = config.relations
    parts = {
        "sampler": config.camera_balanced,
        "features": relations.centre == "camera",
        "distances": relations.camera_aware,
        "loss": relations.camera_proxies,
    }
    used = ", ".join(name for name, used in parts.items() if used)
    return f"nobody; surroundings: {used}" if config.cameras_from == "surroundings" else used


def recorded(trial: Trial, metric: str) -> RunRecord | None:
    """The record of a run that is done; None where there is none, or one of another recipe, length or metric.

    Raises:
        CheckpointError: it is torn, with its name.
    """
    if not storage.exists(_place(trial)):
        return None
    saved = read_entry(_place(trial), "the record of a run that was compared", get_type_hints(RunRecord))
    wanted = {"fingerprint": trial.config.fingerprint(), "epochs": trial.config.epochs, "best_by": metric}
    if not saved or any(saved[name] != wanted[name] for name in wanted):
        return None
    return replace(RunRecord(**saved), arm=trial.arm, data=trial.data, seed=trial.seed)


def _place(trial: Trial) -> str:
    return storage.join(trial.config.runs, trial.name, RECORD)

"""The last epoch that is whole: what is torn above it is set aside, and Ray Train is told where to go on.

A checkpoint may be torn by whoever was killed while it was put into the run's folder, by a disk, or by hands. Its own
checksums say so. Nothing is deleted: a torn one gets another name.
"""

import json
from collections.abc import Mapping
from typing import Any

from gracl.errors import CheckpointError, expected
from gracl.images import storage
from gracl.images.plain_json import check_values, fits, read_values
from gracl.learning.checkpoint import STATE_FILE, TrainState
from gracl.runtime.checkpoints import EPOCH, epoch_folder, load_any_state, load_run_state
from gracl.runtime.midway import clear_midways, find_midway
from gracl.runtime.progress import say
from gracl.runtime.records import RECORD, read_run
from gracl.runtime.runs import epochs_in

SNAPSHOT = "checkpoint_manager_snapshot.json"
SCORE = "val/mAP"
# As Ray Train reads it; what is not so ends its controller.
_LIST: dict[str, Any] = {
    "checkpoint_results": list[dict[str, Any]],
    "checkpoint_report_indices": list[int],
    "current_report_index": int,
    "latest_checkpoint_result": dict[str, Any] | None,
    "pending_training_results": list[dict[str, Any]],
    "pending_validation_specs": list[bool | dict[str, Any]],
    "validated_checkpoint_dir_names": list[str],
    "timed_out_validation_checkpoint_dir_names": list[str],
    "failed_validation_checkpoint_dir_names": list[str],
}
_EMPTY = (
    "pending_training_results",
    "pending_validation_specs",
    "validated_checkpoint_dir_names",
    "timed_out_validation_checkpoint_dir_names",
    "failed_validation_checkpoint_dir_names",
)


def set_torn_aside(folder: str) -> list[int]:
    """Makes a run's folder one that can be gone on with: its last checkpoint whole, Ray Train's list in accord.

    Returns:
        The epochs whose checkpoints were torn and have another name now.

    Raises:
        CheckpointError: checkpoints are there and all are torn. A run that was killed at its very first, before Ray
            Train knew of it, begins anew.
    """
    there, torn, last = epochs_in(folder), dict[int, str](), None
    for epoch in reversed(there):
        try:
            last = _whole(folder, epoch)
            break
        except CheckpointError as error:
            torn[epoch] = str(error)
    known = _snapshot(folder)
    if torn and last is None and known is not None:
        what = f"a whole checkpoint among those in {folder}"
        advice = f"restore one of them, or delete {folder} to begin anew"
        raise CheckpointError(expected(what, "; ".join(torn.values()), advice))
    for epoch, why in torn.items():
        aside = _set_aside(folder, epoch_folder(epoch))
        say(f"note: {why}\n      it is {aside} now; going on after epoch {last.epoch if last else 0}")
    if known is not None:
        _mend_snapshot(folder, known, torn, last)
    if torn:
        _lower_record(folder, last.epoch if last else 0)
        clear_midways(folder, after=last.epoch if last else 0)  # they go on from what is set aside
    _set_torn_midways_aside(folder, last.epoch if last else 0)
    return sorted(torn)


def is_whole(folder: str) -> bool:
    """Whether the last checkpoint of a run can be read."""
    try:
        return bool(there := epochs_in(folder)) and bool(_whole(folder, there[-1]))
    except CheckpointError:
        return False


def _whole(folder: str, epoch: int) -> TrainState:
    place = storage.join(folder, epoch_folder(epoch))
    state = load_run_state(place)
    if state.epoch != epoch:
        came = f"one of epoch {state.epoch}"
        raise CheckpointError(expected(f"the checkpoint of epoch {epoch} at {place}", came, "do not move files about"))
    return state


def _set_torn_midways_aside(folder: str, epochs: int) -> None:
    """One within the epoch that follows which is torn; what is then gone on from is the one before, or the epoch."""
    while place := find_midway(folder, epochs):
        try:
            load_any_state(place)
            return
        except CheckpointError as error:
            say(f"note: {error}\n      it is {_set_aside(folder, place.rpartition('/')[2])} now")


def _set_aside(folder: str, name: str) -> str:
    old, new = storage.join(folder, name), storage.join(folder, f"torn-{name}")
    storage.remove(new)
    for name in storage.names_in(old):
        storage.move(storage.join(old, name), storage.join(new, name))
    storage.remove(old)
    return storage.join(new, STATE_FILE)


def _snapshot(folder: str) -> Mapping[str, Any] | None:
    """Ray Train's list of checkpoints; empty where it is torn, None where there is none."""
    place = storage.join(folder, SNAPSHOT)
    if not storage.exists(place):
        return None
    try:
        found = read_values(place)
        check_values(found, _LIST, optional=("latest_checkpoint_result",))
    except (OSError, ValueError):
        return {}
    results, last = found["checkpoint_results"], found.get("latest_checkpoint_result")
    others = [*found["pending_training_results"], *([] if last is None else [last])]
    if not all(_is_entry(one) for one in (*results, *others)):
        return {}
    listed = [one["checkpoint_dir_name"] for one in results]
    fits_together = len({*listed}) == len(listed) == len(found["checkpoint_report_indices"])
    return found if fits_together and all(one["checkpoint_dir_name"] in listed for one in others) else {}


def _is_entry(one: Mapping[str, Any]) -> bool:
    name, metrics = one.get("checkpoint_dir_name"), one.get("metrics")
    known = isinstance(name, str) and EPOCH.fullmatch(name) and type(one.get("version", 0)) is int
    # One that was not judged has no score.
    return bool(known) and isinstance(metrics, dict) and fits(metrics.get(SCORE, 0.0), float)


def _mend_snapshot(folder: str, known: Mapping[str, Any], torn: Mapping[int, str], last: TrainState | None) -> None:
    """Takes out of Ray Train's list what is torn or gone, and makes it anew where the list itself is torn."""
    place, there = storage.join(folder, SNAPSHOT), {epoch_folder(epoch): epoch for epoch in epochs_in(folder)}
    listed = {one["checkpoint_dir_name"]: one for one in known.get("checkpoint_results", ())}
    if known and listed.keys() <= there.keys():
        return
    if last is None:
        storage.remove(place)
        return
    if not known:
        say(f"note: {place} is torn; it is made anew of the last checkpoint")
    # An older one, which may be the best, is listed with what Ray Train knew of it; anew only the last is certain.
    entry = {"version": 0, "checkpoint_dir_name": epoch_folder(last.epoch), "metrics": last.history[-1]}
    listed.setdefault(epoch_folder(last.epoch), entry)
    for name in listed.keys() - there.keys():
        if int(name.removeprefix("epoch-")) not in torn:
            say(f"note: {storage.join(folder, name)}, which was kept, is gone; going on after epoch {last.epoch}")
    kept = [one for name, one in listed.items() if name in there]
    # As Ray Train has them: the best last, those that were not judged first, of equal ones the later.
    kept.sort(key=lambda one: (one["metrics"].get(SCORE, float("-inf")), there[one["checkpoint_dir_name"]]))
    latest = max(kept, key=lambda one: there[one["checkpoint_dir_name"]], default=None)
    news = {
        "checkpoint_results": kept,
        "checkpoint_report_indices": [there[one["checkpoint_dir_name"]] - 1 for one in kept],
        "latest_checkpoint_result": latest,
        "current_report_index": there[latest["checkpoint_dir_name"]] if latest else 0,
    }
    storage.write_bytes(place, json.dumps({**dict.fromkeys(_EMPTY, []), **known, **news}).encode())


def _lower_record(folder: str, epochs: int) -> None:
    """A run that had ended is not done any more."""
    if saved := read_run(folder):
        saved["finished"] = min(saved["finished"], epochs)
        storage.write_bytes(storage.join(folder, RECORD), json.dumps(saved, indent=1).encode())

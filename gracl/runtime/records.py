"""The records that runs, comparisons and sweeps leave of themselves, as they are read again: none is believed unseen.

They lie in folders that people copy, edit and hand on. What is not as we write it is refused with the file's name.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from gracl.errors import CheckpointError, ConfigError
from gracl.images import storage
from gracl.images.plain_json import check_values, read_values, told

RECORD = "run.json"
_RUN = {
    "recipe": dict[str, Any],
    "mlflow_run_id": str,
    "tracking_uri": str | None,
    "finished": int,
    "begins": int,
    "told": bool,
}
# Records of before there were these have none of them.
_LATER = ("tracking_uri", "begins", "told")
_PARENT = {"mlflow_run_id": str, "tracking_uri": str | None, "sweep": dict[str, Any]}


def read_run(folder: str) -> dict[str, Any]:
    """The record of a training run; empty where its folder has none.

    Raises:
        CheckpointError: it is none, with its name.
    """
    place = storage.join(folder, RECORD)
    do = f"restore the file, or delete {folder} to begin anew"
    if not storage.exists(place):
        return {}
    saved: dict[str, Any] = told(place, f"the record of a run at {place}", _run, CheckpointError, do)
    return saved


def _run(place: str) -> dict[str, Any]:
    saved = read_values(place)
    check_values(saved, _RUN, optional=_LATER)
    for name in ("finished", "begins"):
        if saved.get(name, 0) < 0:
            raise ValueError(f"{name}: {saved[name]}")
    return saved


def read_parent(place: str) -> dict[str, Any]:
    """What a comparison or a sweep says of itself: its MLflow run, of a sweep also what it is; empty where none is.

    Raises:
        ConfigError: it is none, with its name.
    """
    if not storage.exists(place):
        return {}
    saved: dict[str, Any] = told(
        place, f"a record at {place}", _parent, ConfigError, "restore the file, or choose another out="
    )
    return saved


def _parent(place: str) -> dict[str, Any]:
    saved = read_values(place)
    check_values(saved, _PARENT, optional=tuple(_PARENT))
    if ("mlflow_run_id" in saved) != ("tracking_uri" in saved):
        raise ValueError("one of mlflow_run_id and tracking_uri without the other")
    return saved


def read_entry(
    place: str, what: str, kinds: dict[str, Any], judge: Callable[[dict[str, Any]], str] = lambda saved: ""
) -> dict[str, Any]:
    """What is known of one run of a comparison or sweep; empty where it is of another make, which is no fault.

    Args:
        place: of the file, which is there.
        what: it is, in words.
        kinds: of its values; with other names in it, it is of another make.
        judge: says what is wrong with values of these kinds; "" for nothing.

    Raises:
        CheckpointError: it is torn, or has other values, with its name.
    """
    read, do = partial(_entry, kinds=kinds, judge=judge), "restore the file, or delete it"
    saved: dict[str, Any] = told(place, f"{what} at {place}", read, CheckpointError, do)
    return saved


def _entry(place: str, kinds: dict[str, Any], judge: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    saved = read_values(place)
    if saved.keys() != kinds.keys():
        return {}
    check_values(saved, kinds)
    if wrong := judge(saved):
        raise ValueError(wrong)
    return saved

"""Checkpoints within an epoch, in the run's folder beside those of Ray Train (docs/decisions/0023).

`epoch-XXXX-step-YYYYYY/state.pt` is the state after XXXX epochs and YYYYYY steps of the next. It counts as soon as it
is there, and only beside the checkpoint of the epoch that it goes on from.
"""

import logging
import re
from typing import Any

from ray.train import UserCallback
from ray.train.collective import broadcast_from_rank_zero

from gracl.images import storage
from gracl.learning.checkpoint import STATE_FILE, TrainState, check_recipe, save_state
from gracl.runtime.checkpoints import load_any_state
from gracl.runtime.scratch import scratch

NAME = re.compile(r"epoch-(\d{4,})-step-(\d{6,})")
LOG = logging.getLogger("gracl.midway")


def keep_midway(folder: str, rank: int, state: TrainState) -> None:
    """Rank 0 writes the state whole or not at all, and then removes those before it."""
    if rank or state.midway is None:
        return
    name = f"epoch-{state.epoch:04d}-step-{state.midway.step:06d}"
    place = storage.join(folder, name)
    if storage.is_local(folder):
        save_state(state, storage.local_path(place))
    else:
        with scratch() as near:
            storage.write_bytes(storage.join(place, STATE_FILE), save_state(state, near).read_bytes())
    clear_midways(folder, keep=name)


def find_midway(folder: str, epochs: int) -> str | None:
    """The newest checkpoint within the epoch that follows on so many; None where there is none."""
    found = [
        (int(match[2]), name)
        for name in storage.names_in(folder)
        if (match := NAME.fullmatch(name)) and int(match[1]) == epochs
    ]
    whole = [one for one in found if storage.exists(storage.join(folder, one[1], STATE_FILE))]
    return storage.join(folder, max(whole)[1]) if whole else None


def clear_midways(folder: str, *, keep: str = "", before: int | None = None, after: int | None = None) -> None:
    """Removes checkpoints within epochs, but for the one of a name; with `before` or `after` those of earlier or later
    epochs alone."""
    for name in storage.names_in(folder):
        match = NAME.fullmatch(name)
        epoch = int(match[1]) if match else 0
        if match and name != keep and (before is None or epoch < before) and (after is None or epoch > after):
            storage.remove(storage.join(folder, name))


def going_on(board: Any, folder: str, state: TrainState, rank: int) -> TrainState:
    """The state within the epoch after `state`, where this run has left one; rank 0 looks for all, and says so.

    Raises:
        CheckpointError: it is torn, or of other settings.
    """
    place: str | None = broadcast_from_rank_zero(find_midway(folder, state.epoch) if rank == 0 else None)
    if place is None:
        return state
    found = load_any_state(place)
    check_recipe(found.recipe, state.recipe)
    if rank == 0 and found.midway:
        board.note.remote(f"goes on within epoch {found.epoch + 1}, after step {found.midway.step}")
    return found


class MidwayCallback(UserCallback):
    """Removes what an epoch has left on the way, once Ray Train's controller has the epoch's own checkpoint."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called after the checkpoint was registered. What cannot be removed is logged, and does no harm."""
        try:
            clear_midways(self._folder, before=int(metrics[0]["epoch"]))
        except Exception:
            LOG.exception("a checkpoint within an epoch was left in %s", self._folder)

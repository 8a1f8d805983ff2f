"""The board of a run: the plan that is being read, and how far the work is.

One small actor without resources. Rank 0 posts the reading that all ranks are about to begin; the stream asks for it
when an execution starts. Ranks and the relation actor post their progress; the driver shows it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gracl.errors import GraclError, WaitedTooLong
from gracl.runtime.waiting import BOARD_S, answer_of
from gracl.types import Plan


@dataclass(frozen=True)
class Reading:
    """One pass of all `ranks` over a plan, from its ticket `first` on.

    `number` counts the readings, so that no two can be mixed.
    """

    number: int
    split: str
    plan: Plan
    ranks: int
    first: int = 0


class Board:
    """Holds the latest reading, the latest progress and the figures of the epochs done since the run began."""

    def __init__(self) -> None:
        self._reading: Reading | None = None
        self._progress: tuple[str, int, int] = ("start", 0, 0)
        self._epochs: list[dict[str, float]] = []
        self._notes: list[str] = []
        self._refusal: GraclError | None = None

    def post(self, reading: Reading) -> None:
        """Rank 0 says what is read next."""
        self._reading = reading

    def reading(self) -> Reading | None:
        """What is being read; None before the first reading."""
        return self._reading

    def advance(self, phase: str, done: int, total: int) -> None:
        """Somebody says how far the present phase is."""
        self._progress = (phase, done, total)

    def close_epoch(self, metrics: dict[str, float]) -> None:
        """Ray Train's controller says what an epoch has done that is kept now."""
        self._epochs.append(metrics)

    def note(self, words: str) -> None:
        """Rank 0 says something that the user is to hear of."""
        self._notes.append(words)

    def refuse(self, error: GraclError) -> None:
        """A rank says why the run cannot go on, however often it were restarted. The first reason stays."""
        self._refusal = self._refusal or error

    def refusal(self) -> GraclError | None:
        """Why the run cannot go on; None while it can."""
        return self._refusal

    def look(self, seen: int) -> tuple[tuple[str, int, int], list[dict[str, float]]]:
        """The present progress, and the epochs after the first `seen`."""
        return self._progress, self._epochs[seen:]

    def notes(self, heard: int) -> list[str]:
        """What was said, after the first `heard`."""
        return self._notes[heard:]


def open_board() -> Any:
    """A board on this node, that lives as long as its handle: with the driver gone, the run is over anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()


def refusal_on(board: Any) -> GraclError | None:
    """Why the run cannot go on, as far as the board still knows."""
    try:
        refusal: GraclError | None = answer_of(board.refusal.remote(), "the board's answer", BOARD_S)
    except (ray.exceptions.RayActorError, WaitedTooLong):
        return None  # a lost board is a failure, but no refusal
    return refusal


def throttled(board: Any, every: float = 0.5) -> Callable[[str, int, int], None]:
    """A progress function that posts to the board at most every half second, and always at a phase's end."""
    last = 0.0

    def advance(phase: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every or done >= total:
            last = now
            board.advance.remote(phase, done, total)

    return advance


def silent(phase: str, done: int, total: int) -> None:
    """The progress function of ranks that need not speak, since all go in step."""

"""Pages beside the work of the relation actor: one at a time, in a thread, and never at the cost of an answer.

Apart from `onlooker.py`, which draws, so that a relation actor without pages loads nothing of pictures or MLflow.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from numpy import ndarray

from gracl.types import Assignment, Feature, Ranking, RetrievalReport

LOG = logging.getLogger(__name__)
# How long the end of a run waits for a page on the way.
PAGE_S = 1800.0
# Epochs done, report and ranking of the last evaluation; None where there was none.
Latest = tuple[int, RetrievalReport, Ranking] | None


@runtime_checkable
class Onlooker(Protocol):
    """Who draws: `onlooker.Onlooker`."""

    every: int

    def has(self, epoch: int) -> bool:
        """Whether the page on the weights after so many epochs is there."""
        ...

    def draw(
        self,
        epoch: int,
        features: Feature[ndarray, "images dim"],
        assignment: Assignment,
        judged: Latest,
        history: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Writes the page."""
        ...


@dataclass(frozen=True)
class Found:
    """What a page is about.

    Attributes:
        epoch: epochs that the weights have learnt.
        features: of the train split, by these weights.
        assignment: labels and proxies of these features.
        latest: makes the last evaluation's ranking; called where the page is drawn.
    """

    epoch: int
    features: Feature[ndarray, "images dim"]
    assignment: Assignment
    latest: Callable[[], Latest]


class Drawing:
    """The pages of a run, begun and waited for.

    Attributes:
        missed: which pages are not there, and why, for the user to hear of at the end.
    """

    def __init__(self, onlooker: Onlooker) -> None:
        self._onlooker, self.missed = onlooker, list[str]()
        self._thread: threading.Thread | None = None

    def begin(self, found: Found) -> None:
        """Draws in a thread, where a page is due.

        A page holds the features of its epoch, so one that is due while another is drawn is missed.
        """
        if not found.epoch or found.epoch % self._onlooker.every:
            return
        if self._thread and self._thread.is_alive():
            self.missed.append(f"epoch {found.epoch}: the page before it was still being drawn")
            return
        self._thread = threading.Thread(target=self._due, args=(found,), name=f"page-{found.epoch}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns once no page is being drawn; one that takes longer than `PAGE_S` is missed."""
        if self._thread:
            self._thread.join(PAGE_S)
            if self._thread.is_alive():
                self.missed.append(f"{self._thread.name}: it was not drawn within {PAGE_S:g} s")

    def last(self, found: Found, history: Sequence[Mapping[str, float]]) -> None:
        """Draws here and now, whatever is there already; `history` holds the figures of all epochs."""
        self._try(found, lambda: self._draw(found, history))

    def _due(self, found: Found) -> None:
        self._try(found, lambda: None if self._onlooker.has(found.epoch) else self._draw(found))

    def _draw(self, found: Found, *history: Sequence[Mapping[str, float]]) -> None:
        self._onlooker.draw(found.epoch, found.features, found.assignment, found.latest(), *history)

    def _try(self, found: Found, draw: Callable[[], None]) -> None:
        try:
            draw()
        except Exception as error:  # told of at the end; a training does not fail for a picture
            LOG.exception("no page on epoch %s", found.epoch)
            self.missed.append(f"epoch {found.epoch}: {type(error).__name__}: {error}")

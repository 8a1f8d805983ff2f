"""Pages beside the work of the relation actor: one at a time, in a thread, and never at the cost of an answer.

Apart from `onlooker.py`, which draws, so that a relation actor without pages loads nothing of pictures or MLflow.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from numpy import ndarray

from gracl.types import Assignment, Feature, Ranking, RetrievalReport

LOG = logging.getLogger(__name__)
# Epochs done, report and ranking of the last evaluation; None where there was none.
Latest = tuple[int, RetrievalReport, Ranking] | None


@runtime_checkable
class Onlooker(Protocol):
    """Who draws: `onlooker.Onlooker`."""

    every: int

    def wants(self, epoch: int) -> bool:
        """Whether a page is due on the weights after so many epochs, and not there yet."""
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


class Drawing:
    """The pages of a run, begun and waited for.

    Attributes:
        missed: which pages are not there, and why, for the user to hear of at the end.
    """

    def __init__(self, onlooker: Onlooker) -> None:
        self._onlooker, self.missed = onlooker, list[str]()
        self._thread: threading.Thread | None = None

    def begin(
        self,
        epoch: int,
        features: Feature[ndarray, "images dim"],
        assignment: Assignment,
        latest: Callable[[], Latest],
    ) -> None:
        """Draws in a thread, where a page is due.

        A page holds the features of its epoch, so one that is due while another is drawn is missed.

        Args:
            epoch: epochs that the weights have learnt.
            features: of the train split, by these weights.
            assignment: labels and proxies of these features.
            latest: makes the last evaluation's ranking; called in the thread.
        """
        if not epoch or epoch % self._onlooker.every:
            return
        if self._thread and self._thread.is_alive():
            self.missed.append(f"epoch {epoch}: the page before it was still being drawn")
            return
        self._thread = threading.Thread(
            target=self._due, args=(epoch, features, assignment, latest), name=f"page-{epoch}", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Returns once no page is being drawn."""
        if self._thread:
            self._thread.join()

    def last(
        self,
        epoch: int,
        features: Feature[ndarray, "images dim"],
        assignment: Assignment,
        latest: Callable[[], Latest],
        history: Sequence[Mapping[str, float]],
    ) -> None:
        """Draws here and now, whatever is there already. Arguments: as `begin` and `Onlooker.draw`."""
        self._try(epoch, lambda: self._onlooker.draw(epoch, features, assignment, latest(), history))

    def _due(
        self,
        epoch: int,
        features: Feature[ndarray, "images dim"],
        assignment: Assignment,
        latest: Callable[[], Latest],
    ) -> None:
        def draw() -> None:
            if self._onlooker.wants(epoch):
                self._onlooker.draw(epoch, features, assignment, latest())

        self._try(epoch, draw)

    def _try(self, epoch: int, draw: Callable[[], None]) -> None:
        try:
            draw()
        except Exception as error:  # told of at the end; a training does not fail for a picture
            LOG.exception("no page on epoch %s", epoch)
            self.missed.append(f"epoch {epoch}: {type(error).__name__}: {error}")

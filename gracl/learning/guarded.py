"""A relator that leaves features which are none for study before it asks, and takes no proxies which are none.

One rank alone may have them. It does not end by itself, for the others would wait for its part: the relator that has
all parts refuses them, and so every rank hears of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import NonFiniteValue
from gracl.learning.fit import Relator
from gracl.learning.guards import Study, bad_features, check_assignment
from gracl.types import Assignment, FeatureTable, RetrievalReport


class GuardedRelator:
    """The `Relator` port around another one.

    Args:
        relator: who answers.
        study: where bad features are left, `non_finite-epoch-XXXX-PHASE-rank-R.json`.
        rank: whose parts these are.
    """

    def __init__(self, relator: Relator, study: Study, rank: int = 0) -> None:
        self._relator, self._study, self._rank = relator, study, rank

    def relate(self, epoch: int, part: FeatureTable, previous: Int64[ndarray, "images"] | None = None) -> Assignment:
        """Labels and proxies, all of them finite."""
        with self._watched(epoch, scan=part):
            answer = self._relator.relate(epoch, part, previous)
        check_assignment(answer)
        return answer

    def judge(self, epoch: int, query: FeatureTable, gallery: FeatureTable) -> RetrievalReport:
        """The report."""
        with self._watched(epoch, query=query, gallery=gallery):
            return self._relator.judge(epoch, query, gallery)

    def stability(self, epoch: int, part: FeatureTable, labels: Int64[ndarray, "images"]) -> float:
        """The figure."""
        with self._watched(epoch, again=part):
            return self._relator.stability(epoch, part, labels)

    @contextmanager
    def _watched(self, epoch: int, **parts: FeatureTable) -> Iterator[None]:
        """Every rank leaves what it has before anybody can be told, so the files are there when the error is."""
        kept = []
        for phase, part in parts.items():
            bad = bad_features(part)
            if len(bad):
                record = {"epoch": epoch, "phase": phase, "rank": self._rank, "images": bad.tolist()}
                kept.append(self._study.keep(f"{_stem(epoch, phase)}-rank-{self._rank}.json", record))
        try:
            yield
        except NonFiniteValue as error:
            places = ", ".join(self._study.place(f"{_stem(epoch, phase)}-rank-*.json") for phase in parts)
            said = "; ".join(kept) or (f"what the ranks found lies in {places}" if self._study.folder else "")
            raise type(error)(f"{error}; epoch {epoch}" + (f"; {said}" if said else "")) from error


def _stem(epoch: int, phase: str) -> str:
    return f"non_finite-epoch-{epoch:04d}-{phase}"

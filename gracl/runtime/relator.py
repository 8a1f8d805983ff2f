"""A rank's door to the relation actor.

Apart from `relation_actor.py`, so that a rank loads nothing of what only the actor needs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from jaxtyping import Int64
from numpy import ndarray
from ray import ObjectRef

from gracl.runtime.session import refusals
from gracl.runtime.waiting import answer_of
from gracl.types import Assignment, FeatureTable, RetrievalReport


class RayRelator:
    """One rank's door to the relation actor; the `Relator` port of `learning/fit.py`.

    Args:
        judged_by: a reference to the `Identities` of query and gallery as a pair; empty where nothing is judged. The
            driver holds it, so that whoever must ask again finds it.
        precision: in which the train split's features travel; what `relate` would round them to anyway.
        wait_s: seconds that one answer may take.
    """

    def __init__(
        self,
        actor: Any,
        *,
        attempt: str,
        rank: int,
        ranks: int,
        judged_by: Sequence[ObjectRef] = (),
        precision: str = "float32",
        wait_s: float,
    ) -> None:
        self._wait_s = wait_s
        self._actor, self._attempt, self._rank, self._ranks = actor, attempt, rank, ranks
        self._judged_by, self._precision = list(judged_by), np.dtype(precision)

    def relate(self, epoch: int, part: FeatureTable, previous: Int64[ndarray, "images"] | None = None) -> Assignment:
        """Labels and proxies; waits for all ranks. All have the same previous labels, and the first sends them."""
        more = [ray.put(previous)] if previous is not None and not self._rank else []
        answer: Assignment = self._ask(self._actor.relate, epoch, [self._sent(part), *more])
        return answer

    def stability(self, epoch: int, part: FeatureTable, labels: Int64[ndarray, "images"]) -> float:
        """How far other features give the same labels; waits for all ranks."""
        answer: float = self._ask(self._actor.stability, epoch, [self._sent(part), ray.put(labels)])
        return answer

    def judge(self, epoch: int, query: FeatureTable, gallery: FeatureTable) -> RetrievalReport:
        """The report; waits for all ranks."""
        parts = [ray.put(query), ray.put(gallery), *self._judged_by]
        answer: RetrievalReport = self._ask(self._actor.judge, epoch, parts)
        return answer

    def _sent(self, part: FeatureTable) -> ObjectRef:
        return ray.put(FeatureTable(part.indices, part.features.astype(self._precision, copy=False)))

    def _ask(self, method: Any, epoch: int, parts: list[ObjectRef]) -> Any:
        # `parts` are held until the answer is here: a restarted actor asks for them again.
        with refusals():
            asked = method.remote(self._attempt, epoch, self._rank, self._ranks, parts)
            advice = "raise scale.wait_s where it only needs longer, or look at the relation actor's log"
            return answer_of(asked, f"the relation actor's answer in epoch {epoch}", self._wait_s, advice)

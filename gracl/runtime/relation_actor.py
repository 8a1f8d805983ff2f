"""Where the whole set meets: features of all ranks in, labels and proxies out.

One actor with resources of its own, made by the driver before the trainer. It remembers nothing that a lost run would
miss: when it dies Ray restarts it and repeats the calls that were under way, with the parts that the ranks still hold.
Features travel as references to the object store inside a list (so that Ray does not fetch them for us), never through
torch collectives.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray import ObjectRef

from gracl.errors import GraclError
from gracl.relations.relate import relate
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.ranking import rank as rank_gallery
from gracl.runtime.board import throttled
from gracl.types import Assignment, FeatureTable, Identities, Ranking, RetrievalReport

Key = tuple[str, str, int]


@dataclass
class Meeting:
    """The parts that have come for one question, and the answer that all of them wait for."""

    parts: dict[int, Any] = field(default_factory=dict)
    answer: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RelationActor:
    """Answers once all ranks have handed in their part.

    Args:
        images: images of the train split.
        judged_by: one reference to the identities of query and gallery, None where nothing is judged, in a list: the
            driver holds it, so that a restarted actor finds it. The train split's identities never come here.
        options: of `relations.relate.relate`.
        threads: torch, BLAS and numba threads.
        board: where progress is posted; None for nowhere.
    """

    def __init__(
        self,
        images: int,
        *,
        judged_by: list[ObjectRef],
        options: dict[str, Any],
        threads: int = 1,
        board: Any = None,
    ) -> None:
        torch.set_num_threads(threads)
        self._images = images
        who: tuple[Identities | None, Identities | None] = ray.get(judged_by[0])
        self._query, self._gallery = who
        self._options = options | {"threads": threads}
        self._progress: Callable[[str, int, int], None] | None = throttled(board) if board else None
        self._meetings: dict[Key, Meeting] = {}
        self._judged: tuple[Any, Any] | None = None

    def ready(self) -> bool:
        """True once the actor lives."""
        return True

    async def relate(self, attempt: str, epoch: int, rank: int, ranks: int, part: list[ObjectRef]) -> list[ObjectRef]:
        """Labels and proxies of the train split, as a reference in a list.

        Args:
            attempt: names the group of ranks, so that a restarted group never gets the answer of the one before.
            part: one reference to a `FeatureTable`.
        """
        return await self._meet((attempt, "relate", epoch), rank, ranks, part, self._relate)

    async def judge(self, attempt: str, epoch: int, rank: int, ranks: int, part: list[ObjectRef]) -> list[ObjectRef]:
        """The `RetrievalReport` of the query and gallery features, as a reference in a list.

        Args:
            attempt: as in `relate`.
            part: two references: to the query's and the gallery's `FeatureTable`.
        """
        return await self._meet((attempt, "judge", epoch), rank, ranks, part, self._judge)

    def ranking(self, k: int) -> tuple[RetrievalReport, Ranking] | None:
        """The last report and its k best gallery images per query; None when nothing was judged by this process."""
        if self._judged is None or self._query is None or self._gallery is None:
            return None
        query, gallery = self._judged
        who: dict[str, Any] = {"query_identities": self._query, "gallery_identities": self._gallery}
        return evaluate_retrieval(query, gallery, **who), rank_gallery(query, gallery, **who, k=k)

    async def _meet(
        self, key: Key, rank: int, ranks: int, part: list[ObjectRef], work: Callable[[int, list[Any]], Any]
    ) -> list[ObjectRef]:
        for old in [other for other in self._meetings if other[0] != key[0] or other[2] < key[2]]:
            del self._meetings[old]
        meeting = self._meetings.setdefault(key, Meeting())
        meeting.parts[rank] = part
        if len(meeting.parts) == ranks and not meeting.answer.done():
            await self._answer(key, meeting, work)
        return await asyncio.shield(meeting.answer)

    async def _answer(self, key: Key, meeting: Meeting, work: Callable[[int, list[Any]], Any]) -> None:
        parts = [[await reference for reference in meeting.parts[rank]] for rank in sorted(meeting.parts)]
        try:
            answer = await asyncio.to_thread(work, key[2], parts)
            meeting.answer.set_result([ray.put(answer)])
        except Exception as error:  # every rank must hear of it, not only the last to arrive
            meeting.answer.set_exception(error)
        meeting.parts.clear()

    def _relate(self, epoch: int, parts: list[list[FeatureTable]]) -> Assignment:
        features = FeatureTable.gather([part for (part,) in parts], self._images)
        return relate(features, epoch=epoch, progress=self._progress, **self._options)

    def _judge(self, epoch: int, parts: list[list[FeatureTable]]) -> RetrievalReport:
        if self._query is None or self._gallery is None:
            raise RuntimeError("our mistake: nothing to judge by")
        query = FeatureTable.gather([part[0] for part in parts], len(self._query.object_ids))
        gallery = FeatureTable.gather([part[1] for part in parts], len(self._gallery.object_ids))
        self._judged = (query, gallery)
        return evaluate_retrieval(query, gallery, query_identities=self._query, gallery_identities=self._gallery)


def start_relation_actor(*, cpus: float, gpus: float, **options: Any) -> Any:
    """The actor with resources of its own, alive; `options` are those of `RelationActor`."""
    remote = ray.remote(max_restarts=-1, max_task_retries=-1)(RelationActor)
    actor = remote.options(num_cpus=cpus, num_gpus=gpus).remote(**options)
    ray.get(actor.ready.remote())
    return actor


class RayRelator:
    """One rank's door to the relation actor; the `Relator` port of `learning/fit.py`."""

    def __init__(self, actor: Any, *, attempt: str, rank: int, ranks: int) -> None:
        self._actor, self._attempt, self._rank, self._ranks = actor, attempt, rank, ranks

    def relate(self, epoch: int, part: FeatureTable) -> Assignment:
        """Labels and proxies; waits for all ranks."""
        answer: Assignment = self._ask(self._actor.relate, epoch, part)
        return answer

    def judge(self, epoch: int, query: FeatureTable, gallery: FeatureTable) -> RetrievalReport:
        """mAP and CMC; waits for all ranks."""
        answer: RetrievalReport = self._ask(self._actor.judge, epoch, query, gallery)
        return answer

    def _ask(self, method: Any, epoch: int, *tables: FeatureTable) -> Any:
        references = [ray.put(table) for table in tables]  # held until the answer is here: a restarted actor asks again
        try:
            (answer,) = ray.get(method.remote(self._attempt, epoch, self._rank, self._ranks, references))
            return ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, GraclError):
                raise error.cause from None
            raise

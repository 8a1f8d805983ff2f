"""Where the whole set meets: features of all ranks in, labels and proxies out.

One actor with resources of its own, made by the driver before the trainer. It remembers nothing that a lost run would
miss: when it dies Ray restarts it and repeats the calls that were under way, with the parts that the ranks still hold.
Features travel as references to the object store inside a list (so that Ray does not fetch them for us), never through
torch collectives.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import ray
import torch
from jaxtyping import Float32
from numpy import ndarray
from ray import ObjectRef

from gracl.measuring import require_memory
from gracl.relations.relate import relate
from gracl.relations.stability import stability
from gracl.relations.steps import find_here
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.ranking import rank as rank_gallery
from gracl.runtime.board import throttled
from gracl.runtime.drawing import Drawing, Found, Latest, Onlooker
from gracl.runtime.shards import find_on, start_shards
from gracl.runtime.waiting import OBJECT_S, RANKS_S, answer_beside, answer_of, too_long
from gracl.types import Assignment, FeatureTable, Identities, Ranking, RetrievalReport

Key = tuple[str, str, int]
Answer = TypeVar("Answer")


@dataclass
class Meeting:
    """The parts that have come for one question, and the answer that all of them wait for."""

    parts: dict[int, Any] = field(default_factory=dict)
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    answer: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True)
class Judged:
    """The features that were judged last, who is on them, the report, and how many epochs were done."""

    query: Float32[ndarray, "queries dim"]
    gallery: Float32[ndarray, "gallery dim"]
    who: tuple[Identities, Identities]
    report: RetrievalReport
    epoch: int


def latest(one: Judged | None, k: int = 10) -> Latest:
    """Of what was judged last: epochs done, the report, and the k best gallery images of each query."""
    if one is None:
        return None
    who: dict[str, Any] = {"query_identities": one.who[0], "gallery_identities": one.who[1]}
    return one.epoch, one.report, rank_gallery(one.query, one.gallery, **who, k=k)


class RelationActor:
    """Answers once all ranks have handed in their part.

    Args:
        images: images of the train split.
        options: of `relations.relate.relate`.
        cameras: a reference to who took each image of the train split; empty where nobody asks.
        shards: cpus and gpus of each of `options["shards"]` that look for neighbours, where there is more than one.
        threads: torch, BLAS and numba threads.
        board: where progress is posted; None for nowhere.
        onlooker: draws pages on the way; None for none.
        wait_s: seconds that a shard may take to start, or for one run of rows.
    """

    def __init__(
        self,
        images: int,
        *,
        options: dict[str, Any],
        cameras: Sequence[ObjectRef] = (),
        shards: tuple[float, float] = (1.0, 0.0),
        threads: int = 1,
        board: Any = None,
        onlooker: Onlooker | None = None,
        wait_s: float,
    ) -> None:
        self._wait_s = wait_s
        torch.set_num_threads(threads)
        self._images, self._cameras = images, list(cameras)
        self._options = options | {"threads": threads}
        self._shard, self._shards = shards, list[Any]()
        # One relation at a time: that of a lost group ends before the next begins, with its memory and its shards.
        self._one = threading.Lock()
        self._progress: Callable[[str, int, int], None] | None = throttled(board) if board else None
        self._meetings: dict[Key, Meeting] = {}
        self._judged: Judged | None = None
        self._drawing = Drawing(onlooker) if onlooker else None

    async def ready(self) -> bool:
        """True once the actor and its shards live."""
        await asyncio.to_thread(self._prepare)
        return True

    async def relate(self, attempt: str, epoch: int, rank: int, ranks: int, part: list[ObjectRef]) -> Assignment:
        """Labels and proxies of the train split.

        Args:
            attempt: names the group of ranks, so that a restarted group never gets the answer of the one before.
            part: a reference to a `FeatureTable`; from rank 0 perhaps another, to the labels of the epoch before.
        """
        answer: Assignment = await self._meet((attempt, "relate", epoch), rank, ranks, part, self._relate)
        return answer

    async def judge(self, attempt: str, epoch: int, rank: int, ranks: int, part: list[ObjectRef]) -> RetrievalReport:
        """The `RetrievalReport` of the query and gallery features.

        Args:
            attempt: as in `relate`.
            part: three references: to the query's and the gallery's `FeatureTable`, and to their `Identities` as a
                pair. The train split's identities never come here.
        """
        report: RetrievalReport = await self._meet((attempt, "judge", epoch), rank, ranks, part, self._judge)
        return report

    async def stability(self, attempt: str, epoch: int, rank: int, ranks: int, part: list[ObjectRef]) -> float:
        """How far other features of the train split give the same labels.

        Args:
            attempt: as in `relate`.
            part: two references: to a `FeatureTable` and to the labels to be compared with.
        """
        found: float = await self._meet((attempt, "stability", epoch), rank, ranks, part, self._compare)
        return found

    def ranking(self, k: int) -> tuple[RetrievalReport, Ranking] | None:
        """The last report and its k best gallery images per query; None when nothing was judged by this process."""
        found = latest(self._judged, k)
        return found and found[1:]

    async def last_page(self, epoch: int, parts: list[ObjectRef], history: Sequence[Mapping[str, float]]) -> list[str]:
        """Draws the page on the last weights, once those on the way are there; which pages are missing, and why.

        Args:
            epoch: epochs done.
            parts: references to the `FeatureTable`s of the train split by these weights.
            history: figures of all epochs.
        """
        tables = [[table] for table in await _all_of(parts)]
        return await asyncio.to_thread(self._last_page, epoch, tables, history)

    async def _meet(
        self, key: Key, rank: int, ranks: int, part: list[ObjectRef], work: Callable[[int, list[Any]], Any]
    ) -> Any:
        # Only what is answered may go: a late call of a lost group must not break up the meeting that is under way.
        for old in [other for other, meeting in self._meetings.items() if other != key and meeting.answer.done()]:
            if old[0] != key[0] or old[2] < key[2]:
                del self._meetings[old]
        meeting = self._meetings.setdefault(key, Meeting())
        meeting.parts[rank] = part
        if len(meeting.parts) == ranks:
            meeting.whole.set()
        if len(meeting.parts) == ranks and not meeting.answer.done():
            await self._answer(key, meeting, work)
        else:
            await self._all_here(key, meeting, ranks)
        return await asyncio.shield(meeting.answer)

    async def _all_here(self, key: Key, meeting: Meeting, ranks: int) -> None:
        """Until all parts have come; what is made of them takes its own time."""
        try:
            await asyncio.wait_for(meeting.whole.wait(), RANKS_S)
        except TimeoutError:
            missing = sorted(set(range(ranks)) - meeting.parts.keys())
            what = f"the parts of all {ranks} ranks, for {key[1]} of epoch {key[2]}"
            advice = f"look at what rank {', '.join(map(str, missing))} does"
            if not meeting.answer.done():
                meeting.answer.set_exception(too_long(what, RANKS_S, advice))

    async def _answer(self, key: Key, meeting: Meeting, work: Callable[[int, list[Any]], Any]) -> None:
        try:
            parts = [await _all_of(meeting.parts[rank]) for rank in sorted(meeting.parts)]
            answer = await asyncio.to_thread(work, key[2], parts)
            meeting.answer.set_result(answer)  # the caller will own its copy, so it outlives this process
        except Exception as error:  # every rank must hear of it, not only the last to arrive
            meeting.answer.set_exception(error)
        meeting.parts.clear()

    def _relate(self, epoch: int, parts: list[list[Any]]) -> Assignment:
        previous = parts[0][1] if len(parts[0]) > 1 else None
        with self._one:
            self._start_shards()
            return self._work(epoch, [[part[0]] for part in parts], partial(self._relate_seen, previous=previous))

    def _relate_seen(self, features: ndarray, *, epoch: int, **options: Any) -> Assignment:
        found = relate(features, epoch=epoch, **options)
        if self._drawing:
            self._drawing.begin(Found(epoch, features, found, partial(latest, self._judged)))
        return found

    def _last_page(self, epoch: int, tables: list[list[FeatureTable]], history: Sequence[Mapping[str, float]]) -> Any:
        drawing, judged = self._drawing, self._judged
        if drawing is None:
            raise RuntimeError("our mistake: a last page was asked for, and nobody draws")
        drawing.wait()

        def work(features: ndarray, **options: Any) -> None:
            drawing.last(Found(epoch, features, relate(features, **options), partial(latest, judged)), history)

        with self._one:
            self._start_shards()
            self._work(epoch, tables, work)
        return drawing.missed

    def _compare(self, epoch: int, parts: list[list[Any]]) -> float:
        with self._one:
            self._start_shards()
            return self._work(epoch, [[part[0]] for part in parts], partial(stability, labels=parts[0][1]))

    def _work(self, epoch: int, parts: list[list[FeatureTable]], work: Callable[..., Answer]) -> Answer:
        tables: list[FeatureTable] = [part for (part,) in parts]
        size = sum(table.features.nbytes for table in tables)
        require_memory(
            size * (2 if self._shards else 1),
            f"the features of {self._images} images",
            "set relations.precision=float16, or run the relation actor on a larger machine",
        )
        features, find = FeatureTable.gather(tables, self._images), find_here
        features = features.astype(self._options.get("precision", features.dtype), copy=False)
        if self._shards:
            # From here on the one copy is in the object store, where shards on this node read it too.
            reference = ray.put(features)
            features = answer_beside(reference, "the features of all images from the object store", OBJECT_S)
            find = partial(find_on, self._shards, reference, wait_s=self._wait_s)
        seen = self._cameras
        cameras = answer_beside(seen[0], "the cameras of the train split", OBJECT_S) if seen else None
        return work(features, epoch=epoch, cameras=cameras, find=find, progress=self._progress, **self._options)

    def _prepare(self) -> None:
        with self._one:
            self._start_shards()

    def _start_shards(self) -> None:
        """The shards die with this process, so one that was started again starts them anew."""
        if not self._shards:
            cpus, gpus = self._shard
            shards = self._options.get("shards", 1)
            threads = self._options["threads"]
            self._shards = start_shards(shards, cpus=cpus, gpus=gpus, threads=threads, wait_s=self._wait_s)

    def _judge(self, epoch: int, parts: list[list[Any]]) -> RetrievalReport:
        who: tuple[Identities, Identities] = parts[0][2]
        query = FeatureTable.gather([part[0] for part in parts], len(who[0].object_ids))
        gallery = FeatureTable.gather([part[1] for part in parts], len(who[1].object_ids))
        report = evaluate_retrieval(
            query, gallery, query_identities=who[0], gallery_identities=who[1], threads=self._options["threads"]
        )
        self._judged = Judged(query, gallery, who, report, epoch)
        return report


async def _all_of(references: Sequence[ObjectRef]) -> list[Any]:
    """What is in the object store already, brought here.

    Raises:
        WaitedTooLong: it did not come, though it was not lost.
    """
    try:
        return list(await asyncio.wait_for(asyncio.gather(*references), OBJECT_S))
    except TimeoutError:
        raise too_long("the ranks' features from the object store", OBJECT_S, "look at the ranks' nodes") from None


def start_relation_actor(*, cpus: float, gpus: float, wait_s: float, **options: Any) -> Any:
    """The actor with resources of its own, alive, and its shards; `options` are those of `RelationActor`.

    Raises:
        WaitedTooLong: the cluster had no room for it within `wait_s` seconds.
    """
    remote = ray.remote(max_restarts=-1, max_task_retries=-1)(RelationActor)
    actor = remote.options(num_cpus=cpus, num_gpus=gpus).remote(wait_s=wait_s, **options)
    what = f"room on the cluster for the relation actor ({cpus:g} CPUs, {gpus:g} GPUs) and its shards"
    answer_of(actor.ready.remote(), what, wait_s, "look who holds the cluster's nodes")
    return actor

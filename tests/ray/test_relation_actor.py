"""The relation actor without Ray Train: ranks are threads of this process."""

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import ray

from gracl.errors import ClusteringCollapsed, CoverageError, ImageError
from gracl.randomness import rng
from gracl.relations.relate import relate
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.ranking import rank as rank_gallery
from gracl.runtime.board import open_board
from gracl.runtime.relation_actor import start_relation_actor
from gracl.runtime.relator import RayRelator
from gracl.types import Assignment, FeatureTable, Identities
from tests.ray_jobs import fail_at_three

IMAGES, QUERIES, GALLERY = 60, 8, 30
OPTIONS = {"k1": 8, "k2": 3, "eps": 0.6, "min_samples": 2}


def features(images: int, objects: int, key: str, spread: float = 0.15) -> np.ndarray:
    """Unit rows around as many centres as there are objects."""
    dice = rng(0, "relation actor", key)
    rows = dice.normal(size=(objects, 16))[np.arange(images) % objects] + spread * dice.normal(size=(images, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def identities(images: int, objects: int, first_camera: int) -> Identities:
    return Identities(np.arange(images) % objects, np.arange(images) // objects + first_camera)


TRAIN = features(IMAGES, 6, "train")
QUERY, SHELF = features(QUERIES, 4, "query", 1.0), features(GALLERY, 4, "query", 1.0)
WHO = (identities(QUERIES, 4, 0), identities(GALLERY, 4, 1))


def part(rows: np.ndarray, indices: np.ndarray) -> FeatureTable:
    """Some rows in an order of no meaning."""
    indices = rng(1, len(indices)).permutation(indices)
    return FeatureTable(indices, rows[indices])


def halves(rows: np.ndarray) -> list[FeatureTable]:
    """The parts of two ranks: even and odd images."""
    return [part(rows, np.arange(rank, len(rows), 2)) for rank in range(2)]


class Group:
    """Ranks of one attempt, each calling from a thread of its own."""

    def __init__(self, actor: Any, ranks: int = 2, judged_by: Sequence[ray.ObjectRef] = ()) -> None:
        attempt = uuid.uuid4().hex
        self._pool = ThreadPoolExecutor(ranks)
        self.relators = [
            RayRelator(actor, attempt=attempt, rank=rank, ranks=ranks, judged_by=judged_by, wait_s=300.0)
            for rank in range(ranks)
        ]

    def ask(self, question: Callable[[RayRelator, int], Any], rank: int) -> "Future[Any]":
        return self._pool.submit(question, self.relators[rank], rank)

    def ask_all(self, question: Callable[[RayRelator, int], Any]) -> list["Future[Any]"]:
        return [self.ask(question, rank) for rank in range(len(self.relators))]


def ask_of_a_lost_group(actor: Any, epoch: int, half: FeatureTable) -> ray.ObjectRef:
    """Rank 0 of two asks, and the other will never come: no thread, which would wait for it beyond Ray's end."""
    return actor.relate.remote(uuid.uuid4().hex, epoch, 0, 2, [ray.put(half)])


@pytest.fixture(scope="module")
def board(ray_cluster):
    return open_board()


@pytest.fixture(scope="module")
def who(ray_cluster):
    """Who is on the images, as the driver holds it for the ranks."""
    return [ray.put(WHO)]


@pytest.fixture(scope="module")
def actor(board):
    return start_relation_actor(cpus=0.1, gpus=0.0, wait_s=300.0, images=IMAGES, options=OPTIONS, board=board)


def assert_same_assignment(one: Assignment, other: Assignment) -> None:
    assert one.epoch == other.epoch
    np.testing.assert_array_equal(one.labels, other.labels)
    for name in ("inter", "intra", "inter_image", "intra_image", "cluster_sums"):
        np.testing.assert_array_equal(getattr(one.proxies, name), getattr(other.proxies, name), err_msg=name)


@pytest.mark.ray
def test_two_parts_give_every_rank_the_answer_of_the_whole(actor, board):
    parts, wanted = halves(TRAIN), relate(TRAIN, epoch=4, **OPTIONS)
    assert wanted.clusters == 6, "the toy features are meant to have clusters"
    answers = [asked.result(60) for asked in Group(actor).ask_all(lambda door, rank: door.relate(4, parts[rank]))]
    for answer in answers:
        assert_same_assignment(answer, wanted)
    (phase, done, total), _ = ray.get(board.look.remote(0))
    assert phase != "start", "the actor is meant to post its progress"
    assert 0 < done == total


@pytest.mark.ray
def test_a_rank_waits_for_the_others(actor):
    parts, group = halves(TRAIN), Group(actor)
    first = group.ask(lambda door, rank: door.relate(0, parts[rank]), 0)
    with pytest.raises(TimeoutError):
        first.result(1)
    second = group.ask(lambda door, rank: door.relate(0, parts[rank]), 1)
    assert_same_assignment(first.result(60), second.result(60))


@pytest.mark.ray
def test_epochs_follow_one_another(actor):
    group, other = Group(actor), np.ascontiguousarray(TRAIN[::-1])
    for epoch, rows in enumerate((TRAIN, other)):
        parts = halves(rows)
        answers = group.ask_all(lambda door, rank, parts=parts, epoch=epoch: door.relate(epoch, parts[rank]))
        for answer in answers:
            assert_same_assignment(answer.result(60), relate(rows, epoch=epoch, **OPTIONS))


@pytest.mark.ray
def test_another_attempt_does_not_get_the_answer_or_the_parts_of_the_one_before(actor):
    old, other = halves(TRAIN), np.ascontiguousarray(TRAIN[::-1])
    done = Group(actor)
    for asked in done.ask_all(lambda door, rank: door.relate(2, old[rank])):
        asked.result(60)
    ask_of_a_lost_group(actor, 2, old[0])
    new = halves(other)
    answers = Group(actor).ask_all(lambda door, rank: door.relate(2, new[rank]))
    for answer in answers:
        assert_same_assignment(answer.result(60), relate(other, epoch=2, **OPTIONS))


@pytest.mark.ray
def test_a_late_call_of_a_lost_group_does_not_break_up_a_meeting(actor):
    old, new, group = halves(TRAIN), halves(np.ascontiguousarray(TRAIN[::-1])), Group(actor)
    first = group.ask(lambda door, rank: door.relate(2, new[rank]), 0)
    late = ask_of_a_lost_group(actor, 2, old[0])
    assert ray.wait([late], timeout=0.5)[0] == [], "the late call is meant to wait"
    second = group.ask(lambda door, rank: door.relate(2, new[rank]), 1)
    assert_same_assignment(first.result(30), second.result(30))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (part(TRAIN, np.arange(3, IMAGES, 2)), r"1 missing \[1\], 0 repeated"),
        (part(TRAIN, np.arange(IMAGES // 2)), r"15 missing .*, 15 repeated \[0, 2, 4, 6, 8\]"),
    ],
)
def test_a_missing_or_repeated_image_is_refused_at_every_rank(actor, second, message):
    parts = [halves(TRAIN)[0], second]
    for asked in Group(actor).ask_all(lambda door, rank: door.relate(0, parts[rank])):
        with pytest.raises(CoverageError, match=message):
            asked.result(60)


@pytest.mark.ray
def test_a_part_that_cannot_be_fetched_is_heard_of_by_every_rank(actor):
    lost = ray.remote(num_cpus=0)(fail_at_three).remote(3)
    parts = [lost, ray.put(halves(TRAIN)[1])]
    calls = [actor.relate.remote("an attempt", 0, rank, 2, [parts[rank]]) for rank in range(2)]
    for call in calls:
        with pytest.raises(ImageError, match="three"):
            ray.get(call, timeout=30)


@pytest.mark.ray
def test_after_a_refusal_another_attempt_gets_its_answer(actor):
    (refused,) = Group(actor, 1).ask_all(lambda door, rank: door.relate(0, halves(TRAIN)[0]))
    with pytest.raises(CoverageError):
        refused.result(60)
    (asked,) = Group(actor, 1).ask_all(lambda door, rank: door.relate(0, part(TRAIN, np.arange(IMAGES))))
    assert_same_assignment(asked.result(60), relate(TRAIN, epoch=0, **OPTIONS))


@pytest.mark.ray
def test_a_collapse_reaches_every_rank_as_it_was_raised(actor):
    copies = features(IMAGES, 1, "copies", 0.0)
    with pytest.raises(ClusteringCollapsed) as here:
        relate(copies, epoch=0, **OPTIONS)
    parts = halves(copies)
    for asked in Group(actor).ask_all(lambda door, rank: door.relate(0, parts[rank])):
        with pytest.raises(ClusteringCollapsed) as there:
            asked.result(60)
        assert str(there.value) == str(here.value)


@pytest.mark.ray
def test_judge_is_evaluate_retrieval_on_the_whole_and_ranking_goes_with_it(actor, who):
    query, gallery = halves(QUERY), halves(SHELF)
    names = {"query_identities": WHO[0], "gallery_identities": WHO[1]}
    wanted = evaluate_retrieval(QUERY, SHELF, **names)
    assert 0 < wanted.mean_ap < 1, "the toy features are meant to be neither hopeless nor perfect"
    for asked in Group(actor, judged_by=who).ask_all(lambda door, rank: door.judge(1, query[rank], gallery[rank])):
        report = asked.result(60)
        assert report.metrics() == wanted.metrics()
        np.testing.assert_array_equal(report.average_precisions, wanted.average_precisions)
    report, ranking = ray.get(actor.ranking.remote(5))
    assert report.metrics() == wanted.metrics()
    np.testing.assert_array_equal(ranking.indices, rank_gallery(QUERY, SHELF, **names, k=5).indices)


@pytest.mark.ray
def test_judging_needs_every_query(actor, who):
    query, gallery = halves(QUERY)[:1] * 2, halves(SHELF)
    for asked in Group(actor, judged_by=who).ask_all(lambda door, rank: door.judge(1, query[rank], gallery[rank])):
        with pytest.raises(CoverageError, match="4 missing"):
            asked.result(60)


@pytest.mark.ray
def test_an_actor_killed_while_a_part_is_awaited_comes_back_and_answers_all(actor):
    parts, group, epoch = halves(TRAIN), Group(actor), 3
    pid = ray.get(actor.__ray_call__.remote(lambda living: __import__("os").getpid()))
    first = group.ask(lambda door, rank: door.relate(epoch, parts[rank]), 0)
    with pytest.raises(TimeoutError):
        first.result(1)
    ray.kill(actor, no_restart=False)
    second = group.ask(lambda door, rank: door.relate(epoch, parts[rank]), 1)
    wanted = relate(TRAIN, epoch=epoch, **OPTIONS)
    assert_same_assignment(first.result(90), wanted)
    assert_same_assignment(second.result(90), wanted)
    assert ray.get(actor.__ray_call__.remote(lambda living: __import__("os").getpid())) != pid
    assert ray.get(actor.ranking.remote(5)) is None, "what was judged died with the process"

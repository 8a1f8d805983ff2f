"""The Ray stream without Ray Train: every ticket to its rank, in order, with the pixels of the shards."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from gracl.errors import ShardError, StreamError
from gracl.images.batches import MappedBatches
from gracl.images.manifests import read_manifest
from gracl.images.plans import identity_plan, scan_plan
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view, train_view
from gracl.runtime import stream
from gracl.runtime.board import Reading, open_board
from gracl.runtime.stream import STREAM, PlanSource, StreamBatches, fill, open_stream
from gracl.types import EMPTY, Batch, Plan

SIZE = {"height": 32, "width": 16}
IMAGE_BYTES = 1000.0


def common(scan_batch: int, rank: int, ranks: int) -> dict[str, Any]:
    """What both kinds of batches are told."""
    views = {"eval_view": partial(eval_view, **SIZE), "train_view": partial(train_view, **SIZE, pad=2)}
    return {"train": "train", **views, **SIZE, "scan_batch": scan_batch, "seed": 3, "rank": rank, "ranks": ranks}


def digests(root: str) -> dict[str, str]:
    return {split: read_manifest(root, split).digest for split in ("train", "query", "gallery")}


class Ends:
    """A stream split over ranks as Ray Train does it, each rank's end in a thread of this process."""

    def __init__(
        self, root: str, ranks: int, wanted: dict[str, str] | None = None, image_bytes: float = IMAGE_BYTES
    ) -> None:
        self._ranks = ranks
        self._stores = {split: ShardStore.open(root, split) for split in ("train", "query", "gallery")}
        self._board, self._barrier = open_board(), threading.Barrier(ranks, timeout=60)
        datasets, order = open_stream(
            self._board,
            root=root,
            cache=None,
            digests=wanted or digests(root),
            image_bytes=image_bytes,
            task_cpus=0.5,
            ranks=ranks,
        )
        self._ends = [end[STREAM] for end in order.configure(datasets, ranks, None, None)]
        self.limit = datasets[STREAM].context.execution_options.resource_limits.object_store_memory

    def read(self, what: Callable[[Any], Iterator[Batch]], scan_batch: int = 12) -> list[list[Batch]]:
        """The batches of each rank; `what` is asked of every rank's end. Its fresh ends count readings from one."""
        with ThreadPoolExecutor(self._ranks) as pool:
            return list(pool.map(lambda end: list(what(end)), self._open(scan_batch)))

    def _open(self, scan_batch: int) -> list[StreamBatches]:
        sizes = {split: len(store) for split, store in self._stores.items()}
        return [
            StreamBatches(
                end,
                self._board,
                sizes=sizes,
                barrier=self._barrier.wait,
                wait_s=60.0,
                **common(scan_batch, rank, self._ranks),
            )
            for rank, end in enumerate(self._ends)
        ]

    def mapped(self, what: Callable[[Any], Iterator[Batch]], scan_batch: int = 12) -> list[list[Batch]]:
        """The same from the shards, without Ray."""
        return [
            list(what(MappedBatches(self._stores, **common(scan_batch, rank, self._ranks))))
            for rank in range(self._ranks)
        ]


@pytest.fixture(scope="module")
def one_rank(ray_cluster, toy_shards):
    return Ends(toy_shards, 1)


@pytest.fixture(scope="module")
def three_ranks(ray_cluster, toy_shards):
    return Ends(toy_shards, 3)


def assert_same(came: list[list[Batch]], wanted: list[list[Batch]]) -> None:
    assert [len(batches) for batches in came] == [len(batches) for batches in wanted]
    for mine, others in zip(came, wanted, strict=True):
        for one, other in zip(mine, others, strict=True):
            assert (one.ticket, one.epoch) == (other.ticket, other.epoch)
            np.testing.assert_array_equal(one.indices, other.indices)
            np.testing.assert_array_equal(one.images, other.images)


def seen(batches: list[list[Batch]]) -> np.ndarray:
    return np.sort(np.concatenate([batch.indices for mine in batches for batch in mine]))


def toy_plan(images: int, epoch: int = 1, steps: int = 20) -> Plan:
    labels = np.arange(images) % 9 - 1
    return identity_plan(labels, epoch=epoch, objects=3, images_per_object=4, steps=steps)


@pytest.mark.ray
@pytest.mark.parametrize("ends", ["one_rank", "three_ranks"])
@pytest.mark.parametrize("scan_batch", [12, 99, 3000])
def test_a_scan_shows_every_image_once(ends, scan_batch, toy_shards, request):
    ends, images = request.getfixturevalue(ends), len(ShardStore.open(toy_shards, "train"))
    assert images % scan_batch, "the last ticket is meant to be a partial one"
    came = ends.read(lambda end: end.scan("train"), scan_batch)
    np.testing.assert_array_equal(seen(came), np.arange(images))
    assert_same(came, ends.mapped(lambda end: end.scan("train"), scan_batch))


@pytest.mark.ray
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_limit_below_one_block_holds_no_reading_up(ranks, ray_cluster, toy_shards, monkeypatch):
    large = float(stream.BLOCK_BYTES)  # pictures of that size, as far as the source knows: a ticket to a block
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1)  # here, where the limit is made: some bytes for all that wait
    ends = Ends(toy_shards, ranks, image_bytes=large)
    assert ends.limit < 100
    came = ends.read(lambda end: end.scan("train"), scan_batch=6)
    assert len(came[0]) > 2 * stream.WAITING_BLOCKS, "more blocks are meant to come than tasks may work at once"
    assert_same(came, ends.mapped(lambda end: end.scan("train"), scan_batch=6))


@pytest.mark.ray
def test_what_may_wait_in_the_object_store_grows_with_the_ranks(ray_cluster, toy_shards):
    few, many = (Ends(toy_shards, ranks).limit for ranks in (1, 3))
    assert (few, many) == (stream.WAITING_BLOCKS * stream.BLOCK_BYTES, 3 * stream.WAITING_BLOCKS * stream.BLOCK_BYTES)


@pytest.mark.ray
@pytest.mark.parametrize("ends", ["one_rank", "three_ranks"])
def test_a_scan_again_shows_every_image_once_with_dice_of_its_own(ends, toy_shards, request):
    ends, images = request.getfixturevalue(ends), len(ShardStore.open(toy_shards, "train"))
    came = ends.read(lambda end: end.again(1))
    np.testing.assert_array_equal(seen(came), np.arange(images))
    assert_same(came, ends.mapped(lambda end: end.again(1)))


@pytest.mark.ray
@pytest.mark.parametrize("ends", ["one_rank", "three_ranks"])
def test_picks_are_the_tickets_of_the_plan_in_order_with_the_pixels_of_the_shards(ends, toy_shards, request):
    ends, plan = request.getfixturevalue(ends), toy_plan(len(ShardStore.open(toy_shards, "train")))
    came = ends.read(lambda end: end.picks(plan))
    rows = [np.concatenate([batches[step].indices for batches in came]) for step in range(len(plan.tickets))]
    np.testing.assert_array_equal(np.array(rows), plan.tickets)
    assert_same(came, ends.mapped(lambda end: end.picks(plan)))


@pytest.mark.ray
@pytest.mark.parametrize("ends", ["one_rank", "three_ranks"])
@pytest.mark.parametrize("first", [1, 8, 19])
def test_picks_from_a_ticket_on_are_the_rest_of_all_and_the_next_reading_is_whole(ends, first, toy_shards, request):
    ends, plan = request.getfixturevalue(ends), toy_plan(len(ShardStore.open(toy_shards, "train")))

    def rest(end: Any) -> Iterator[Batch]:
        yield from end.picks(plan, first)
        yield from end.picks(plan)

    came, whole = ends.read(rest), ends.mapped(lambda end: end.picks(plan))
    assert_same(came, [mine[first:] + mine for mine in whole])


@pytest.mark.ray
def test_readings_one_after_another_never_mix(three_ranks, toy_shards):
    images = len(ShardStore.open(toy_shards, "train"))
    first, second = toy_plan(images, epoch=1, steps=9), toy_plan(images, epoch=2, steps=2)

    def an_epoch(end: Any) -> Iterator[Batch]:
        yield from end.picks(first)
        yield from end.scan("query")
        yield from end.picks(second)
        yield from end.scan("gallery")

    came = three_ranks.read(an_epoch)
    assert [batch.epoch for batch in came[0]].count(2) == 2
    assert_same(came, three_ranks.mapped(an_epoch))


@pytest.mark.ray
def test_before_the_first_reading_there_is_nothing_to_fetch(ray_cluster, toy_shards):
    source = PlanSource(open_board(), root=toy_shards, cache=None, digests={}, image_bytes=IMAGE_BYTES)
    assert source.get_read_tasks(1) == []


@pytest.mark.ray
@pytest.mark.parametrize(
    ("image_bytes", "sizes"),
    [
        (1000.0, [4, 6]),  # many small images: as they grow
        (float(1 << 20), [4, 5, 1]),  # a part of 6 images of 1 MB: 32 MB hold 5
        (float(1.7 * (1 << 20)), [3, 3, 3, 1]),
        (float(1 << 40), 10 * [1]),  # one ticket at least
    ],
)
def test_blocks_grow_until_they_have_bytes_enough(ray_cluster, toy_shards, image_bytes, sizes):
    board, plan = open_board(), scan_plan(120, 12)
    ray.get(board.post.remote(Reading(1, "train", plan, 2)))
    source = PlanSource(board, root=toy_shards, cache=None, digests=digests(toy_shards), image_bytes=image_bytes)
    tasks = source.get_read_tasks(1)
    assert [task.metadata.num_rows for task in tasks] == [size for size in sizes for _ in (0, 1)]
    assert all(max(sizes) == 1 or task.metadata.size_bytes <= 32 << 20 for task in tasks)
    blocks = [block for task in tasks for block in task()]
    assert [block.num_rows for block in blocks] == [task.metadata.num_rows for task in tasks]
    ranks = [block["rank"][0].as_py() for block in blocks]
    assert ranks == [0, 1] * (len(blocks) // 2)
    for rank in (0, 1):
        mine = [block for block in blocks if block["rank"][0].as_py() == rank]
        tickets = [ticket for block in mine for ticket in block["ticket"].to_pylist()]
        assert tickets == list(range(10))
        indices = [row for block in mine for row in block["indices"].to_pylist()]
        assert indices == plan.share(rank, 2).tolist()


def test_fill_packs_the_bytes_of_tickets_without_ray(toy_shards):
    store = ShardStore.open(toy_shards, "train")
    indices = np.array([[5, 2, 2], [9, EMPTY, EMPTY], [EMPTY, EMPTY, EMPTY]])
    (block,) = fill(lambda: store, (7, 1), np.array([3, 4, 5]), indices)
    assert block.schema.field("images").type == pa.list_(pa.large_binary())
    assert block["reading"].to_pylist() == [7, 7, 7]
    assert block["rank"].to_pylist() == [1, 1, 1]
    assert block["ticket"].to_pylist() == [3, 4, 5]
    assert block["indices"].to_pylist() == indices.tolist()
    wanted = [[bytes(image) for image in store.read(row[row != EMPTY])] for row in indices]
    assert block["images"].to_pylist() == wanted
    assert wanted[0][1] == wanted[0][2] != wanted[0][0]


def rank_one(root: str, blocks: list[pa.Table]) -> StreamBatches:
    """The end of the second of two ranks, which posts nothing, on blocks made by hand."""
    stream = SimpleNamespace(iter_batches=lambda **options: iter(blocks))
    sizes = {"train": len(ShardStore.open(root, "train"))}
    return StreamBatches(stream, None, sizes=sizes, barrier=lambda: None, wait_s=60.0, **common(12, 1, 2))


def blocks_of(root: str, plan: Plan, *, reading: int = 1, rank: int = 1) -> list[pa.Table]:
    share = plan.share(rank, 2)
    return [
        block
        for first in range(0, len(share), 3)
        for block in fill(
            lambda: ShardStore.open(root, "train"),
            (reading, rank),
            np.arange(first, min(first + 3, len(share))),
            share[first : first + 3],
        )
    ]


def test_blocks_in_their_places_are_taken(toy_shards):
    plan = toy_plan(100, steps=7)
    came = list(rank_one(toy_shards, blocks_of(toy_shards, plan)).picks(plan))
    np.testing.assert_array_equal(np.array([batch.indices for batch in came]), plan.share(1, 2))


@pytest.mark.parametrize(
    ("doctor", "message"),
    [
        (lambda blocks: [blocks[1], blocks[0], blocks[2]], r"\(1, 0, 1\); came \(1, 3, 1\)"),
        (lambda blocks: [blocks[0], blocks[0], *blocks[1:]], r"\(1, 3, 1\); came \(1, 0, 1\)"),
        (lambda blocks: [blocks[0], blocks[2]], r"\(1, 3, 1\); came \(1, 6, 1\)"),
        (lambda blocks: blocks[:2], "7 tickets of train for rank 1; came 6"),
        (lambda blocks: [], "7 tickets of train for rank 1; came 0"),
    ],
)
def test_a_block_in_a_wrong_place_is_refused(toy_shards, doctor, message):
    plan = toy_plan(100, steps=7)
    end = rank_one(toy_shards, doctor(blocks_of(toy_shards, plan)))
    with pytest.raises(StreamError, match=message):
        list(end.picks(plan))


@pytest.mark.parametrize(
    ("other", "message"),
    [({"rank": 0}, r"\(1, 0, 1\); came \(1, 0, 0\)"), ({"reading": 2}, r"\(1, 0, 1\); came \(2, 0, 1\)")],
)
def test_a_block_of_another_rank_or_reading_is_refused(toy_shards, other, message):
    plan = toy_plan(100, steps=7)
    with pytest.raises(StreamError, match=message):
        list(rank_one(toy_shards, blocks_of(toy_shards, plan, **other)).picks(plan))


def test_a_ticket_that_lacks_an_image_is_refused(toy_shards):
    plan = toy_plan(100, steps=1)
    (block,) = blocks_of(toy_shards, plan)
    short = pa.array([block["images"][0].as_py()[1:]], pa.list_(pa.large_binary()))
    block = block.set_column(block.schema.get_field_index("images"), "images", short)
    with pytest.raises(StreamError, match="expected 6 images in ticket 0 of epoch 1; came 5"):
        list(rank_one(toy_shards, [block]).picks(plan))


@pytest.mark.ray
def test_a_refusal_in_a_task_of_the_stream_reaches_the_rank_as_it_was(ray_cluster, toy_shards):
    ends = Ends(toy_shards, 1, wanted={"train": "another digest"})
    with pytest.raises(ShardError, match="it was ingested anew"):
        ends.read(lambda end: end.scan("train"))

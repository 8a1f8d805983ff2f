"""Batches straight from shards: the scan that shows training images."""

from functools import partial

import numpy as np

from gracl.images.batches import MappedBatches
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view, train_view
from gracl.types import Batch, Plan

SIZE = {"height": 32, "width": 16}


def batches(root: str, rank: int = 0, ranks: int = 1, **changes: object) -> MappedBatches:
    settings = {"seed": 0, "scan_batch": 12, "rank": rank, "ranks": ranks, "train": "train", **SIZE} | changes
    views = {"eval_view": partial(eval_view, **SIZE), "train_view": partial(train_view, **SIZE, pad=2)}
    return MappedBatches({"train": ShardStore.open(root, "train")}, **views, **settings)


def by_image(shown: list[Batch]) -> dict[int, np.ndarray]:
    found = {int(index): image for batch in shown for index, image in zip(batch.indices, batch.images, strict=True)}
    assert len(found) == sum(len(batch.indices) for batch in shown)
    return found


def test_again_shows_every_image_once_the_same_for_any_ranks(toy_shards):
    alone = by_image(list(batches(toy_shards).again(2)))
    assert sorted(alone) == list(range(len(ShardStore.open(toy_shards, "train"))))
    shared = by_image([batch for rank in range(3) for batch in batches(toy_shards, rank, 3).again(2)])
    assert sorted(shared) == sorted(alone)
    assert all((shared[index] == image).all() for index, image in alone.items())


def test_again_is_no_plain_view_and_has_dice_of_its_own(toy_shards):
    one = batches(toy_shards)
    first, plain = by_image(list(one.again(2))), by_image(list(one.scan("train")))
    tickets = np.arange(12 * (len(first) // 12)).reshape(-1, 12)
    picked = by_image(list(one.picks(Plan(epoch=2, tickets=tickets))))
    others = {
        "plain": plain,
        "picks of the same places": picked,
        "another epoch": by_image(list(one.again(3))),
        "another seed": by_image(list(batches(toy_shards, seed=1).again(2))),
    }
    for name, other in others.items():
        same = [index for index in other if (other[index] == first[index]).all()]
        assert len(same) < len(other) / 10, name


def test_picks_may_begin_at_any_ticket(toy_shards):
    one, plan = batches(toy_shards), Plan(epoch=2, tickets=np.arange(48).reshape(4, 12))
    whole = list(one.picks(plan))
    for first in range(5):
        rest = list(one.picks(plan, first))
        assert [batch.ticket for batch in rest] == [0, 1, 2, 3][first:]
        assert all((mine.images == other.images).all() for mine, other in zip(rest, whole[first:], strict=True))

"""Loading: order, dice by place, empty places, threads that end, errors that arrive."""

import io
import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from PIL import Image

from gracl.errors import ImageError, StreamError
from gracl.images.loading import Ticket, load, share_tickets
from gracl.images.plans import identity_plan, scan_plan
from gracl.images.views import eval_view, train_view
from gracl.randomness import rng
from gracl.types import Plan

H, W = 12, 8
SIZE = {"height": H, "width": W}


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (W, H), (index, 255 - index, 7)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [png(index) for index in range(23)]


def read(indices: np.ndarray) -> list[memoryview]:
    return [memoryview(IMAGES[index]) for index in indices]


EVAL = partial(eval_view, **SIZE)
TRAIN = partial(train_view, **SIZE, pad=2)


def view_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gracl-view")]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_scan_shows_every_image_once_and_in_order(ranks: int) -> None:
    plan = scan_plan(23, 8, epoch=6)
    seen = []
    for rank in range(ranks):
        batches = list(load(share_tickets(read, plan, rank=rank, ranks=ranks), EVAL, **SIZE, seed=None))
        assert all(batch.epoch == 6 for batch in batches)
        assert [batch.ticket for batch in batches] == sorted({batch.ticket for batch in batches})
        for batch in batches:
            assert (batch.images[:, 0, 0, 0] == batch.indices).all()
            assert len(batch.indices) > 0
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(23))


def test_a_ticket_without_images_gives_no_batch() -> None:
    plan = Plan(epoch=0, tickets=np.array([[-1, -1], [4, -1], [-1, -1], [-1, 9]]))
    batches = list(load(share_tickets(read, plan), EVAL, **SIZE, seed=None))
    assert [(batch.ticket, batch.indices.tolist()) for batch in batches] == [(1, [4]), (3, [9])]
    assert list(load(iter(()), EVAL, **SIZE, seed=None)) == []


def test_pictures_depend_on_seed_epoch_ticket_and_place_alone() -> None:
    labels = np.arange(23) // 3
    plan = identity_plan(labels, epoch=4, objects=4, images_per_object=2, steps=5)
    whole = list(load(share_tickets(read, plan), TRAIN, **SIZE, seed=9))
    for threads, ahead, ranks in ((1, 0, 1), (5, 2, 2), (3, 9, 4)):
        parts = [
            list(
                load(
                    share_tickets(read, plan, rank=rank, ranks=ranks),
                    TRAIN,
                    **SIZE,
                    seed=9,
                    threads=threads,
                    ahead=ahead,
                )
            )
            for rank in range(ranks)
        ]
        for step, batch in enumerate(whole):
            assert (np.concatenate([part[step].indices for part in parts]) == batch.indices).all()
            assert (np.concatenate([part[step].images for part in parts]) == batch.images).all()
    dice = rng(9, "view", 4, 2, 3)
    assert (whole[2].images[3] == TRAIN(IMAGES[plan.tickets[2, 3]], dice)).all()
    other = list(load(share_tickets(read, plan), TRAIN, **SIZE, seed=8))
    assert any((one.images != two.images).any() for one, two in zip(whole, other, strict=True))


def test_empty_places_do_not_move_the_dice_of_others() -> None:
    plan = Plan(epoch=1, tickets=np.array([[-1, 5, -1, 6]]))
    (batch,) = load(share_tickets(read, plan), TRAIN, **SIZE, seed=2)
    assert (batch.images[1] == TRAIN(IMAGES[6], rng(2, "view", 1, 0, 3))).all()


def test_order_is_kept_when_early_tickets_are_slow() -> None:
    def slow(
        image: bytes | memoryview, dice: np.random.Generator | None, room: np.ndarray | None, scratch: np.ndarray
    ) -> np.ndarray:
        picture = EVAL(image)
        time.sleep(0.03 if picture[0, 0, 0] == 0 else 0)
        return picture

    batches = load(share_tickets(read, scan_plan(23, 2)), slow, **SIZE, seed=None, threads=4, ahead=6)
    assert [batch.ticket for batch in batches] == list(range(12))


def test_no_more_than_asked_is_read_ahead() -> None:
    asked = []

    def counted() -> Iterator[Ticket]:
        for ticket in share_tickets(read, scan_plan(23, 2)):
            asked.append(ticket.ticket)
            yield ticket

    batches = load(counted(), EVAL, **SIZE, seed=None, ahead=3)
    next(batches)
    assert asked == [0, 1, 2, 3]
    batches.close()


def test_threads_end_with_the_iterator_however_it_ends() -> None:
    tickets = partial(share_tickets, read, scan_plan(23, 2))
    batches = load(tickets(), EVAL, **SIZE, seed=None, threads=3)
    next(batches)
    assert view_threads()
    batches.close()
    assert not view_threads()
    for batch in load(tickets(), EVAL, **SIZE, seed=None):
        assert batch.ticket == 0
        break
    assert not view_threads()
    assert len(list(load(tickets(), EVAL, **SIZE, seed=None))) == 12
    assert not view_threads()


def test_an_unreadable_image_says_which_it_was() -> None:
    def broken(indices: np.ndarray) -> list[bytes]:
        return [b"no picture" if index == 13 else IMAGES[index] for index in indices]

    batches = load(share_tickets(broken, scan_plan(23, 4, epoch=2)), EVAL, **SIZE, seed=None)
    with pytest.raises(ImageError, match=r"image 13 \(ticket 3 of epoch 2\): expected the bytes"):
        list(batches)
    assert not view_threads()


def test_errors_of_source_and_view_reach_the_consumer() -> None:
    def source() -> Iterator[Ticket]:
        yield Ticket(0, 0, 0, np.array([1]), [IMAGES[1]])
        raise OSError("the disk is gone")

    def view(
        image: bytes | memoryview, dice: np.random.Generator | None, room: np.ndarray | None, scratch: np.ndarray
    ) -> np.ndarray:
        raise RuntimeError("a broken view")

    with pytest.raises(OSError, match="disk is gone"):
        list(load(source(), EVAL, **SIZE, seed=None))
    with pytest.raises(RuntimeError, match="broken view"):
        list(load(share_tickets(read, scan_plan(3, 2)), view, **SIZE, seed=None))
    assert not view_threads()


@pytest.mark.parametrize("shape", [(1, 1, 3), (H, W + 1, 3), (W, H, 3)])
def test_a_view_of_another_size_is_refused(shape: tuple[int, int, int]) -> None:
    def view(
        image: bytes | memoryview, dice: np.random.Generator | None, room: np.ndarray | None, scratch: np.ndarray
    ) -> np.ndarray:
        return np.zeros(shape, np.uint8)

    with pytest.raises(ValueError, match="expected views of shape"):
        list(load(share_tickets(read, scan_plan(3, 2)), view, **SIZE, seed=None))


def test_wrong_settings_and_torn_tickets_are_refused() -> None:
    for wrong in ({"threads": 0}, {"ahead": -1}):
        with pytest.raises(ValueError, match="threads >= 1 and ahead >= 0"):
            load(iter(()), EVAL, **SIZE, seed=None, **wrong)
    with pytest.raises(StreamError, match="expected 2 images in ticket 5 of epoch 1; came 1"):
        Ticket(5, 1, 0, np.array([3, -1, 4]), [IMAGES[3]])
    plan = scan_plan(8, 4)
    with pytest.raises(ValueError, match="a rank from 0 to 1"):
        share_tickets(read, plan, rank=2, ranks=2)
    with pytest.raises(ValueError, match="multiple of the number of workers"):
        share_tickets(read, plan, rank=0, ranks=3)


@pytest.mark.parametrize("rank", [0, 1])
def test_from_a_ticket_on_nothing_before_it_is_read_or_decoded(rank: int) -> None:
    labels = np.arange(23) // 3
    plan = identity_plan(labels, epoch=4, objects=4, images_per_object=2, steps=5)
    asked: list[int] = []

    def noted(indices: np.ndarray) -> list[bytes]:
        asked.extend(indices.tolist())
        return read(indices)

    whole = list(load(share_tickets(read, plan, rank=rank, ranks=2), TRAIN, **SIZE, seed=9))
    rest = list(load(share_tickets(noted, plan, rank=rank, ranks=2, first=3), TRAIN, **SIZE, seed=9))
    assert asked == plan.share(rank, 2)[3:].flatten().tolist()
    assert [batch.ticket for batch in rest] == [3, 4]
    for one, other in zip(rest, whole[3:], strict=True):
        assert (one.indices == other.indices).all()
        assert (one.images == other.images).all()
    assert list(load(share_tickets(noted, plan, first=5), TRAIN, **SIZE, seed=9)) == []

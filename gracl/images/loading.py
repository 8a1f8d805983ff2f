"""How encoded bytes become batches, for the Ray stream and the local loader alike. No Ray here.

Tickets come in as bytes, batches go out as pictures, in order; a few threads decode ahead (the decoders let go of the
interpreter's lock, ray.md 1.3).
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from gracl.errors import ImageError, StreamError, expected
from gracl.images.decoding import near_memory
from gracl.randomness import rng
from gracl.types import EMPTY, Augmentations, Batch, Plan

Encoded = bytes | memoryview
Picture = UInt8[ndarray, "height width 3"]
View = Callable[[Encoded | Picture, np.random.Generator | None, Picture | None, Picture | None], Picture]
Made = Callable[[int, Encoded], Encoded | Picture]
OnBad = Callable[[int, ImageError], object]
Drawer = Callable[[np.random.Generator], Sequence[int | float]]


@dataclass(frozen=True)
class Ticket:
    """One rank's part of one row of a plan, with the bytes of its images.

    `first_place` is the part's first column in the global batch; `indices` holds `EMPTY` where a place has no image,
    and `images` one entry per place that has one, in the same order.
    """

    ticket: int
    epoch: int
    first_place: int
    indices: Int64[ndarray, "places"]
    images: Sequence[Encoded]

    def __post_init__(self) -> None:
        wanted = int((self.indices != EMPTY).sum())
        if len(self.images) != wanted:
            raise StreamError(
                expected(
                    f"{wanted} images in ticket {self.ticket} of epoch {self.epoch}",
                    len(self.images),
                    "check that the shards belong to the plan",
                )
            )


def share_tickets(
    read: Callable[[Int64[ndarray, "rows"]], Sequence[Encoded]],
    plan: Plan,
    *,
    rank: int = 0,
    ranks: int = 1,
    first: int = 0,
) -> Iterator[Ticket]:
    """Cuts one rank's share out of a plan and fetches its bytes, ticket by ticket, as they are asked for.

    Args:
        read: the encoded images of some indices, in their order (`ShardStore.read`).
        plan: of all ranks together.
        rank: whose share, 0 to `ranks - 1`.
        ranks: that share the plan; they must divide its batch.
        first: the ticket to begin with; those before are not read.
    """
    if not 0 <= rank < ranks:
        raise ValueError(expected(f"a rank from 0 to {ranks - 1}", rank, "check rank and ranks"))
    return _share_tickets(read, plan, plan.share(rank, ranks), rank, first)


def _share_tickets(
    read: Callable[[Int64[ndarray, "rows"]], Sequence[Encoded]],
    plan: Plan,
    share: Int64[ndarray, "tickets part"],
    rank: int,
    first: int,
) -> Iterator[Ticket]:
    for number, indices in enumerate(share[first:], first):
        wanted = indices[indices != EMPTY]
        yield Ticket(
            ticket=number,
            epoch=plan.epoch,
            first_place=rank * share.shape[1],
            indices=indices,
            images=read(wanted) if len(wanted) else [],
        )


def load(
    tickets: Iterable[Ticket],
    view: View,
    *,
    height: int,
    width: int,
    seed: int | None,
    threads: int = 2,
    ahead: int = 3,
    on_bad: OnBad | None = None,
    made: Made | None = None,
    drawer: Drawer | None = None,
) -> Generator[Batch, None, None]:
    """Decodes tickets into batches, in order, `ahead` tickets before they are asked for.

    The dice of a place are `rng(seed, "view", epoch, ticket, place)` with the place in the global batch, so a picture
    does not depend on ranks, threads or process. Empty places are trimmed, and a ticket without any image gives no
    batch. Closing the iterator, or letting go of it, ends the threads.

    Args:
        tickets: one rank's, in order.
        view: from encoded bytes and dice to a picture of `height` x `width`, which may lie in the
            memory given to it first, and be made in that given second.
        height: rows of every picture.
        width: columns of every picture.
        seed: of the dice; None gives the view no dice (a scan).
        threads: that decode.
        ahead: tickets decoded in advance; memory holds that many batches besides the one handed out.
        on_bad: told the index of a picture that cannot be read, and why, from any thread; the picture is black then.
            None: the error is raised.
        made: what stands for the bytes of the image with that index: its picture, made before (`PixelFile`).
        drawer: is given the dice instead of the view, and says what is to be done to a picture on the device: batches
            have `augmentations` then. A picture that is black for being bad stays so.

    Raises:
        ImageError: while iterating; says which image of which ticket could not be read.
        ValueError: no thread, a negative `ahead`, a view of another size, or a drawer without a seed.
    """
    if threads < 1 or ahead < 0:
        raise ValueError(
            expected("threads >= 1 and ahead >= 0", f"{threads} and {ahead}", "correct the loading settings")
        )
    if drawer is not None and seed is None:
        raise ValueError(expected("a seed for the drawer's dice", "none", "give load() a seed"))
    way = _Way(view, seed, on_bad, (lambda index, image: image) if made is None else made, drawer)
    return _load(tickets, way, (height, width), threads, ahead)


@dataclass(frozen=True)
class _Way:
    """How each picture of a reading is made."""

    view: View
    seed: int | None
    on_bad: OnBad | None
    made: Made
    drawer: Drawer | None


def _load(
    tickets: Iterable[Ticket], way: _Way, size: tuple[int, int], threads: int, ahead: int
) -> Generator[Batch, None, None]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="gracl-view")
    begun: deque[tuple[Batch, list[Future[float]]]] = deque()
    try:
        for ticket in tickets:
            if len(ticket.images):
                begun.append(_begin(pool, threads, ticket, way, size))
            if len(begun) > ahead:
                yield _finish(*begun.popleft())
        while begun:
            yield _finish(*begun.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(
    pool: ThreadPoolExecutor, threads: int, ticket: Ticket, way: _Way, size: tuple[int, int]
) -> tuple[Batch, list[Future[float]]]:
    """Makes the batch's empty pictures and sets the threads to fill them, a run of rows each."""
    columns = np.flatnonzero(ticket.indices != EMPTY)
    images = near_memory((len(columns), *size, 3))
    drawn = Augmentations.none(len(columns)) if way.drawer else None
    batch = Batch(ticket.ticket, ticket.epoch, ticket.indices[columns], images, augmentations=drawn)
    cuts = np.linspace(0, len(columns), min(threads, len(columns)) + 1).astype(int).tolist()
    jobs = [
        pool.submit(_fill, batch, range(start, stop), columns, ticket, way)
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    return batch, jobs


def _finish(batch: Batch, jobs: list[Future[float]]) -> Batch:
    return replace(batch, decoding_s=sum(job.result() for job in jobs))


def _fill(
    batch: Batch,
    rows: range,
    columns: Int64[ndarray, "rows"],
    ticket: Ticket,
    way: _Way,
) -> float:
    """Makes the pictures of some rows; the CPU seconds that this thread spent on them."""
    begun, scratch = time.thread_time(), near_memory(batch.images.shape[1:])
    for row in rows:
        place, room = ticket.first_place + int(columns[row]), batch.images[row]
        dice = None if way.seed is None else rng(way.seed, "view", ticket.epoch, ticket.ticket, place)
        index = int(ticket.indices[columns[row]])
        try:
            picture = way.view(way.made(index, ticket.images[row]), None if way.drawer else dice, room, scratch)
        except ImageError as error:
            if way.on_bad is not None:
                way.on_bad(index, error)
                room[...] = 0
                continue
            raise ImageError(f"image {index} (ticket {ticket.ticket} of epoch {ticket.epoch}): {error}") from error
        if way.drawer and batch.augmentations and dice:
            drawn = way.drawer(dice)
            batch.augmentations.moves[row], batch.augmentations.light[row] = drawn[:7], drawn[7:]
        if picture is room:
            continue
        if picture.shape != room.shape:  # NumPy would stretch some wrong shapes without a word
            raise ValueError(expected(f"views of shape {room.shape}", picture.shape, "set one size for both"))
        room[...] = picture
    return time.thread_time() - begun

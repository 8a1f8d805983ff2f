"""Waits that end: an answer, or the time is up and the error says what was waited for (docs/reliability.md).

A wait that is over is a `WaitedTooLong`, which in a rank is no refusal: Ray Train starts the group again, as it does
after any other failure.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from queue import Empty, Full, Queue
from typing import Any, TypeVar

import ray

from gracl.errors import WaitedTooLong, expected

# The board answers in milliseconds; two minutes are for a machine that swaps.
BOARD_S = 120.0
# An object that exists already and must only be brought here, at most the features of all images.
OBJECT_S = 1800.0
# As torch's own for a collective, so that neither of the two is the one that always ends first by far.
RANKS_S = 1800.0

Item = TypeVar("Item")
_END = object()
_LOOK_S = 1.0


def too_long(what: str, limit: float, advice: str) -> WaitedTooLong:
    """The error of a wait that is over."""
    return WaitedTooLong(expected(f"{what} within {limit:g} s", "nothing", advice))


def answer_of(reference: Any, what: str, limit: float, advice: str = "look at that process's log") -> Any:
    """What a call answers. Whoever answers may die: that Ray says at once.

    Raises:
        WaitedTooLong: no answer within `limit` seconds, though nobody died.
    """
    try:
        return ray.get(reference, timeout=limit)
    except ray.exceptions.GetTimeoutError:
        raise too_long(what, limit, advice) from None


def answer_beside(reference: Any, what: str, limit: float) -> Any:
    """The same inside an asynchronous actor, where `ray.get` warns, also in a thread."""
    future = reference.future()
    try:
        return future.result(limit)
    except FutureTimeout:
        if future.done():  # its own error is one of time
            raise
        raise too_long(what, limit, "look at that process's log") from None


def each_within(items: Iterable[Item], what: str, limit: float) -> Iterator[Item]:
    """The items in order, fetched by a thread, two ahead at most: one that waits and one in its hand.

    Raises:
        WaitedTooLong: the next one did not come within `limit` seconds.
    """
    came: Queue[tuple[Any, BaseException | None]] = Queue(1)
    stop = threading.Event()

    def hand(item: Any, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                came.put((item, error), timeout=_LOOK_S)
                return
            except Full:
                continue

    def fetch() -> None:
        try:
            for item in items:
                hand(item)
                if stop.is_set():
                    return
        except BaseException as error:  # it is raised where the items are taken
            hand(None, error)
            return
        hand(_END)

    thread = threading.Thread(target=fetch, name="gracl-fetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error = came.get(timeout=limit)
            except Empty:
                raise too_long(
                    what, limit, "look whether the cluster has room for it, and at the nodes' logs"
                ) from None
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()

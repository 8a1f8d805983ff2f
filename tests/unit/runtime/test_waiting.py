"""Waits end and say what they waited for."""

import fcntl
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from benchmarks.rehearse_jobs import wait_until
from gracl.errors import StorageError, WaitedTooLong
from gracl.images import cache
from gracl.runtime import drawing
from gracl.runtime.drawing import Drawing
from gracl.runtime.waiting import answer_beside, each_within


def test_items_come_in_order_and_once() -> None:
    assert list(each_within(range(50), "numbers", 5.0)) == list(range(50))
    assert list(each_within([], "numbers", 5.0)) == []


def test_an_item_that_does_not_come_is_named() -> None:
    never = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        never.wait(60)

    found = each_within(items(), "the next block", 2.0)
    assert next(found) == 1
    with pytest.raises(WaitedTooLong, match=r"expected the next block within 2 s; came nothing; look"):
        next(found)
    never.set()


def test_an_error_of_the_items_is_raised_where_they_are_taken() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    found = each_within(items(), "the next block", 5.0)
    assert next(found) == 1
    with pytest.raises(ValueError, match="torn"):
        next(found)


def test_who_stops_taking_ends_the_fetching() -> None:
    fetched: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            fetched.append(number)
            yield number

    found = each_within(items(), "the next block", 5.0)
    assert next(found) == 0
    found.close()
    assert wait_until(lambda: all(thread.name != "gracl-fetch" for thread in threading.enumerate()), 30)
    assert len(fetched) < 10


def test_an_answer_beside_an_actor() -> None:
    class Reference:
        def __init__(self) -> None:
            self.it: Future[int] = Future()

        def future(self) -> "Future[int]":
            return self.it

    reference = Reference()
    with pytest.raises(WaitedTooLong, match=r"expected lists within 0.1 s; came nothing"):
        answer_beside(reference, "lists", 0.1)
    reference.it.set_result(3)
    assert answer_beside(reference, "lists", 0.1) == 3
    late = Reference()
    late.it.set_exception(TimeoutError("of its own"))
    with pytest.raises(TimeoutError, match="of its own"):
        answer_beside(late, "lists", 5.0)


def test_a_page_that_is_never_drawn_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "PAGE_S", 0.1)
    one, never = Drawing.__new__(Drawing), threading.Event()
    one.missed = []
    one._thread = threading.Thread(target=never.wait, args=(20,), name="page-3", daemon=True)
    one._thread.start()
    one.wait()
    assert one.missed == ["page-3: it was not drawn within 0.1 s"]
    never.set()


def test_a_shard_that_another_process_copies_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "COPY_S", 0.2)
    lock = tmp_path / ".shard-0.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        words = r"another process of this node to copy shard-0 within 0.2 s.*shard-0.lock"
        with pytest.raises(StorageError, match=words), cache.locked(lock, "copy shard-0"):
            pass
    with cache.locked(lock, "copy shard-0"):
        pass

"""A block of the stream: what it holds, and that nothing of it stays. The stream itself: tests/ray/test_stream.py."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest

from gracl.runtime.stream import MOST_TICKETS, fill, runs_of
from gracl.types import EMPTY

IMAGES = [b"one", b"", b"three", b"four"]


def block() -> list:
    store = SimpleNamespace(read=lambda indices: [memoryview(IMAGES[index]) for index in indices])
    return fill(lambda: store, (7, 1), np.array([4, 5]), np.array([[2, 1, EMPTY], [0, 3, 3]]))


def test_each_ticket_has_the_bytes_of_its_images_in_order() -> None:
    (table,) = block()
    assert table["images"].to_pylist() == [[b"three", b""], [b"one", b"four", b"four"]]
    assert table["indices"].to_pylist() == [[2, 1, EMPTY], [0, 3, 3]]
    assert table.select(["reading", "rank", "ticket"]).to_pylist() == [
        {"reading": 7, "rank": 1, "ticket": 4},
        {"reading": 7, "rank": 1, "ticket": 5},
    ]
    table.validate(full=True)


@pytest.mark.parametrize(
    ("first", "tickets", "most"), [(0, 400, 64), (0, 400, 5), (7, 400, 64), (399, 400, 64), (0, 1, 1)]
)
def test_the_runs_are_all_tickets_in_order_and_grow(first, tickets, most):
    runs = runs_of(first, tickets, most)
    assert [ticket for run in runs for ticket in run] == list(range(first, tickets))
    sizes = [len(run) for run in runs]
    assert sizes[0] <= 2
    assert max(sizes) <= most
    assert all(after in (2 * before, most) for before, after in zip(sizes, sizes[1:-1], strict=False))


def test_there_are_few_runs():
    assert len(runs_of(0, 10_000, MOST_TICKETS)) < 10_000 / MOST_TICKETS + 6
    assert runs_of(5, 5, MOST_TICKETS) == []


def test_a_block_that_is_gone_leaves_no_view_of_an_image() -> None:
    """pyarrow 25 kept one for each image it was given: a soak of two hours found it (docs/reliability.md)."""

    def views() -> int:
        """Of our images alone: what earlier tests left behind may make and drop views of its own at any time."""
        gc.collect()
        ours = gc.get_referrers(*filter(None, IMAGES))
        return sum(type(one).__name__ == "managedbuffer" for one in ours)

    kept = [memoryview(IMAGES[0])]
    assert views() == len(kept)
    kept.clear()
    for _ in range(10):
        block()
    assert views() == 0

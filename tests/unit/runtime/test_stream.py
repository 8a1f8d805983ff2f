"""A block of the stream: what it holds, and that nothing of it stays. The stream itself: tests/ray/test_stream.py."""

import gc
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from gracl.errors import StreamError
from gracl.runtime.stream import FIRST_TICKETS, GROWTH, MOST_TICKETS, fill, images_of, runs_of
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


def told(table: pa.Table) -> list[list[bytes]]:
    return [[bytes(image) for image in row] for part in table.to_batches() for row in images_of(part)]


def test_images_are_found_by_their_places_as_arrow_finds_them() -> None:
    (table,) = block()
    rows = pa.concat_tables([table, table, table.slice(1)])
    for seen in (table, rows, rows.combine_chunks(), rows.combine_chunks().slice(2, 2), rows.slice(3), table.slice(2)):
        assert told(seen) == seen["images"].to_pylist()


def test_a_column_of_another_kind_is_refused() -> None:
    (table,) = block()
    other = table.cast(table.schema.set(4, pa.field("images", pa.list_(pa.binary()))))
    with pytest.raises(StreamError, match="large_binary from Ray Data; came binary"):
        told(other)


@pytest.mark.parametrize("batch", [[EMPTY, EMPTY], [1, EMPTY]])
def test_a_row_without_an_image_or_with_an_empty_one(batch) -> None:
    store = SimpleNamespace(read=lambda indices: [memoryview(IMAGES[index]) for index in indices])
    (table,) = fill(lambda: store, (7, 1), np.array([4, 5]), np.array([batch, batch]))
    wanted = [[b""] * (len(batch) - batch.count(EMPTY))] * 2
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert told(table) == told(pa.ipc.open_stream(sink.getvalue()).read_all()) == wanted


@pytest.mark.parametrize(
    ("first", "tickets", "most"), [(0, 400, 64), (0, 400, 5), (7, 400, 64), (399, 400, 64), (0, 1, 1)]
)
def test_the_runs_are_all_tickets_in_order_and_grow(first, tickets, most):
    runs = runs_of(first, tickets, most)
    assert [ticket for run in runs for ticket in run] == list(range(first, tickets))
    sizes = [len(run) for run in runs]
    assert sizes[0] <= FIRST_TICKETS
    assert max(sizes) <= most
    assert all(after in (GROWTH * before, most) for before, after in zip(sizes, sizes[1:-1], strict=False))


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

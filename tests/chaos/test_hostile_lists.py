"""Lists of images that are bombs: kilobytes of Parquet or CSV that stand for gigabytes, or for rows without end."""

import io
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gracl.errors import LayoutError
from gracl.images.layouts import list_images, parquet
from gracl.images.layouts.parquet import MAX_PAGE_BYTES, MAX_WORD_BYTES, ROWS_AT_ONCE, open_list
from gracl.images.layouts.table import MAX_LIST_BYTES
from gracl.images.layouts.table import NAMES as FILES
from tests.raw_images import fill

MEGABYTE = 10**6
NAMES = ("path", "object_id", "camera_id", "split")


@contextmanager
def within(megabytes: int) -> Iterator[None]:
    """The block may take so much more memory than there was before, at its highest."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("no Linux: nobody says how high it was")

    def of(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) * 1024

    pa.default_memory_pool().release_unused()
    clear.write_text("5")  # the highest is what is now
    before = of("VmRSS")
    yield
    assert of("VmHWM") - before < megabytes * MEGABYTE


def packed(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **{"compression": "zstd", **options})
    return stream.getvalue()


def rows(path: Any, /, **others: Any) -> pa.Table:
    many = len(path)
    columns = {"path": path, "object_id": [1] * many, "camera_id": [1] * many, "split": ["train"] * many}
    return pa.table({**columns, **others})


def repeated(word: str, times: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), [word])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(str(tmp_path), ["a.jpg", "b.jpg"])
    return tmp_path


def refused(root: Path, content: bytes, words: str, *, name: str = "manifest.parquet", megabytes: int = 400) -> None:
    (root / name).write_bytes(content)
    begun = time.monotonic()
    with within(megabytes), pytest.raises(LayoutError, match=words) as error:
        list_images(str(root), "manifest")
    assert time.monotonic() - begun < 30
    assert len(str(error.value)) < 2000


def test_the_measure_measures() -> None:
    with pytest.raises(AssertionError), within(100):
        bytearray(200 * MEGABYTE)
    with within(100):
        bytearray(10 * MEGABYTE)


def test_rows_without_end(root: Path) -> None:
    many = 20_000_000
    one, train = repeated("a.jpg", many), repeated("train", many)
    table = pa.table({"path": one, "object_id": one, "camera_id": one, "split": train})
    content = packed(table, row_group_size=many)
    del one, train, table
    assert len(content) < MEGABYTE
    refused(root, content, "every path once; came 1 repeated: a.jpg")
    refused(root, packed(rows(repeated("c.jpg", 2 * ROWS_AT_ONCE))), f"{ROWS_AT_ONCE} missing")


def test_nothing_without_end(root: Path) -> None:
    empty = pa.nulls(20_000_000, pa.string())
    content = packed(pa.table(dict.fromkeys(NAMES, empty)))
    assert len(content) < MEGABYTE
    refused(root, content, "a path inside the root")


@pytest.mark.parametrize("column", NAMES)
@pytest.mark.parametrize("dictionary", [True, False])
def test_one_long_word(root: Path, column: str, dictionary: bool) -> None:
    size = MAX_PAGE_BYTES + 1 if dictionary else 8 * MEGABYTE
    words = pa.array(["x" * size] * (1 if dictionary else 20))
    content = packed(rows(["a.jpg"] * len(words), **{column: words}), use_dictionary=dictionary)
    assert len(content) < MEGABYTE
    refused(root, content, rf"a page of the column {column} of \d+ bytes")


def test_a_long_word_in_many_rows(root: Path) -> None:
    """As large as a page may be, and repeated: 64 MB that 4096 rows each have, or one row alone."""
    word = "x" * (64 * MEGABYTE)
    content = packed(rows(repeated(word, ROWS_AT_ONCE)))
    assert len(content) < MEGABYTE
    refused(root, content, f"a word of {len(word)} bytes, more than {MAX_WORD_BYTES}", megabytes=700)


def test_words_as_long_as_they_may_be(root: Path) -> None:
    """Each row another one: what is read at once has a bound too."""
    words = [f"{number:08d}".ljust(MAX_WORD_BYTES - 100, "x") for number in range(50_000)]
    content = packed(rows(words))
    assert sum(map(len, words)) > 400 * MEGABYTE > 40 * len(content)
    del words
    (root / "manifest.parquet").write_bytes(content)
    with within(700), pytest.raises(LayoutError, match=f"{ROWS_AT_ONCE} missing: 00000000xx"):
        list_images(str(root), "manifest")


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_words_that_say_more_than_their_bytes(root: Path, encoding: str) -> None:
    content = packed(rows(["a.jpg", "b.jpg"]), use_dictionary=False, column_encoding={"path": encoding})
    refused(root, content, "a page of the column path in encoding [67], .*write it PLAIN or with a dictionary")


def test_a_footer_that_lies(root: Path) -> None:
    """It says of the page that it is small; what the page says of itself is what it is unpacked to."""
    size = MAX_PAGE_BYTES + 1
    content = packed(rows(["a.jpg"], path=["x" * size]))
    length = struct.unpack("<I", content[-8:-4])[0]
    footer = content[-8 - length : -8]
    said = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(0).total_uncompressed_size
    assert footer.count(zigzag(said)) >= 1
    lied = footer.replace(zigzag(said), zigzag(2**27 + 1))
    assert len(lied) == len(footer)
    lie = content[: -8 - length] + lied + content[-8:]
    metadata = pq.ParquetFile(io.BytesIO(lie)).metadata
    assert metadata.row_group(0).column(0).total_uncompressed_size == 2**27 + 1 != said
    refused(root, lie, "a page of the column path of 1342")


def test_a_column_under_another_name(root: Path) -> None:
    """pyarrow reads columns by place: the name that stands beside the pages must not decide which are looked at."""
    content = packed(rows(["a.jpg"], path=["x" * (MAX_PAGE_BYTES + 1)]))
    place = content.rindex(b"\x04path")  # of three: the schema has it, too, and before
    refused(root, content[:place] + b"\x04pbth" + content[place + 5 :], "a footer that is torn: a column under another")


def zigzag(value: int) -> bytes:
    """As Thrift's compact protocol has a number."""
    value, found = value << 1, b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (pa.array([["a.jpg"]]), "list"),
        (pa.array([{"path": "a.jpg"}]), "struct"),
        (pa.array([[["a.jpg"] * 3]]), "list"),
        (pa.array([b"a.jpg"]), "binary"),
        (pa.array([b"a.jpg"], pa.binary(5)), "fixed_size_binary"),
        (pa.array([b"a.jpg"]).dictionary_encode(), "binary"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_columns_within_columns_are_refused(root: Path, path: pa.Array, kind: str) -> None:
    refused(root, packed(rows(path)), f"the column path of .*{kind}.*no plain words or numbers")


def test_columns_that_are_not_asked_for_are_not_read(root: Path) -> None:
    """A bomb beside the four does nothing; it is counted."""
    bomb = pa.array(["x" * (200 * MEGABYTE)] * 2)
    nested = pa.array([[["y"] * 100_000] * 10] * 2)
    content = packed(rows(["a.jpg", "b.jpg"], bomb=bomb, nested=nested))
    assert len(content) < MEGABYTE
    del bomb, nested
    (root / "manifest.parquet").write_bytes(content)
    with within(100):
        listing = list_images(str(root), "manifest")
    assert [image.path for image in listing.images] == ["a.jpg", "b.jpg"]
    assert listing.notes == {"extra_columns": 2}


def test_words_that_are_not_utf8(root: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff.jpg"]).buffers())
    refused(root, packed(rows(wrong)), "a readable list at .*utf-8")


def test_a_column_twice(root: Path) -> None:
    table = rows(["a.jpg"])
    refused(root, packed(table.append_column("path", table["path"])), "came path twice")
    (root / "manifest.parquet").unlink()
    refused(root, b"path,path,object_id,camera_id,split\n", "came path twice", name="manifest.csv")


def test_no_flipped_byte_of_a_list_breaks_the_reader(root: Path) -> None:
    """Refused, or read as what it then says; and never much memory."""
    good = packed(rows(["a.jpg", "b.jpg"]))
    (root / "manifest.parquet").write_bytes(good)
    wanted, outcomes = list_images(str(root), "manifest"), set()
    dice = np.random.default_rng(0)
    with within(700):
        for _ in range(1500):
            content = bytearray(good)
            for place in dice.integers(0, len(good), 2):
                content[place] = dice.integers(256)
            (root / "manifest.parquet").write_bytes(content)
            try:
                outcomes.add(list_images(str(root), "manifest").images == wanted.images)
            except LayoutError:
                outcomes.add("refused")
    assert {"refused", True} <= outcomes


@pytest.mark.parametrize("place", [1, 2])
def test_numbers_in_a_page_that_are_none_are_refused(place: int) -> None:
    """Found by flipped bytes: where a number is to be there may be anything that Thrift knows."""
    good = {2: 100, 3: 50, 5: {1: 10, 2: 0}}
    assert parquet._fault_of(good, words=True) == ""
    with pytest.raises(ValueError, match="a page's header without its numbers"):
        parquet._fault_of(good | {5: good[5] | {place: [7]}}, words=True)


def test_a_list_that_is_too_large_is_not_read(root: Path) -> None:
    for name in FILES:
        with (root / name).open("wb") as file:
            file.truncate(MAX_LIST_BYTES + 1)  # of no room on the disk
        with within(50), pytest.raises(LayoutError, match=f"a readable list at .*more than {MAX_LIST_BYTES}"):
            list_images(str(root), "manifest")
        (root / name).unlink()


def test_csv_of_endless_columns_and_lines(root: Path) -> None:
    head = b"path,object_id,camera_id,split"
    for content, words in (
        (head + b"\n" + b"a.jpg,1,1,train\n" * 10**6, "every path once"),
        (head + b"\n" + b"x" * 10**7 + b",1,1,train\n", "a readable list at"),
        (head + b"," * 10**7 + b"\n", "a readable list at"),
        (head + b"," * 500_000 + b"\na.jpg,1,1,train" + b"," * 500_000 + b"\n", "a readable list at"),
    ):
        refused(root, content, words, name="manifest.csv", megabytes=700)
    many = 60_000  # as many as there may be
    (root / "manifest.csv").write_bytes(head + b"," * many + b"\na.jpg,1,1,train" + b"," * many + b"\n")
    with within(700):
        assert list_images(str(root), "manifest").notes == {"extra_columns": many}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "none"},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"data_page_version": "2.0", "compression": "snappy", "data_page_size": 1000},
        {"dictionary_pagesize_limit": 1000, "data_page_size": 500},
        {"row_group_size": 1000},
        {"version": "1.0", "compression": "gzip"},
        {"use_dictionary": False, "column_encoding": {"object_id": "DELTA_BINARY_PACKED"}},
        {"write_statistics": True, "write_page_checksum": True, "write_page_index": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_honest_lists_of_each_kind_are_read_as_they_were(options: dict[str, Any], kind: pa.DataType) -> None:
    """The naive reading: the whole table at once."""
    many = 3 * ROWS_AT_ONCE + 5
    path = pa.array([f"{number % 97}/{number:07d}.jpg" for number in range(many)])
    gaps = pa.array([None if number % 5 == 0 else number // 10 for number in range(many)], pa.int64())
    table = pa.table(
        {
            "path": path.cast(kind) if not pa.types.is_dictionary(kind) else path.dictionary_encode(),
            "object_id": gaps,
            "more": [1.5] * many,
            "camera_id": [float(number % 6) for number in range(many)],
            "split": [("train", "query", None)[number % 3] for number in range(many)],
        }
    )
    content = packed(table, **options)
    names, batches = open_list(content, NAMES)
    assert names == table.column_names
    read: dict[str, list[Any]] = {name: [] for name in NAMES}
    for batch in batches:
        assert len(batch["path"]) <= ROWS_AT_ONCE
        for name in NAMES:
            read[name] += batch[name]
    assert read == {name: pq.read_table(io.BytesIO(content))[name].to_pylist() for name in NAMES}


def test_each_page_is_looked_at() -> None:
    """As many values as the footer counts stand in the pages' headers, and their sizes sum up to the column's."""
    many = 20_000
    content = packed(rows([f"{number}.jpg" for number in range(many)]), data_page_size=1000, row_group_size=7000)
    metadata, seen = pq.ParquetFile(io.BytesIO(content)).metadata, 0
    chunks = list(parquet._chunks(parquet._footer(content)))
    assert [one[0] for one in chunks] == [*NAMES] * metadata.num_row_groups
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(0)
        ((start, end),) = [one[2:] for one in chunks[group * 4 : group * 4 + 4] if one[0] == "path"]
        assert end - start == chunk.total_compressed_size
        pages = list(parquet._pages(content, start, end))
        assert sum(page.get(5, {}).get(1, 0) for page in pages) == chunk.num_values
        assert 0 <= chunk.total_uncompressed_size - sum(page[2] for page in pages) < 200 * len(pages)
        seen += len(pages)
    assert seen > 20

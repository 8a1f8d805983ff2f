"""Parquet of strangers: what its pages will take of memory is looked at before one is read, and then some at a time.

A few kilobytes may stand for gigabytes: a page that unpacks to anything, one long word for millions of rows, words that
each repeat the one before. What the footer says of that need not be true, but each page is unpacked to just the size
that stands in front of it, so there it is read.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

# pyarrow writes pages of 1 MiB unless told otherwise.
MAX_PAGE_BYTES = 128 * 2**20
# Longer than any path. A page's words may take as much each, on average.
MAX_WORD_BYTES = 8 * 2**10
# Some thousand runs of rows with some hundred columns each.
MAX_FOOTER_BYTES = 16 * 2**20
ROWS_AT_ONCE = 4096
_BYTE_ARRAY = 6
# For numbers: PLAIN, PLAIN_DICTIONARY, RLE, DELTA_BINARY_PACKED, RLE_DICTIONARY, BYTE_STREAM_SPLIT. Of words those are
# left out that may say more than their bytes: each with the beginning of the one before, or lengths without end.
_ENCODINGS = {0, 2, 3, 5, 8, 9}
_WORD_ENCODINGS = {0, 2, 8}
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = 5, 7, 8


def open_list(content: bytes, columns: Sequence[str]) -> tuple[list[str], Iterator[dict[str, list[Any]]]]:
    """The names of all columns of a table, and the values of some, a few thousand rows at a time.

    Args:
        content: a Parquet file.
        columns: which to read; if one is not there just once, there are no rows.

    Raises:
        pa.ArrowException: it is no Parquet; also while it is read.
        ValueError: a column of lists or of bytes; pages that would take too much memory; also while it is read: a word
            that is too long, or no UTF-8.
    """
    file = pa.parquet.ParquetFile(pa.BufferReader(content))
    names = list(file.schema_arrow.names)
    if any(names.count(name) != 1 for name in columns):
        return names, iter(())
    words = [name for name in columns if _is_word(file.schema_arrow.field(name).type, name)]
    _check_pages(content, columns)
    file = pa.parquet.ParquetFile(pa.BufferReader(content), read_dictionary=words)
    return names, _rows(file, columns)


def _is_word(kind: pa.DataType, name: str) -> bool:
    """Whether values are text, of which one may be of any length."""
    if pa.types.is_dictionary(kind):
        return _is_word(kind.value_type, name)
    types = pa.types
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType) or any(is_so(kind) for is_so in binary):
        raise ValueError(f"the column {name} of {kind}, and no plain words or numbers")
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _rows(file: pa.parquet.ParquetFile, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns), use_threads=False):
        yield {name: _values(batch.column(name)) for name in columns}


def _values(column: pa.Array) -> list[Any]:
    """The values of a column; a word that stands in many rows is made once."""
    places: list[int | None] | None = None
    if pa.types.is_dictionary(column.type):
        used = column.indices.dictionary_encode()
        column, places = column.dictionary.take(used.dictionary), used.indices.to_pylist()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        longest = pa.compute.max(pa.compute.binary_length(column)).as_py() or 0
        if longest > MAX_WORD_BYTES:
            raise ValueError(f"a word of {longest} bytes, more than {MAX_WORD_BYTES}")
    values: list[Any] = column.to_pylist()
    return values if places is None else [None if place is None else values[place] for place in places]


def _check_pages(content: bytes, columns: Sequence[str]) -> None:
    """Refuses columns whose pages would take too much memory.

    Raises:
        ValueError: naming the column; or the footer is torn.
    """
    for name, words, start, end in _chunks(_footer(content)):
        if name in columns:
            for page in _pages(content, start, end):
                if fault := _fault_of(page, words=words):
                    raise ValueError(f"a page of the column {name} {fault}")


def _footer(content: bytes) -> dict[int, Any]:
    """What stands at a file's end; not by pyarrow, which ends the process where a column's part of it is torn."""
    size = int.from_bytes(content[-8:-4], "little")
    if size > MAX_FOOTER_BYTES:
        raise ValueError(f"a footer of {size} bytes, more than {MAX_FOOTER_BYTES}")
    try:
        return _struct(content[-8 - size : -8], 0, 0)[0]
    except IndexError:
        raise ValueError("a footer that is torn") from None


def _chunks(footer: dict[int, Any]) -> Iterator[tuple[str, bool, int, int]]:
    """Of each run of pages: the column's name, whether it is of words, first byte and end. Numbers are those of
    Parquet's `FileMetaData`."""
    try:
        leaves = list(_leaves(iter(footer[2][1:]), int(footer[2][0].get(5, 0))))
        for group in footer[4]:
            if len(group[1]) != len(leaves):
                raise ValueError(f"a footer that is torn: {len(group[1])} columns, not {len(leaves)}")
            for column, leaf in zip(group[1], leaves, strict=True):
                told = column[3]
                if told[3] != leaf:  # pyarrow reads by place, whatever the name that stands here
                    raise ValueError("a footer that is torn: a column under another name")
                data, first = int(told[9]), int(told.get(11, 0))
                start = first if 0 < first < data else data
                name = b".".join(told[3]).decode()
                yield name, told[1] == _BYTE_ARRAY, _positive(start), start + _positive(int(told[7]))
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"a footer that is torn: {error!r}"[:200]) from None


def _leaves(elements: Iterator[dict[int, Any]], children: int) -> Iterator[list[bytes]]:
    """The paths of the columns that have pages, from the schema, which stands as a tree written down in order."""
    for _ in range(children):
        element = next(elements, None)
        if element is None:
            raise ValueError("a footer that is torn: a schema that ends too early")
        inner = int(element.get(5, 0))
        if not inner:
            yield [element[4]]
        for path in _leaves(elements, inner):
            yield [element[4], *path]


def _positive(number: int) -> int:
    if number < 0:
        raise ValueError(f"a footer that is torn: a place of {number}")
    return number


def _fault_of(page: dict[int, Any], *, words: bool) -> str:
    size = page.get(2, 0)
    if size > MAX_PAGE_BYTES:
        return f"of {size} bytes unpacked, more than {MAX_PAGE_BYTES}"
    data = page.get(_DATA_PAGE) or page.get(_DATA_PAGE_2)
    if not isinstance(data, dict):
        return ""
    rows, encoding = data.get(1), data.get(2 if page.get(_DATA_PAGE) else 4)
    if not isinstance(rows, int) or not isinstance(encoding, int):
        raise ValueError("a page's header without its numbers")
    if encoding not in (_WORD_ENCODINGS if words else _ENCODINGS):
        return f"in encoding {encoding}, which may stand for more than its bytes; write it PLAIN or with a dictionary"
    if words and size > (rows + 1) * MAX_WORD_BYTES:
        return f"of {size} bytes for {rows} rows, more than {MAX_WORD_BYTES} each"
    return ""


def _pages(content: bytes, start: int, end: int) -> Iterator[dict[int, Any]]:
    """The headers of the pages in a run of bytes: values by the numbers that they have in Parquet's `PageHeader`."""
    while start < min(end, len(content)):
        try:
            page, start = _struct(content, start, 0)
        except IndexError:
            raise ValueError("a page's header that is torn") from None
        if not all(isinstance(page.get(name), int) and page[name] >= 0 for name in (2, 3)):
            raise ValueError("a page's header without its sizes")
        yield page
        start += page[3]


def _struct(content: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """A structure in Thrift's compact protocol, and where it ends."""
    if depth > 16:
        raise ValueError("a header that is nested too deeply")
    values, number = dict[int, Any](), 0
    while kind := content[at]:
        at += 1
        if kind >> 4:
            number += kind >> 4
        else:
            number, at = _integer(content, at)
        values[number], at = _value(content, at, kind & 15, depth)
    return values, at + 1


def _value(content: bytes, at: int, kind: int, depth: int, *, inside: bool = False) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false; a byte of their own in lists alone
        return kind == 1, at + inside
    if kind == 3:
        return content[at], at + 1
    if kind in (4, 5, 6):
        return _integer(content, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(content, at)
        return content[at : at + length], at + length
    if kind in (9, 10):
        size, kind = content[at] >> 4, content[at] & 15
        size, at = _varint(content, at + 1) if size == 15 else (size, at + 1)
        values = list[Any]()
        for _ in range(size):
            value, at = _value(content, at, kind, depth + 1, inside=True)
            content[at - 1]  # a list that claims to go on behind the end
            values.append(value)
        return values, at
    if kind == 12:
        return _struct(content, at, depth + 1)
    raise ValueError(f"a header with a value of kind {kind}")


def _integer(content: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while content[at] & 128:
        value |= (content[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise ValueError("a header with a number that does not end")
    return value | content[at] << shift, at + 1

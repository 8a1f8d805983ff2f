"""A list of images that the user wrote: CSV or Parquet with the columns path, object_id, camera_id, split."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv

from gracl.errors import LayoutError, expected
from gracl.images import storage
from gracl.images.layouts.files import RawFile, inside, list_files, shown
from gracl.images.layouts.listing import SPLITS, Entry, Found, Split, twice_refused
from gracl.images.layouts.parquet import open_list
from gracl.types import UNKNOWN

NAMES = ("manifest.csv", "manifest.parquet")
COLUMNS = ("path", "object_id", "camera_id", "split")
# Room for some thirty million lines of CSV; as Parquet such a list is a tenth of that.
MAX_LIST_BYTES = 2 * 2**30
MAX_HEAD_BYTES = 64 * 2**10
NOTHING = ("", "-1", "None", "null", "nan", "NaN")

Rows = dict[str, list[Any]]


def find_table(root: str) -> tuple[str, str]:
    """The root of the images and the URI of their list: `root` may be the list itself, or the folder in which it lies.

    Raises:
        LayoutError: neither `manifest.csv` nor `manifest.parquet` is in the folder, or both are.
    """
    if root.endswith((".csv", ".parquet")):
        return storage.parent(root), root
    there = [name for name in NAMES if name in storage.names_in(root)]
    if len(there) != 1:
        came = "both" if there else "neither"
        raise LayoutError(expected(f"{' or '.join(NAMES)} in {root}", came, "let raw= be the list itself"))
    return root, storage.join(root, there[0])


def table(root: str) -> Found:
    """Reads the images that a list names, and only those.

    Paths are relative to the folder of the list. Identities and cameras may be numbers or words; empty or -1 is
    unknown, which only images of the train split may be. Columns beyond the four are not read, but counted in the
    notes.

    Raises:
        LayoutError: the list is missing, unreadable, empty or larger than it may be, lacks a column, names an unknown
            split, a path outside the root, one that does not exist, or one twice.
    """
    base, uri = find_table(root)
    columns, batches = open_words(uri, needed=COLUMNS)
    files, entries, known = _Files(base), list[Entry](), dict[str, str]()
    for rows in batches:
        paths = [inside(word_of(path)) for path in rows["path"]]
        splits = [_split(word_of(word)) for word in rows["split"]]
        who, where = ([_name(value, known) for value in rows[column]] for column in ("object_id", "camera_id"))
        # Row for row a file that is there and was not named before: a list cannot claim more than there is.
        found = files.take(paths)
        entries += [Entry(*row) for row in zip(found, splits, who, where, strict=True)]
    if not entries:
        raise LayoutError(expected(f"rows with {', '.join(COLUMNS)} in {uri}", "no row", "complete the list"))
    return Found(entries, posixpath.basename(uri), {"extra_columns": len(columns) - len(COLUMNS)})


def open_words(uri: str, *, needed: Sequence[str], optional: Sequence[str] = ()) -> tuple[list[str], Iterator[Rows]]:
    """The names of all columns of a CSV or Parquet list, and the rows of those asked for, some thousands at a time.

    Raises:
        LayoutError: the list is missing, unreadable or larger than it may be, or lacks a column that is needed; also
            while it is read.
    """
    if not storage.exists(uri):
        raise LayoutError(expected(f"a list of images at {uri}", "no such file", "check the path"))
    try:
        content = storage.read_plain(uri, at_most=MAX_LIST_BYTES)
        opened = open_csv if uri.endswith(".csv") else open_list
        columns, batches = opened(content, needed)
        there = [*needed, *(name for name in optional if columns.count(name) == 1)]
        if len(there) > len(needed):
            columns, batches = opened(content, there)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(uri, error) from error
    missing = [name for name in needed if name not in columns]
    twice = [name for name in (*needed, *optional) if columns.count(name) > 1]
    if missing or twice:
        came = f"{', '.join(missing)} missing" if missing else f"{', '.join(twice)} twice"
        raise LayoutError(expected(f"rows with {', '.join(needed)} in {uri}", came, "complete the list"))
    return columns, _readable(batches, uri)


def _readable(batches: Iterator[Rows], uri: str) -> Iterator[Rows]:
    """The same rows, with what is wrong with the file said in our words."""
    while True:
        try:
            rows = next(batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(uri, error) from error
        if rows is None:
            return
        yield rows


def _unreadable(uri: str, error: Exception) -> LayoutError:
    return LayoutError(expected(f"a readable list at {uri}", str(error)[:500], "repair the file"))


def open_csv(content: bytes, columns: Sequence[str]) -> tuple[list[str], Iterator[Rows]]:
    """As `open_list`, of CSV; all values are text.

    Raises:
        pa.ArrowException: it is no CSV, or has a line of more than 1 MiB, or 64 KiB of names; also while it is read.
    """
    # As text: inference would make 7 of «007» and true of «true».
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False, include_columns=list(columns)
    )
    # A column costs some kilobytes, so the line of their names has a bound, which is that of the first block.
    with pa.csv.open_csv(pa.BufferReader(content), read_options=pa.csv.ReadOptions(block_size=MAX_HEAD_BYTES)) as first:
        names = list(first.schema.names)
    if any(names.count(name) != 1 for name in columns):
        return names, iter(())
    batches = pa.csv.open_csv(pa.BufferReader(content), convert_options=convert)
    return names, (batch.to_pydict() for batch in batches)


def word_of(value: object) -> str:
    """A cell of a list as a word; nothing is the empty one."""
    # A column of whole numbers with gaps comes out of data frames as floats: 7.0 is 7.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _name(value: object, known: dict[str, str]) -> int | str:
    """An identity or camera; one string for each, however many rows have it."""
    word = word_of(value)
    return UNKNOWN if word in NOTHING else known.setdefault(word, word)


def _split(word: str) -> Split:
    for split in SPLITS:
        if word == split:
            return split
    raise LayoutError(expected(f"{', '.join(SPLITS)} in the column split", repr(word), "correct the list"))


class _Files:
    """The files under a root that a list may name, each once; only folders that occur are looked into."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._folders, self._files, self._taken = set[str](), dict[str, RawFile](), set[str]()

    def take(self, paths: Sequence[str]) -> list[RawFile]:
        """Size and stamp of every path.

        Raises:
            LayoutError: one is not there, or was taken before.
        """
        for folder in sorted({posixpath.dirname(path) for path in paths} - self._folders):
            self._folders.add(folder)
            if storage.is_folder(storage.join(self._base, folder) if folder else self._base):
                self._files |= {file.path: file for file in list_files(self._base, folder, recursive=False)}
        missing = [path for path in paths if path not in self._files]
        if missing:
            what = f"every listed image under {self._base}"
            raise LayoutError(expected(what, f"{len(missing)} missing: {shown(missing)}", "check the list"))
        twice = [path for path, times in Counter(paths).items() if times > 1 or path in self._taken]
        if twice:
            raise twice_refused(twice)
        self._taken.update(paths)
        return [self._files[path] for path in paths]

"""A list of images that the user wrote: CSV or Parquet with the columns path, object_id, camera_id, split."""

import io
import posixpath
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from gracl.errors import LayoutError, expected
from gracl.images import storage
from gracl.images.layouts.files import RawFile, inside, list_files, shown
from gracl.images.layouts.listing import SPLITS, Entry, Found, Split
from gracl.types import UNKNOWN

NAMES = ("manifest.csv", "manifest.parquet")
COLUMNS = ("path", "object_id", "camera_id", "split")
NOTHING = ("", "-1", "None", "null", "nan", "NaN")


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
    unknown, which only images of the train split may be. Columns beyond the four are counted in the notes.

    Raises:
        LayoutError: the list is missing, unreadable or empty, lacks a column, names an unknown split, a path outside
            the root or one that does not exist.
    """
    base, uri = find_table(root)
    rows, extra = read_words(uri, needed=COLUMNS)
    paths = [inside(path) for path in rows["path"]]
    splits = [_split(word) for word in rows["split"]]
    files = _files(base, paths)
    entries = [
        Entry(
            files[path], split, UNKNOWN if identity in NOTHING else identity, UNKNOWN if camera in NOTHING else camera
        )
        for path, split, identity, camera in zip(paths, splits, rows["object_id"], rows["camera_id"], strict=True)
    ]
    return Found(entries, posixpath.basename(uri), {"extra_columns": extra})


def read_words(uri: str, *, needed: Sequence[str], optional: Sequence[str] = ()) -> tuple[dict[str, list[str]], int]:
    """Columns of a CSV or Parquet list as words, and how many further columns there were.

    Raises:
        LayoutError: the list is missing, unreadable or empty, or lacks a column that is needed.
    """
    if not storage.exists(uri):
        raise LayoutError(expected(f"a list of images at {uri}", "no such file", "check the path"))
    content = storage.read_bytes(uri)
    wanted = [*needed, *optional]
    try:
        data = _read_csv(content, wanted) if uri.endswith(".csv") else pa.parquet.read_table(io.BytesIO(content))
    except pa.ArrowException as error:
        raise LayoutError(expected(f"a readable list at {uri}", str(error), "repair the file")) from error
    missing = [column for column in needed if column not in data.column_names]
    if missing or not data.num_rows:
        came = f"{', '.join(missing)} missing" if missing else "no row"
        raise LayoutError(expected(f"rows with {', '.join(needed)} in {uri}", came, "complete the list"))
    there = [column for column in wanted if column in data.column_names]
    words = {name: [_word(value) for value in data[name].to_pylist()] for name in there}
    return words, data.num_columns - len(there)


def _word(value: object) -> str:
    # A column of whole numbers with gaps comes out of data frames as floats: 7.0 is 7.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _read_csv(content: bytes, columns: Sequence[str]) -> pa.Table:
    # As text: inference would make 7 of «007» and true of «true».
    as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False)
    return pa.csv.read_csv(io.BytesIO(content), convert_options=as_text)


def _split(word: str) -> Split:
    for split in SPLITS:
        if word == split:
            return split
    raise LayoutError(expected(f"{', '.join(SPLITS)} in the column split", repr(word), "correct the list"))


def _files(base: str, paths: Sequence[str]) -> dict[str, RawFile]:
    """Size and stamp of every listed path; only the folders that occur are looked into."""
    files: dict[str, RawFile] = {}
    for folder in sorted({posixpath.dirname(path) for path in paths}):
        if storage.is_folder(storage.join(base, folder) if folder else base):
            files |= {file.path: file for file in list_files(base, folder, recursive=False)}
    missing = [path for path in paths if path not in files]
    if missing:
        raise LayoutError(
            expected(f"every listed image under {base}", f"{len(missing)} missing: {shown(missing)}", "check the list")
        )
    return files

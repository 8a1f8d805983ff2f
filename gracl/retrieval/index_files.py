"""The files of a stored index: written whole, read with suspicion.

`index.json` is written last and names the rest: for each table that went in the embeddings (`features-0000.npy`, mapped
into memory, not read into it) and what they belong to (`rows-0000.arrow`); and faiss's index.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
from numpy import ndarray

from gracl.checksums import is_verified, sha256_of
from gracl.errors import GraclError, NonFiniteValue, StoredIndexError, expected
from gracl.retrieval.engines import Kind
from gracl.types import Feature

SCHEMA_VERSION = 2
INDEX = "index.json"
AGAIN = "build the index again"
MAX_FACTS_BYTES = 16 * 2**20
KINDS: dict[str, type | tuple[type, ...]] = {
    "dtype": str,
    "model": str,
    "flip": bool,
    "checkpoint": str,
    "effort_asked": int,
    "effort": int,
    "recall": (int, float),
    "engine": str,
    "engine_sha256": str,
}
ROWS_SCHEMA = pa.schema([("path", pa.string()), ("index", pa.int64()), ("camera", pa.string()), ("track", pa.string())])
# Embeddings of some pictures, and the columns path, index, camera and track of the same.
Some = tuple[Feature[ndarray, "rows dim"], pa.Table]


@dataclass(frozen=True)
class Segment:
    """One table of embeddings in an index: its number, rows, where it came from, and the digest of that; the checksums
    of its two files, empty in an index of schema 1, whose files are taken as they are."""

    number: int
    rows: int
    table: str
    source: str
    data_digest: str
    features_sha256: str = ""
    rows_sha256: str = ""


@dataclass(frozen=True)
class Facts:
    """What `index.json` says. `effort` is what a question looks at, `effort_asked` what was asked for (0: chosen anew
    whenever the index grows). `recall` is the share of the ten truly nearest that is found, measured on drawn rows."""

    schema_version: int
    kind: Kind
    rows: int
    feature_size: int
    dtype: str
    model: str
    flip: bool
    checkpoint: str
    effort_asked: int
    effort: int
    recall: float
    segments: tuple[Segment, ...]
    engine: str
    engine_sha256: str


def keep(
    place: Path, origin: Segment, parts: Iterable[Some], dtype: str | None = None
) -> tuple[Segment, Feature[ndarray, "rows dim"]]:
    """Writes the embeddings and rows of a table; what is there of an attempt before is written over.

    Returns:
        The segment with its checksums, and the embeddings.
    """
    number, rows = origin.number, origin.rows
    features: np.memmap | None = None
    done = 0
    with pa.OSFile(str(place / _rows_name(number)), "wb") as file, pa.ipc.new_file(file, ROWS_SCHEMA) as writer:
        for some, about in parts:
            _check_rows(some)
            if features is None:
                shape = (rows, some.shape[1])
                kept = np.dtype(dtype or some.dtype)
                features = np.lib.format.open_memmap(place / _features_name(number), "w+", kept, shape)
            features[done : done + len(some)] = some
            writer.write_table(about.cast(ROWS_SCHEMA))
            done += len(some)
    if features is None or done != rows:
        raise GraclError(expected(f"{rows} embeddings", done, "extract again"))
    features.flush()
    flush(place / _rows_name(number))
    sums = [sha256_of(place / name) for name in (_features_name(number), _rows_name(number))]
    return replace(origin, features_sha256=sums[0], rows_sha256=sums[1]), features


def _check_rows(features: Feature[ndarray, "rows dim"]) -> None:
    lengths = np.linalg.norm(features.astype(np.float32), axis=1)
    if not np.isfinite(lengths).all():
        raise NonFiniteValue(expected("finite embeddings", "NaN or infinity", "see the model that made them"))
    if (np.abs(lengths - 1) > 1e-2).any():
        came = f"lengths from {lengths.min():.3g} to {lengths.max():.3g}"
        raise GraclError(expected("embeddings of length 1", came, "divide each by its length"))


def _features_name(number: int) -> str:
    return f"features-{number:04}.npy"


def _rows_name(number: int) -> str:
    return f"rows-{number:04}.arrow"


def write_facts(place: Path, facts: Facts) -> None:
    """Lets the index be what the facts say, from one moment to the next."""
    temporary = place / f"{INDEX}.{os.getpid()}.part"
    temporary.write_text(json.dumps(asdict(facts), indent=1, ensure_ascii=False) + "\n")
    flush(temporary)
    os.replace(temporary, place / INDEX)


def tidy(place: Path, facts: Facts) -> None:
    """Removes the engines of before, and what an attempt that failed left."""
    used = {INDEX, facts.engine} | {_features_name(segment.number) for segment in facts.segments}
    used |= {_rows_name(segment.number) for segment in facts.segments}
    four = "[0-9]" * 4
    for pattern in (f"features-{four}.npy", f"rows-{four}.arrow", f"engine-{four}.faiss", f"{INDEX}.*.part"):
        for path in place.glob(pattern):
            if path.name not in used:
                path.unlink()


def read_facts(path: Path) -> Facts:
    """The facts of an index.

    Raises:
        StoredIndexError: there is none, or it is torn or of another schema.
    """
    if not path.is_file():
        raise StoredIndexError(expected(f"an index in {path.parent}", "none", "build one with pipelines/index.py"))
    try:
        if path.stat().st_size > MAX_FACTS_BYTES:
            raise ValueError(f"more than {MAX_FACTS_BYTES} bytes")
        values = json.loads(path.read_bytes())
        if values["schema_version"] not in (1, SCHEMA_VERSION):
            raise ValueError(f"schema version {values['schema_version']}")
        segments = tuple(Segment(**segment) for segment in values["segments"])
        facts = Facts(**{**{entry.name: values[entry.name] for entry in fields(Facts)}, "segments": segments})
        strange = [name for name, kind in KINDS.items() if not isinstance(getattr(facts, name), kind)]
        if strange or facts.dtype not in ("float32", "float16") or facts.effort < 0:
            raise ValueError(f"values that cannot be: {', '.join(strange) or 'dtype or effort'}")
        counts = [facts.rows, facts.feature_size, *(number for one in segments for number in (one.number, one.rows))]
        if facts.kind not in get_args(Kind) or not all(type(count) is int and 0 <= count < 2**48 for count in counts):
            raise ValueError("no such kind, or a count that is none")
        if Path(facts.engine).name != facts.engine or sum(one.rows for one in segments) != facts.rows or not segments:
            raise ValueError("parts that do not fit together")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoredIndexError(expected(f"an index's facts in {path}", repr(error), AGAIN)) from error
    return facts


def mapped(place: Path, segment: Segment, facts: Facts, *, compared: bool) -> Feature[ndarray, "rows dim"]:
    """The embeddings of a segment, mapped into memory; with `compared` their checksum is looked at.

    Raises:
        StoredIndexError: missing, torn, or others.
    """
    path = place / _features_name(segment.number)
    if compared:
        _compare(f"the embeddings {path}", path, segment.features_sha256)
    try:
        features = np.lib.format.open_memmap(path, "r")
    except (OSError, ValueError, EOFError) as error:
        raise StoredIndexError(expected(f"the embeddings {path}", error, AGAIN)) from error
    if features.shape != (segment.rows, facts.feature_size) or str(features.dtype) != facts.dtype:
        came = f"{features.dtype} {list(features.shape)}"
        raise StoredIndexError(expected(f"{facts.dtype} [{segment.rows}, {facts.feature_size}] in {path}", came, AGAIN))
    return features


def rows_of(place: Path, segment: Segment, *, compared: bool) -> pa.Table:
    """Whom they belong to; with `compared` their checksum is looked at.

    Raises:
        StoredIndexError: missing, torn, or others.
    """
    path = place / _rows_name(segment.number)
    if compared:
        _compare(f"the rows {path}", path, segment.rows_sha256)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise StoredIndexError(expected(f"the rows {path}", error, AGAIN)) from error
    if table.num_rows != segment.rows:
        raise StoredIndexError(expected(f"{segment.rows} rows in {path}", table.num_rows, AGAIN))
    return table


def _compare(what: str, path: Path, wanted: str) -> None:
    """A flipped bit would be somebody else's path, or a similarity that is none."""
    if wanted and is_verified() and path.is_file() and sha256_of(path) != wanted:
        raise StoredIndexError(expected(f"{what} as written", "another content", AGAIN))


def flush(path: Path) -> None:
    """Waits until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""Embedding tables: one row for each picture, in Parquet, written in parts, read whole or part by part.

`part-00000.parquet`, ... hold `path string`, `index int64`, `camera string`, `track string` (the last two null where
unknown) and `embedding`, a fixed-size list of float32 or float16, rows of length 1 in order of index. `asked.json` says
what was asked for and is written first; `manifest.json` is written last: a table without it is not finished.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64
from numpy import ndarray

from gracl.errors import ShardError, expected
from gracl.images import storage
from gracl.images.manifests import FILE_NAME, BadImage
from gracl.images.plain_json import check_values, read_values, told
from gracl.types import Feature

SCHEMA_VERSION = 2
ASKED, MANIFEST = "asked.json", "manifest.json"
_BAD = b"gracl.bad_images"
# A line of a manifest for each picture that could not be read; a part is what one actor has in memory.
MAX_MANIFEST_BYTES = 256 * 2**20
MAX_PART = 2**20
_AGAIN = "extract again into a new folder"


@dataclass(frozen=True)
class Asked:
    """What one extraction was asked for: who repeats it, goes on with it.

    `source` is a split of shards (root and name) or where the pictures lie; `data_digest` the split's, or that of
    names, cameras and tracks; `images` how many there are; `part` of each file; `model` the digest of the encoder;
    `dtype` "float32" or "float16"; `flip` averaged with mirror images.
    """

    schema_version: int
    source: str
    data_digest: str
    images: int
    part: int
    model: str
    feature_size: int
    dtype: str
    flip: bool
    precision: str

    def to_json(self) -> bytes:
        """As it stands on disk."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True)
class Part:
    """One finished file: name, rows, and the pictures of it that could not be read."""

    file: str
    rows: int
    bad: tuple[BadImage, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of a table. `paths`, `cameras` and `tracks` are Arrow strings, null where unknown."""

    paths: pa.ChunkedArray
    indices: Int64[ndarray, "rows"]
    cameras: pa.ChunkedArray
    tracks: pa.ChunkedArray
    features: Feature[ndarray, "rows dim"]

    def __len__(self) -> int:
        return len(self.indices)


def part_name(number: int) -> str:
    """The file of a part."""
    return f"part-{number:05}.parquet"


def write_part(
    uri: str,
    *,
    paths: Sequence[str],
    indices: Int64[ndarray, "rows"],
    cameras: Sequence[str | None],
    tracks: Sequence[str | None],
    features: Float32[ndarray, "rows dim"],
    dtype: str,
    bad: Sequence[BadImage],
) -> None:
    """Writes one part, whole or not at all, with the list of what could not be read in its footer."""
    value = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    flat = pa.array(np.ascontiguousarray(features, dtype).reshape(-1), value)
    embedding = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    table = pa.table(
        {
            "path": pa.array(paths, pa.string()),
            "index": pa.array(indices, pa.int64()),
            "camera": pa.array(cameras, pa.string()),
            "track": pa.array(tracks, pa.string()),
            "embedding": embedding,
        }
    ).replace_schema_metadata({_BAD: json.dumps([asdict(image) for image in bad])})
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=["camera", "track"],
        column_encoding={"path": "DELTA_BYTE_ARRAY", "index": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    )
    storage.write_bytes(uri, file.getbuffer())


def finished_part(root: str, file: str) -> Part | None:
    """What a part's footer says; None where it cannot be read, so that it is made anew."""
    try:
        found = pq.read_metadata(io.BytesIO(storage.read_bytes(storage.join(root, file))))
        bad = tuple(BadImage(**image) for image in json.loads((found.metadata or {})[_BAD]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    return Part(file, found.num_rows, bad)


def asked_of(root: str) -> Asked | None:
    """What the extraction into a folder was asked for; None where none was begun.

    Raises:
        ShardError: it cannot be read.
    """
    uri = storage.join(root, ASKED)
    return _asked_in(_values(uri, {})) if storage.exists(uri) else None


def _asked_in(values: Mapping[str, Any]) -> Asked:
    return Asked(**{entry.name: values[entry.name] for entry in fields(Asked)})


def write_manifest(root: str, asked: Asked, parts: Sequence[Part], unnamed: Sequence[str], checkpoint: str) -> None:
    """Closes a table."""
    manifest = asdict(asked) | {
        "checkpoint": checkpoint,
        "rows": sum(part.rows for part in parts),
        "bad_images": [asdict(image) for part in parts for image in part.bad]
        + [asdict(BadImage(name, "a name that is no UTF-8")) for name in unnamed],
        "files": [part.file for part in parts],
    }
    storage.write_bytes(
        storage.join(root, MANIFEST), (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    )


class EmbeddingTable:
    """A finished table.

    Args:
        root: its folder or URI.

    Raises:
        ShardError: there is none, it is not finished, torn, or of another schema.
    """

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root)
        uri = storage.join(self.root, MANIFEST)
        if not storage.exists(uri):
            unfinished = storage.exists(storage.join(self.root, ASKED))
            came = "an unfinished one" if unfinished else "none"
            do = "run its extraction again, which goes on" if unfinished else "make one with pipelines/extract.py"
            raise ShardError(expected(f"an embedding table in {self.root}", came, do))
        kinds = {"rows": int, "bad_images": list[dict[str, str]], "files": list[str], "checkpoint": str}
        values = _values(uri, kinds)
        self.asked = _asked_in(values)
        self.files: list[str] = values["files"]
        self.checkpoint: str = values["checkpoint"]
        self._rows: int = values["rows"]
        try:
            self.bad = tuple(BadImage(**image) for image in values["bad_images"])
            if not all(FILE_NAME.fullmatch(file) for file in self.files):
                raise ValueError("a file that is no plain name")
        except (TypeError, ValueError) as error:
            raise ShardError(expected(f"the fields of an embedding table in {uri}", error, _AGAIN)) from error

    def __len__(self) -> int:
        return self._rows

    def parts(self) -> Iterator[Rows]:
        """The rows file by file, in order of index.

        Raises:
            ShardError: a file is missing, torn, or has other columns.
        """
        for file in self.files:
            yield self._part(file)

    def read(self) -> Rows:
        """All rows, in order of index."""
        parts = list(self.parts())
        if (rows := sum(map(len, parts))) != len(self) or not parts:
            raise ShardError(expected(f"{len(self)} rows in the parts of {self.root}", rows, _AGAIN))
        strings = (
            pa.chunked_array([chunk for part in parts for chunk in getattr(part, name).chunks], pa.string())
            for name in ("paths", "cameras", "tracks")
        )
        paths, cameras, tracks = strings
        features = np.concatenate([part.features for part in parts])
        return Rows(paths, np.concatenate([part.indices for part in parts]), cameras, tracks, features)

    def _part(self, file: str) -> Rows:
        uri = storage.join(self.root, file)
        dim = self.asked.feature_size
        try:
            content = io.BytesIO(storage.read_bytes(uri))
            with pq.ParquetFile(content, page_checksum_verification=True) as parquet:
                _check_size(parquet.metadata, self.asked)
                table = parquet.read()
            embedding = table["embedding"].combine_chunks()
            if embedding.type.list_size != dim or str(embedding.type.value_type) not in ("float", "halffloat"):
                raise ValueError(f"embeddings of {embedding.type}")
            if table["embedding"].null_count or table["index"].null_count or table["path"].null_count:
                raise ValueError("rows that lack a value")
            values = embedding.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
            indices = table["index"].to_numpy()
        except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
            raise ShardError(expected(f"a readable part of embeddings at {uri}", error, _AGAIN)) from error
        return Rows(table["path"], indices, table["camera"], table["track"], values)


def _check_size(found: pq.FileMetaData, asked: Asked) -> None:
    """Refuses, before memory is taken, a file that claims more rows than a part has."""
    if found.num_rows > asked.part:
        raise ValueError(f"{found.num_rows} rows in a part of at most {asked.part}")


def _values(uri: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in a table's record, of the kinds that it must be; `more` are those beside `Asked`."""

    def read(place: str) -> dict[str, Any]:
        values = read_values(place, at_most=MAX_MANIFEST_BYTES)
        if values.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {values.get('schema_version')!r}, not {SCHEMA_VERSION}")
        check_values(values, {**get_type_hints(Asked), **more})
        if not (values["images"] >= 0 and 0 < values["part"] <= MAX_PART and values["feature_size"] > 0):
            raise ValueError("counts that cannot be")
        return values

    found: dict[str, Any] = told(uri, f"the fields of an embedding table in {uri}", read, ShardError, _AGAIN)
    return found

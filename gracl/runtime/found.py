"""What a search found, on the disk: JSON, Parquet, and a sheet of pictures."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64
from numpy import ndarray

from gracl.images import storage
from gracl.retrieval.sheet import QUERY, UNJUDGED, Legend, SheetRow, draw_sheet
from gracl.runtime.album import HEIGHT, Album

_ACCEPTED = (0, 120, 50)
FLAT = pa.schema(
    [
        ("query", pa.string()),
        ("rank", pa.int64()),
        ("row", pa.int64()),
        ("path", pa.string()),
        ("index", pa.int64()),
        ("camera", pa.string()),
        ("track", pa.string()),
        ("source", pa.string()),
        ("similarity", pa.float64()),
    ]
)
LEGEND: Legend = ((QUERY, "query"), (_ACCEPTED, "taken for the same object"), (UNJUDGED, "not, or not queries"))


@dataclass(frozen=True)
class Queries:
    """The queries. `source` is where their pictures lie, `bad` are paths that could not be read, and why."""

    paths: list[str]
    indices: Int64[ndarray, "queries"]
    features: Float32[ndarray, "queries dim"]
    cameras: list[str | None]
    source: str
    bad: Sequence[tuple[str, str]] = ()


def write_results(
    out: str,
    queries: Queries,
    answers: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    *,
    shown: int,
    root: str | None,
    digests: Mapping[str, str],
) -> None:
    """Writes `results.json`, `results.parquet` (a row for each result) and, of the first `shown` queries,
    `results.png`; gallery pictures are read from `root`, else from where they were found, if what lies there has the
    digest that it had.
    """
    text = json.dumps({**result, "results": answers}, indent=1, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(out, "results.json"), text.encode())
    flat = [
        {"query": answer["query"], "rank": rank, **hit}
        for answer in answers
        for rank, hit in enumerate(answer["results"], 1)
    ]
    more = [pa.field(name, pa.bool_() if name == "same" else pa.float64()) for name in ("same", "reranked")]
    also = [field for field in more if any(field.name in row for row in flat)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(flat, schema=pa.schema([*FLAT, *also])), sink, compression="zstd")
    storage.write_bytes(storage.join(out, "results.parquet"), memoryview(sink.getvalue()))
    picture = storage.join(out, "results.png")
    if storage.exists(picture):  # of another search
        storage.remove(picture)
    if shown and answers:
        storage.write_bytes(picture, _sheet(queries, answers[:shown], root, digests))


def _sheet(
    queries: Queries, answers: Sequence[Mapping[str, Any]], root: str | None, digests: Mapping[str, str]
) -> bytes:
    """Queries and what they found, as far as the pictures can still be read."""
    albums: dict[str, Album] = {}

    def pictures(source: str, hits: Sequence[Mapping[str, Any]]) -> list[ndarray]:
        if source not in albums:
            albums[source] = Album(source, digests.get(source, ""))
        return albums[source].pictures(
            [hit["path"] for hit in hits], np.array([hit["index"] for hit in hits], np.int64)
        )

    rows = []
    for path, number, answer in zip(queries.paths, queries.indices, answers, strict=False):
        hits = answer["results"]
        query = pictures(queries.source, [{"path": path, "index": number}])[0]
        rows.append(
            SheetRow(
                query=query,
                query_caption=_short(answer["query"]),
                gallery=[pictures(root or hit["source"], [hit])[0] for hit in hits],
                captions=[f"{hit['similarity']:.2f}\n{_short(hit['path'])}" for hit in hits],
                correct=[True if hit.get("same") else None for hit in hits],
                note="" if answer.get("in_gallery", True) else "not in\nthe gallery",
            )
        )
    file = io.BytesIO()
    draw_sheet(rows, height=HEIGHT, title="", legend=LEGEND).save(file, format="PNG")
    return file.getvalue()


def _short(path: str) -> str:
    name = path.rpartition("/")[2]
    return name if len(name) <= 16 else f"{name[:7]}…{name[-8:]}"

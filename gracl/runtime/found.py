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
from gracl.images.decoding import decode
from gracl.images.sources import open_pictures
from gracl.retrieval.sheet import QUERY, UNJUDGED, Legend, SheetRow, draw_sheet

_ACCEPTED = (0, 120, 50)
LEGEND: Legend = ((QUERY, "query"), (_ACCEPTED, "taken for the same object"), (UNJUDGED, "not, or not asked"))


@dataclass(frozen=True)
class Asked:
    """The queries. `source` is where their pictures lie, `bad` are paths that could not be read, and why."""

    paths: list[str]
    indices: Int64[ndarray, "queries"]
    features: Float32[ndarray, "queries dim"]
    cameras: list[str | None]
    source: str
    bad: Sequence[tuple[str, str]] = ()


def write_results(
    out: str,
    asked: Asked,
    answers: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    *,
    shown: int,
    root: str | None,
) -> None:
    """Writes `results.json`, `results.parquet` (a row for each result) and, of the first `shown` queries,
    `results.png`; gallery pictures are read from `root`, else from where they were found.
    """
    text = json.dumps({**result, "results": answers}, indent=1, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(out, "results.json"), text.encode())
    flat = [
        {"query": answer["query"], "rank": rank, **hit}
        for answer in answers
        for rank, hit in enumerate(answer["results"], 1)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(flat), sink, compression="zstd")
    storage.write_bytes(storage.join(out, "results.parquet"), memoryview(sink.getvalue()))
    if shown and answers:
        storage.write_bytes(storage.join(out, "results.png"), _sheet(asked, answers[:shown], root))


def _sheet(asked: Asked, answers: Sequence[Mapping[str, Any]], root: str | None) -> bytes:
    """Queries and what they found, as far as the pictures can still be read."""
    rows, count = [], len(answers)
    own = open_pictures(asked.source)(asked.indices[:count], asked.paths[:count])
    for number, answer in enumerate(answers):
        hits = answer["results"]
        pictures: list[Any] = [None] * len(hits)
        for source in {hit["source"] for hit in hits}:
            places = [place for place, hit in enumerate(hits) if hit["source"] == source]
            read = open_pictures(storage.absolute(root) if root else source)
            indices = np.array([hits[place]["index"] for place in places], np.int64)
            for place, picture in zip(places, read(indices, [hits[place]["path"] for place in places]), strict=True):
                pictures[place] = picture
        rows.append(
            SheetRow(
                query=_pixels(own[number]),
                query_caption=_short(answer["query"]),
                gallery=[_pixels(picture) for picture in pictures],
                captions=[f"{hit['similarity']:.2f}\n{_short(hit['path'])}" for hit in hits],
                correct=[True if hit.get("same") else None for hit in hits],
                note="" if answer.get("in_gallery", True) else "not in\nthe gallery",
            )
        )
    file = io.BytesIO()
    draw_sheet(rows, height=128, title="", legend=LEGEND).save(file, format="PNG")
    return file.getvalue()


def _pixels(picture: Any) -> ndarray:
    """A picture, or grey where it cannot be read any more."""
    if isinstance(picture, Exception):
        return np.full((128, 64, 3), 200, np.uint8)
    return decode(picture)


def _short(path: str) -> str:
    name = path.rpartition("/")[2]
    return name if len(name) <= 16 else f"{name[:7]}…{name[-8:]}"

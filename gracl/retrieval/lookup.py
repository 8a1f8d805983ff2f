"""Questions to a stored index: among which cameras, re-ranked or not, the same object or not. On plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from gracl.errors import ConfigError, expected
from gracl.retrieval.calibration import Calibration, Point
from gracl.retrieval.reranking import reranked
from gracl.retrieval.stored import StoredIndex
from gracl.types import EMPTY

Cameras = Sequence[str | None]


@dataclass(frozen=True)
class Hits:
    """What one query found, most similar first, or in the order of re-ranking.

    `best` is the largest similarity of all rows that the query may find, also where re-ranking shows others; -inf where
    there is none. `again` has the re-ranked similarities, None where the order is the plain one.
    """

    rows: Int64[ndarray, "hits"]
    similarities: Float32[ndarray, "hits"]
    best: float
    again: Float32[ndarray, "hits"] | None = None


def look_up(
    index: StoredIndex,
    query: Float32[ndarray, "queries dim"],
    k: int = 10,
    *,
    cameras: Cameras | None = None,
    among: Sequence[str] = (),
    other_cameras: bool = False,
    rerank_first: int = 0,
    **reranking: Any,
) -> list[Hits]:
    """What each query finds.

    Args:
        index: to look in.
        query: unit rows.
        k: results of each, at most.
        cameras: of the queries, None where unknown.
        among: look among the rows of these cameras alone; empty: all.
        other_cameras: leave out the rows of a query's own camera, where both are known.
        rerank_first: the first so many are put in order anew by k-reciprocal neighbours among themselves; 0: not. A
            query that finds no more than `k1` rows keeps the plain order: they are each other's neighbours all.
        reranking: `k1`, `k2`, `original_weight`, `threads`, as `reranking.reranked` takes them.

    Raises:
        ConfigError: cameras that the index does not know, or known ones wanted where there are none.
        GraclError: queries of another size, or not finite.
    """
    first = max(k, rerank_first)
    found: list[Any] = [None] * len(query)
    for allowed, some in _groups(index, cameras or [None] * len(query), among, other_cameras):
        rows, similarities = index.search(query[some], first, allowed=allowed)
        for number, line, scores in zip(some.tolist(), rows, similarities, strict=True):
            there = int((line != EMPTY).sum())
            best = float(scores[0]) if there else -np.inf
            plain = Hits(line[:there], scores[:there], best)
            found[number] = _again(index, query[number], plain, k, **reranking) if rerank_first else _cut(plain, k)
    return found


def _cut(hits: Hits, k: int) -> Hits:
    return Hits(hits.rows[:k], hits.similarities[:k], hits.best)


def _again(
    index: StoredIndex, query: Float32[ndarray, "dim"], hits: Hits, k: int, *, k1: int = 20, **options: Any
) -> Hits:
    """The first k after re-ranking."""
    if len(hits.rows) <= k1:
        return _cut(hits, k)
    features = index.features(hits.rows)
    blocks = reranked(query[None], features, k1=k1, **options)
    values = next(iter(blocks(query[None], features)))[1][0]
    order = np.argsort(-values, kind="stable")[:k]
    return Hits(hits.rows[order], hits.similarities[order], hits.best, np.asarray(values[order], np.float32))


def _groups(
    index: StoredIndex, cameras: Cameras, among: Sequence[str], other_cameras: bool
) -> list[tuple[Bool[ndarray, "rows"] | None, Int64[ndarray, "queries"]]]:
    """Queries that may find the same rows, with these rows; None for all."""
    every = np.arange(len(cameras))
    if not among and not other_cameras:
        return [(None, every)]
    known, theirs = index.cameras
    allowed = np.ones(len(index), bool)
    if among:
        if unknown := sorted({*among} - {*known}):
            what = f"cameras of the index ({', '.join(known[:20]) or 'none known'})"
            raise ConfigError(expected(what, ", ".join(unknown), "name some of these, or leave cameras out"))
        allowed = np.isin(theirs, [known.index(camera) for camera in among])
    if not other_cameras:
        return [(allowed, every)]
    if not known or all(camera is None for camera in cameras):
        came = "none of the queries" if known else "none of the index"
        do = "give a list with camera_id, or leave out other_cameras"
        raise ConfigError(expected("known cameras for other_cameras=true", came, do))
    return [
        (
            allowed & (theirs != known.index(own)) if own in known else allowed,
            np.flatnonzero([camera == own for camera in cameras]),
        )
        for own in sorted(set(cameras), key=str)
    ]


def threshold_of(calibration: Calibration, rate: float, of: Literal["pair", "query"], rows: int) -> Point:
    """Where a rate of false matches is: of one comparison, or of a query's best of so many rows.

    Of a query's comparisons with all rows one false match is one too many; so many chances at most (Boole). The point's
    `rate` is that of a comparison.

    Raises:
        ConfigError: a rate beyond what was measured.
    """
    of_a_pair = rate / (rows if of == "query" else 1)
    lowest = calibration.points[-1].rate
    if of == "query" and of_a_pair < lowest:
        what = f"a rate of a query of {lowest * rows:.2g} or more, as was measured for {rows} rows"
        raise ConfigError(expected(what, f"{rate:g}", "calibrate on more images, or ask with of=pair"))
    return calibration.threshold(of_a_pair)


def told(index: StoredIndex, hits: Hits, threshold: Point | None = None) -> dict[str, Any]:
    """What a query found, as plain values: of each row its number, path, index, camera, track, source and similarity.

    With a threshold also whether it is taken for the same object, and whether any row that the query may find is.
    """
    lines = [
        {"row": row, **about, "similarity": score}
        for row, about, score in zip(
            hits.rows.tolist(), index.about(hits.rows), hits.similarities.tolist(), strict=True
        )
    ]
    if hits.again is not None:
        lines = [line | {"reranked": value} for line, value in zip(lines, hits.again.tolist(), strict=True)]
    if threshold is None:
        return {"results": lines}
    judged = [line | {"same": line["similarity"] >= threshold.similarity} for line in lines]
    return {"in_gallery": hits.best >= threshold.similarity, "results": judged}

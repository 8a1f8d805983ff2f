"""Who is shown to whom: gallery rows in order of similarity, under the one rule that says which rows count.

`judged` is that rule; `rank` here and `evaluate_retrieval` in metrics.py both ask it and nobody else decides. The
queries x gallery matrix never exists: `similarity_blocks` makes it a few hundred queries at a time.
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from gracl.errors import GraclError, NonFiniteValue, expected
from gracl.types import EMPTY, UNKNOWN, Identities, Ranking

STRIP = 1024
# (query, gallery, block_rows=, threads=) -> (first query, its block) ...: `similarity_blocks`, or another of that kind.
Blocks = Callable[..., Iterator[tuple[int, ndarray]]]


def judged(object_id: int, camera_id: int, gallery: Identities) -> Bool[ndarray, "images"]:
    """Which gallery rows count for a query of this object and camera: the rule of Market-1501 (method.md section 6).

    Left out are rows of the same object from the same camera (too easy to find), and rows whose object is unknown
    (-1, the junk of Market-1501: neither right nor wrong). An unknown camera (-1) is never the same as another, so
    where no camera is known nothing is left out for it, and a query must not stand in its own gallery. Distractors
    are ordinary rows whose object no query has (id 0 in Market-1501): they stay, as wrong answers.

    Args:
        object_id: the query's object; -1 unknown.
        camera_id: the query's camera; -1 unknown.
        gallery: objects and cameras of the gallery.
    """
    counts = np.asarray(gallery.object_ids != UNKNOWN)
    if camera_id != UNKNOWN:
        counts[(gallery.object_ids == object_id) & (gallery.camera_ids == camera_id)] = False
    return counts


def similarity_blocks(
    query: Float32[ndarray, "queries dim"],
    gallery: Float32[ndarray, "gallery dim"],
    *,
    block_rows: int = 512,
    threads: int = 0,
) -> Iterator[tuple[int, Float32[ndarray, "rows gallery"]]]:
    """Inner products of all pairs, `block_rows` queries at a time, as (first query, block).

    They are summed in double precision and then rounded: so copies of an image are equally similar wherever they
    stand, and nothing depends on block size, threads or processor (but for a sum that falls, once in some 10^8,
    within 10^-16 of the border between two float32). A float32 product keeps neither promise. One buffer serves all
    blocks: a block is valid until the next is asked for.

    Args:
        query: feature rows.
        gallery: feature rows of the same width.
        block_rows: queries at a time, >= 1.
        threads: CPU threads of the products; 0 leaves torch's number as it is.

    Raises:
        GraclError: `block_rows` below 1 or `threads` below 0.
    """
    if block_rows < 1 or threads < 0:
        raise GraclError(
            expected("block_rows >= 1 and threads >= 0", f"{block_rows} and {threads}", "leave both at their defaults")
        )
    rows, columns = _tensor(query), _tensor(gallery)
    buffer = torch.empty((min(block_rows, len(query)), len(gallery)))
    for start in range(0, len(query), block_rows):
        block = buffer[: len(rows[start : start + block_rows])]
        _multiply(rows[start : start + block_rows], columns, block, threads)
        yield start, block.numpy()


def _multiply(rows: torch.Tensor, columns: torch.Tensor, out: torch.Tensor, threads: int) -> None:
    """`rows @ columns.T` into `out`, with torch's number of threads changed for this product only."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        wide = rows.double()
        # In strips, since the whole gallery in double precision would be the largest array of all.
        for part, strip in zip(out.split(STRIP, dim=1), columns.split(STRIP), strict=True):
            part.copy_(wide @ strip.double().T)
    finally:
        torch.set_num_threads(before)


def _tensor(array: Float32[ndarray, "rows dim"]) -> torch.Tensor:
    """The array as a tensor on the same memory."""
    with warnings.catch_warnings():
        # Arrays out of Ray's object store are read-only; torch warns, but this tensor is only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def rank(
    query: Float32[ndarray, "queries dim"],
    gallery: Float32[ndarray, "gallery dim"],
    *,
    query_identities: Identities | None = None,
    gallery_identities: Identities | None = None,
    k: int = 10,
    block_rows: int = 512,
    threads: int = 0,
    blocks: Blocks = similarity_blocks,
) -> Ranking:
    """The k most similar gallery rows of every query, among those that `judged` lets count.

    Equal similarities stand in order of gallery index. A row with fewer than k gallery rows ends in `EMPTY` (-1)
    with similarity -inf.

    Args:
        query: unit feature rows, so that the inner product is the cosine (the order of Euclidean distance).
        gallery: unit feature rows.
        query_identities: objects and cameras of the queries; None (with the next one) leaves nothing out: a search.
        gallery_identities: objects and cameras of the gallery.
        k: length of a row, >= 1.
        block_rows: queries at a time; the memory needed beyond input and result is block_rows x gallery x 4 bytes and
            a few strips.
        threads: CPU threads of the products; 0 leaves torch's number as it is.
        blocks: as in `gracl.retrieval.metrics.evaluate_retrieval`.

    Raises:
        GraclError: sizes that do not fit, values that are not finite, or only one of the two identities.
    """
    if (query_identities is None) != (gallery_identities is None):
        raise GraclError(
            expected("identities of both sides or of neither", "only one", "give both to leave out same-camera rows")
        )
    if k < 1:
        raise GraclError(expected("k >= 1", k, "ask for at least one gallery row"))
    query_identities = query_identities or _nobody(len(query))
    gallery_identities = gallery_identities or _nobody(len(gallery))
    check_sides(query, gallery, query_identities, gallery_identities)
    indices = np.full((len(query), k), EMPTY, np.int64)
    similarities = np.full((len(query), k), -np.inf, np.float32)
    for start, block in blocks(query, gallery, block_rows=block_rows, threads=threads):
        for row, scores in enumerate(block, start):
            object_id, camera_id = int(query_identities.object_ids[row]), int(query_identities.camera_ids[row])
            counts = judged(object_id, camera_id, gallery_identities)
            best = _best(scores, counts, k)
            indices[row, : len(best)] = best
            similarities[row, : len(best)] = scores[best]
    return Ranking(indices=indices, similarities=similarities)


def _best(scores: Float32[ndarray, "gallery"], counts: Bool[ndarray, "gallery"], k: int) -> Int64[ndarray, "best"]:
    """The (at most) k rows that count with the highest scores, highest first, equal ones in order of index."""
    rows = np.flatnonzero(counts)
    k = min(k, len(rows))
    if not k:
        return rows
    values = scores[rows]
    floor = np.partition(values, len(values) - k)[len(values) - k]
    # All rows at the floor are kept until after the stable sort: which of them stay is decided by index, not by
    # the partition.
    near = np.flatnonzero(values >= floor)
    order = np.argsort(-values[near], kind="stable")[:k]
    return rows[near[order]]


def _nobody(images: int) -> Identities:
    """Identities of which nothing is left out: one object, no camera known."""
    return Identities(object_ids=np.zeros(images, np.int64), camera_ids=np.full(images, UNKNOWN, np.int64))


def check_sides(
    query: Float32[ndarray, "queries query_dim"],
    gallery: Float32[ndarray, "gallery gallery_dim"],
    query_identities: Identities,
    gallery_identities: Identities,
) -> None:
    """Refuses features that are not finite, of two widths, or not as many as their identities.

    Raises:
        NonFiniteValue, GraclError: says which side and what came.
    """
    for side, features, who in (("query", query, query_identities), ("gallery", gallery, gallery_identities)):
        came = (len(who.object_ids), len(who.camera_ids))
        if came != (len(features), len(features)):
            raise GraclError(
                expected(
                    f"{len(features)} object and camera ids for the {side} features",
                    f"{came[0]} and {came[1]}",
                    "take features and identities of the same split, both in order of index",
                )
            )
        # The extremes are not finite if any value is not; unlike np.isfinite this makes no copy of the table.
        if features.size and not np.isfinite([features.min(), features.max()]).all():
            bad = np.flatnonzero(~np.isfinite(features).all(1))
            found = f"NaN or infinite values in {len(bad)} rows, among them {bad[:5].tolist()}"
            raise NonFiniteValue(expected(f"finite {side} features", found, "look for the epoch whose loss broke"))
    if query.shape[1] != gallery.shape[1]:
        raise GraclError(
            expected(
                f"gallery features of width {query.shape[1]}, as the query's",
                gallery.shape[1],
                "extract both sides with the same encoder",
            )
        )

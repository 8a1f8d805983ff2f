"""How good the rankings are: mAP, mINP and CMC by the rules of Market-1501 (method.md section 6).

Average precision is the non-interpolated one, the sum of the precision at each correct row over the number of
correct rows, as scikit-learn and the published re-ID code compute it (the first Market toolkit took trapezoids). The
inverse negative penalty (Ye et al., TPAMI 2021) is the number of correct rows over the rank of the last of them. Both
need the ranks of the correct rows only, and those are read off the sorted similarities by bisection.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray

from gracl.errors import GraclError, expected
from gracl.retrieval.ranking import Blocks, check_sides, judged, similarity_blocks
from gracl.types import Identities, RetrievalReport


def evaluate_retrieval(
    query: Float32[ndarray, "queries dim"],
    gallery: Float32[ndarray, "gallery dim"],
    *,
    query_identities: Identities,
    gallery_identities: Identities,
    ranks: Sequence[int] = (1, 5, 10, 20),
    block_rows: int = 512,
    threads: int = 0,
    blocks: Blocks = similarity_blocks,
) -> RetrievalReport:
    """Judges a retrieval: every query against the gallery rows that count for it (`gracl.retrieval.ranking.judged`).

    Queries without a correct row among those that count are skipped: False in `counted`, 0 in `average_precisions`
    and `inverse_penalties`, in no mean. CMC at r is the share of the others whose first correct row is among the first
    r; with fewer than r gallery rows that is the share that finds one at all.

    Ties: equal similarities stand in order of gallery index. The result is the same every time, but it depends on
    the order of the gallery; code that sorts unstably may differ by a little where similarities are equal
    (scikit-learn, which judges tied rows as one, too), and agrees where none are.

    Args:
        query: unit feature rows, so that the inner product is the cosine (the order of Euclidean distance).
        gallery: unit feature rows.
        query_identities: objects and cameras of the queries.
        gallery_identities: objects and cameras of the gallery.
        ranks: where CMC is read, each >= 1.
        block_rows: queries at a time; the memory needed beyond the input is block_rows x gallery x 4 bytes and
            a few strips.
        threads: CPU threads of the products; 0 leaves torch's number as it is.
        blocks: who says how similar a query and a gallery row are; `gracl.retrieval.reranking.reranked` makes another.

    Returns:
        A report whose `queries` counts all queries, the skipped ones among them.

    Raises:
        GraclError: sizes that do not fit, values that are not finite, ranks below 1, or no query that can be judged.
    """
    check_sides(query, gallery, query_identities, gallery_identities)
    if any(r < 1 for r in ranks):
        raise GraclError(expected("CMC ranks >= 1", list(ranks), "count ranks from 1"))
    precisions, penalties = np.zeros(len(query)), np.zeros(len(query))
    first = np.zeros(len(query), np.int64)
    for start, block in blocks(query, gallery, block_rows=block_rows, threads=threads):
        for row, similarities in enumerate(block, start):
            object_id, camera_id = int(query_identities.object_ids[row]), int(query_identities.camera_ids[row])
            counts = judged(object_id, camera_id, gallery_identities)
            hits = _hit_ranks(similarities[counts], gallery_identities.object_ids[counts] == object_id)
            if len(hits):
                precisions[row], penalties[row] = average_precision(hits), inverse_negative_penalty(hits)
                first[row] = hits[0]
    return _report(precisions, penalties, first, ranks)


def average_precision(hit_ranks: Int64[ndarray, "hits"]) -> float:
    """Non-interpolated average precision from the ranks (from 1, rising) of all correct rows, at least one.

    >>> round(average_precision(np.array([1, 3])), 4)  # (1/1 + 2/3) / 2
    0.8333
    """
    return float(np.mean(np.arange(1, len(hit_ranks) + 1) / hit_ranks))


def inverse_negative_penalty(hit_ranks: Int64[ndarray, "hits"]) -> float:
    """How much of the ranking down to the hardest correct row is correct; ranks as in `average_precision`.

    >>> inverse_negative_penalty(np.array([1, 4]))
    0.5
    """
    return len(hit_ranks) / int(hit_ranks[-1])


def _hit_ranks(similarities: Float32[ndarray, "judged"], correct: Bool[ndarray, "judged"]) -> Int64[ndarray, "hits"]:
    """Ranks (from 1, rising) of the correct rows among all rows given; equal similarities in order of index."""
    hits = similarities[correct]
    if not len(hits):
        return np.empty(0, np.int64)
    # Values alone sort several times faster than an argsort that must be stable, and tell the ranks of all hits that
    # no other row equals.
    rising = np.sort(similarities)
    upper = np.searchsorted(rising, hits, side="right")
    if (upper - np.searchsorted(rising, hits, side="left") == 1).all():
        return np.sort(len(rising) - upper + 1)
    order = np.argsort(-similarities, kind="stable")
    return np.flatnonzero(correct[order]) + 1


def _report(
    precisions: Float64[ndarray, "queries"],
    penalties: Float64[ndarray, "queries"],
    first: Int64[ndarray, "queries"],
    ranks: Sequence[int],
) -> RetrievalReport:
    """Means over the queries that have a first correct row (rank 0 says there is none)."""
    counted = first > 0
    if not counted.any():
        raise GraclError(
            expected(
                "a query whose object another camera saw in the gallery",
                f"none among {len(first)} queries",
                "check that query and gallery are splits of one data set, with its object and camera ids",
            )
        )
    found = first[counted]
    return RetrievalReport(
        mean_ap=float(precisions[counted].mean()),
        mean_inp=float(penalties[counted].mean()),
        cmc={int(r): float((found <= r).mean()) for r in ranks},
        queries=len(first),
        skipped_queries=int((~counted).sum()),
        average_precisions=precisions.astype(np.float32),
        inverse_penalties=penalties.astype(np.float32),
        counted=counted,
    )

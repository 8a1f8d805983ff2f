"""k-reciprocal re-ranking: who has the same neighbours as the query stands before who is merely near it.

Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding" (CVPR 2017), with the counts and the
distance of the authors' code, on lists: memory grows with the number of neighbours, and the (queries + gallery)^2
matrices of that code never exist. Cameras and identities are not asked: the rule of which rows count comes after it.
"""

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.errors import ConfigError, GraclError, expected
from gracl.kernels import compiled, dot, over_rows
from gracl.retrieval.ranking import Blocks, similarity_blocks
from gracl.similarity import nearest, top_k

# Half squared distances below this are the rounding of unit rows.
_TINY = 1e-6


@dataclass(frozen=True)
class Relatives:
    """What re-ranking knows of queries and gallery: whom each query is related to, and who holds whom in the gallery.

    `starts`, `ids`, `weights` are the rows of the queries: related images (queries first, then the gallery) with
    weights that sum to 1. `heads`, `holders`, `held` say for every image which gallery rows are related to it.
    `farthest` is half the largest squared distance of each query to any image.
    """

    starts: Int32[ndarray, "queries_and_one"] | Int64[ndarray, "queries_and_one"]
    ids: Int32[ndarray, "entries"] | Int64[ndarray, "entries"]
    weights: Float64[ndarray, "entries"]
    heads: Int32[ndarray, "images_and_one"] | Int64[ndarray, "images_and_one"]
    holders: Int32[ndarray, "others"] | Int64[ndarray, "others"]
    held: Float64[ndarray, "others"]
    farthest: Float64[ndarray, "queries"]


def reranked(
    query: Float32[ndarray, "queries dim"],
    gallery: Float32[ndarray, "gallery dim"],
    *,
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
    threads: int = 0,
) -> Blocks:
    """Makes similarities after re-ranking: the `blocks` of `rank` and `evaluate_retrieval` for these two tables.

    The distance is (1 - w) times the Jaccard distance of the weighted k-reciprocal sets plus w times the original one,
    w the `original_weight` (the paper's lambda); a block holds 1 minus it. Original is the squared Euclidean distance
    of unit rows, 2 - 2s, over the largest one of that query to any query or gallery row, so that both lie in 0..1.

    Args:
        query: unit feature rows.
        gallery: unit feature rows.
        k1: neighbours of the k-reciprocal sets, the row itself not counted; the half sets have round(k1 / 2).
        k2: nearest rows whose weights are averaged, the row itself counted; 1 leaves the weights as they are.
        original_weight: 0 the Jaccard distance alone, 1 the plain order.
        threads: CPU threads; 0 takes torch's number. The result does not depend on it.

    Raises:
        ConfigError: options out of range, or as many neighbours asked for as there are images.
        GraclError: features that are not finite.
    """
    images = len(query) + len(gallery)
    check_options(k1, k2, original_weight, images)
    relatives = find_relatives(np.concatenate([query, gallery]), len(query), k1=k1, k2=k2, threads=threads)
    return partial(_blocks, relatives, original_weight)


def check_options(k1: int, k2: int, original_weight: float, images: int) -> None:
    """Refuses what re-ranking of so many images cannot do; see `reranked`.

    Raises:
        ConfigError: says what came.
    """
    if not (1 <= k2 <= k1 and 0 <= original_weight <= 1):
        came = f"k1={k1}, k2={k2}, original_weight={original_weight}"
        raise ConfigError(expected("1 <= k2 <= k1 and 0 <= original_weight <= 1", came, "correct them"))
    if k1 >= images:
        raise ConfigError(
            expected(f"reranking.k1 below the {images} images of query and gallery", k1, "lower reranking.k1")
        )


def find_relatives(
    rows: Float32[ndarray, "images dim"], queries: int, *, k1: int, k2: int, threads: int = 0
) -> Relatives:
    """The weighted k-reciprocal sets of all images, cut to what a query and the gallery are compared by.

    Args:
        rows: unit rows, those of the queries first.
        queries: how many they are.
        k1, k2, threads: see `reranked`.
    """
    table = nearest(rows, k1 + 1, threads=threads).indices
    # Whoever is most like the opposite of a row is farthest from it.
    opposite = top_k(-rows, rows, 1, threads=threads)[1][:, 0]
    farthest = np.maximum(1.0 + opposite.astype(np.float64), _TINY)
    weights = _weighted(expanded_sets(table, k1), rows, farthest, threads)
    if k2 > 1:
        weights = csr_array(_listed(table[:, :k2]) @ weights / k2)
    mine, holders = weights[:queries], weights[queries:].tocsc()
    mine.sort_indices()  # sums are taken in order of index
    return Relatives(
        mine.indptr, mine.indices, mine.data, holders.indptr, holders.indices, holders.data, farthest[:queries]
    )


def expanded_sets(table: Int32[ndarray, "images k"], k1: int) -> csr_array:
    """The k-reciprocal set of each image, joined by the half sets of members that agree with it; ones where a member.

    A member's half set joins when more than two thirds of it lie in the set.

    Args:
        table: the k1 + 1 nearest images of each, itself first.
        k1: see `reranked`.
    """
    full, half = _mutual(table), _mutual(table[:, : round(k1 / 2) + 1])
    inside = csr_array((full @ half).multiply(full))  # how many of the half set of the column are in the row's set
    sizes = half.sum(axis=1)
    inside.data = (3 * inside.data > 2 * sizes[inside.indices]).astype(inside.dtype)
    inside.eliminate_zeros()
    sets = csr_array(full + inside @ half)
    sets.sort_indices()
    return sets


def _listed(table: Int32[ndarray, "images k"]) -> csr_array:
    """A table of indices as a square matrix with a one for each entry."""
    images, k = table.shape
    starts = np.arange(0, images * k + 1, k)
    return csr_array((np.ones(images * k, np.int32), table.reshape(-1), starts), shape=(images, images))


def _mutual(table: Int32[ndarray, "images k"]) -> csr_array:
    """Who is in the list of whom, both ways."""
    listed = _listed(table)
    return csr_array(listed.multiply(listed.T))


def _weighted(
    sets: csr_array, rows: Float32[ndarray, "images dim"], farthest: Float64[ndarray, "images"], threads: int
) -> csr_array:
    """Weights of the members of each set: the softmax of minus the original distance."""
    values, rows = np.empty(len(sets.indices)), np.ascontiguousarray(rows)
    over_rows(
        lambda start, stop: _soften(sets.indptr, sets.indices, rows, farthest, values, start, stop),
        len(rows),
        threads=threads,
    )
    return csr_array((values, sets.indices, sets.indptr), shape=sets.shape)


@compiled
@typing.no_type_check
def _soften(starts, ids, rows, farthest, values, start, stop):
    for row in range(start, stop):
        total = 0.0
        for p in range(starts[row], starts[row + 1]):
            values[p] = np.exp((dot(rows[row], rows[ids[p]]) - 1.0) / farthest[row])
            total += values[p]
        for p in range(starts[row], starts[row + 1]):
            values[p] /= total


def _blocks(
    relatives: Relatives,
    original_weight: float,
    query: Float32[ndarray, "queries dim"],
    gallery: Float32[ndarray, "gallery dim"],
    *,
    block_rows: int = 512,
    threads: int = 0,
) -> Iterator[tuple[int, Float32[ndarray, "rows gallery"]]]:
    """As `similarity_blocks`, of the tables that `relatives` was made of; the memory needed is the same."""
    made_of = len(relatives.farthest), len(relatives.heads) - 1
    if made_of != (len(query), len(query) + len(gallery)):
        raise GraclError(
            expected(
                "the tables that re-ranking was made of", f"{len(query)} and {len(gallery)} rows", "call reranked again"
            )
        )
    one = relatives
    lists = one.starts, one.ids, one.weights, one.heads, one.holders, one.held, one.farthest
    for first, block in similarity_blocks(query, gallery, block_rows=block_rows, threads=threads):
        over_rows(partial(_mix, *lists, original_weight, block, first), len(block), threads=threads)
        yield first, block


@compiled
@typing.no_type_check
def _mix(starts, ids, weights, heads, holders, held, farthest, original_weight, block, first, start, stop):
    """Similarities of rows start..stop-1 of a block whose first row is query `first`, re-ranked in place."""
    shared = np.empty(block.shape[1])
    for row in range(start, stop):
        shared[:] = 0.0
        query = first + row
        for p in range(starts[query], starts[query + 1]):
            for q in range(heads[ids[p]], heads[ids[p] + 1]):
                shared[holders[q]] += min(weights[p], held[q])
        for column in range(block.shape[1]):
            jaccard = 1.0 - shared[column] / (2.0 - shared[column])
            original = (1.0 - block[row, column]) / farthest[query]
            block[row, column] = 1.0 - (1.0 - original_weight) * jaccard - original_weight * original

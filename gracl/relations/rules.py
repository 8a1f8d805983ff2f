"""The rules of `choices.py` that need products of blocks of images: B3 to B5, and C2.

Those with a closed form are in `closed.py`, those over one vector a cluster in `vector_rules.py`.
"""

import math
import typing

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor

from gracl.errors import GraclError, expected
from gracl.kernels import compiled, over_rows
from gracl.relations.choices import InterRule
from gracl.relations.scoring import Score, Table, against, float32_error, in_blocks, settled
from gracl.relations.vector_rules import centroids_of, nearest_vectors
from gracl.types import Neighbors

# C2 looks through a cluster only; wider blocks would be mostly pairs of different clusters.
_CLUSTER_ROWS = 256


def inter_scores(
    rule: InterRule,
    table: Table,
    sums: Float64[ndarray, "clusters dim"],
    *,
    noise: Int64[ndarray, "noise"],
    centroids: int,
    rule_temperature: float,
    neighbors: Neighbors | None,
    threads: int,
) -> Float64[ndarray, "images"]:
    """Decisive scores by B3, B4 or B5 over samples, where there is a foreign one; see `settled`.

    `noise` are the noise images that are foreign too, all or none of them.

    Raises:
        GraclError: a neighbour table that does not belong to the features.
    """
    rows = table.contested
    columns = np.union1d(table.clustered, noise)
    errors = np.full(len(rows), float32_error(table.dim))
    if rule == "nearest_sample":
        score = nearest_sample(table, columns)
        proposed, errors = _by_table(neighbors, table, score, len(noise) > 0, threads)
    elif rule == "nearest_centroids":
        score = nearest_vectors(table, centroids_of(sums), centroids, noise)
        proposed = score(rows, torch.float32)
    else:
        score = log_sum_exp(table, columns, rule_temperature)
        proposed = score(rows, torch.float32)
        errors += rule_temperature * float32_error(table.step)
    return settled(table, rows, proposed, errors, score)


def intra_scores(table: Table, *, exact: bool = False) -> Float64[ndarray, "images"]:
    """Decisive scores by C2, see `settled`; `exact`: those of all members of clusters of two or more."""
    rows = table.contested
    rows = rows[np.argsort(table.labels[rows], kind="stable")]
    score = minimum(table)
    if exact:
        scores = np.full(len(table.labels), np.inf)
        scores[rows] = score(rows, torch.float64)
        return scores
    errors = np.full(len(rows), float32_error(table.dim))
    return settled(table, rows, score(rows, torch.float32), errors, score)


def nearest_sample(table: Table, columns: Int64[ndarray, "columns"]) -> Score:
    """B3: similarity to the nearest of the columns that is not of the same cluster."""

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        nearest = [
            similarity.masked_fill_(same, -math.inf).amax(1)
            for similarity, same, _ in against(table, rows, columns, dtype)
        ]
        return torch.stack(nearest).amax(0)

    return in_blocks(score, table.step)


def log_sum_exp(table: Table, columns: Int64[ndarray, "columns"], temperature: float) -> Score:
    """B5: t log(mean of exp(s / t)) over the columns of other clusters: between the mean (B1) and the nearest (B3).

    Without the mean, t log(sum), it would be more by t log(foreign samples), which is the same for all members of a
    cluster: the proxies are those of either. Blocks are summed in the precision asked for, and joined in double.
    """

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        parts = [
            similarity.masked_fill_(same, -math.inf).div_(temperature).logsumexp(1).double()
            for similarity, same, _ in against(table, rows, columns, dtype)
        ]
        foreign = torch.from_numpy(len(columns) - table.sizes[table.labels[rows]]).to(table.place)
        return temperature * (torch.stack(parts).logsumexp(0) - foreign.double().log())

    return in_blocks(score, table.step)


def minimum(table: Table) -> Score:
    """C2: lowest similarity to another member. Rows have to come in order of cluster.

    The two ends of a cluster's farthest pair have the same score, so the proxy is always the first of the two.
    """
    columns = table.clustered
    columns = columns[np.argsort(table.labels[columns], kind="stable")]
    ends = np.cumsum(table.sizes)

    def score(rows: ndarray, dtype: torch.dtype) -> Tensor:
        first, last = table.labels[rows[0]], table.labels[rows[-1]]
        members = columns[ends[first] - table.sizes[first] : ends[last]]
        images = torch.from_numpy(rows).to(table.place)[:, None]
        lowest = [
            similarity.masked_fill_(~same | (images == others), math.inf).amin(1)
            for similarity, same, others in against(table, rows, members, dtype)
        ]
        return torch.stack(lowest).amin(0)

    return in_blocks(score, min(table.step, _CLUSTER_ROWS))


def _by_table(
    neighbors: Neighbors | None, table: Table, score: Score, noise_too: bool, threads: int
) -> tuple[Float64[ndarray, "rows"], Float64[ndarray, "rows"]]:
    """B3 proposed: the first foreign neighbour where the lists have one (nothing is nearer), else a search of all.

    The similarities of the lists are exact but for their rounding to float32.
    """
    labels, rows = table.labels, table.contested
    known = np.full(len(labels), np.nan)
    if neighbors is not None:
        _check_neighbors(neighbors, len(labels))
        lists, near = neighbors.indices, neighbors.similarities
        over_rows(
            lambda start, stop: _first_foreign(lists, near, labels, noise_too, start, stop, known),
            len(labels),
            threads=threads,
        )
    proposed = known[rows]
    missing = np.isnan(proposed)
    proposed[missing] = score(rows[missing], torch.float32)
    return proposed, np.where(missing, float32_error(table.dim), float32_error(0))


def _check_neighbors(neighbors: Neighbors, images: int) -> None:
    """Refuses a table of other features."""
    indices = neighbors.indices
    if len(indices) != images or (images and not 0 <= indices.min() <= indices.max() < images):
        raise GraclError(
            expected(
                f"neighbours of {images} rows among themselves",
                f"a table of {indices.shape[0]} x {indices.shape[1]}",
                "make the table with similarity.nearest from the same features",
            )
        )


@compiled
@typing.no_type_check
def _first_foreign(lists, near, labels, noise_too, start, stop, known):
    """Similarity of rows start..stop-1 to the first of their neighbours that is of another cluster, or noise."""
    for row in range(start, stop):
        for place in range(1, lists.shape[1]):
            c = labels[lists[row, place]]
            if (c >= 0 or noise_too) and c != labels[row]:
                known[row] = near[row, place]
                break

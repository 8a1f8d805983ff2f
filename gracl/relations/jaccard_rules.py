"""Scores of the members by 1 - Jaccard distance (K2): m / (2 - m) of the shared weight m, 0 for who share none.

One pass over the inverted lists, as in `diagnostics.silhouette`: no pair is stored, memory is O(images) for each
thread. A row is summed by one thread in one order, so scores depend neither on threads nor on devices.
"""

import typing
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from gracl.errors import ConfigError, GraclError, expected
from gracl.kernels import compiled, over_rows
from gracl.relations.choices import InterRule, IntraRule, Scores
from gracl.relations.closed import foreign_counts
from gracl.relations.lists import Inverted, Lists, meet
from gracl.types import NOISE

Graph = tuple[Lists, Inverted]


class Met(NamedTuple):
    """What a pass over the graph tells of every clustered image, from its similarities to the others.

    To foreign items: the sum, each by its share, and the highest. To the other members: the sum and the lowest.
    """

    foreign: Float64[ndarray, "images"]
    nearest: Float64[ndarray, "images"]
    own: Float64[ndarray, "images"]
    lowest: Float64[ndarray, "images"]


def by_jaccard(
    graph: Graph | None,
    labels: Int64[ndarray, "images"],
    sizes: Int64[ndarray, "clusters"],
    *,
    inter_rule: InterRule,
    intra_rule: IntraRule,
    noise_too: bool,
    threads: int,
) -> tuple[Float64[ndarray, "images"], Scores]:
    """Own similarity, and what gives foreign similarity, by B1 to B3, C1 and C2.

    Args:
        graph: the final weights, values > 0, a row sums to 1, and what `lists.invert` makes of them.
        noise_too: noise images are foreign items (A4).

    Raises:
        ConfigError: no graph.
        GraclError: a graph of other images.
    """
    graph = _checked(graph, len(labels))
    balanced, clustered = inter_rule == "cluster_mean", labels != NOISE
    shares = np.full(len(labels), float(noise_too))
    shares[clustered] = 1 / sizes[labels[clustered]] if balanced else 1.0
    noise = int((~clustered).sum()) if noise_too else 0
    met = _look(graph, labels, shares, clustered | noise_too, threads)
    others = sizes[labels[clustered]] - 1
    own = met.lowest
    if intra_rule == "mean":
        own = _mean(met.own, clustered, others)

    def scores(_: ndarray, proxies: ndarray | None) -> ndarray:
        found, counts = met, foreign_counts(sizes, balanced, noise)
        if proxies is not None:
            chosen = np.zeros(len(labels), bool)
            chosen[proxies] = True
            found = _look(graph, labels, chosen.astype(np.float64), chosen, threads)
            counts = foreign_counts(np.ones_like(sizes), balanced, 0)
        return (
            found.nearest
            if inter_rule == "nearest_sample"
            else _mean(found.foreign, clustered, counts[labels[clustered]])
        )

    return own, scores


def _checked(graph: Graph | None, images: int) -> Graph:
    """The graph, or why it cannot be looked at."""
    if graph is None:
        raise ConfigError(
            expected(
                "the weighted sets and their inverse with space=jaccard", "none", "give graph, or use space=cosine"
            )
        )
    if (rows := len(graph[0].starts) - 1) != images:
        raise GraclError(expected(f"{rows} labels", images, "take the graph of the same features"))
    return graph


def _mean(
    sums: Float64[ndarray, "images"], clustered: Bool[ndarray, "images"], counts: Int64[ndarray, "clustered"]
) -> Float64[ndarray, "images"]:
    """Sums over counts, 0 where there is nothing to be similar to."""
    means = np.zeros(len(sums))
    means[clustered] = sums[clustered] / np.maximum(counts, 1)
    return means


def _look(
    graph: Graph,
    labels: Int64[ndarray, "images"],
    shares: Float64[ndarray, "images"],
    wanted: Bool[ndarray, "images"],
    threads: int,
) -> Met:
    """One pass. Only wanted images are met; those of other clusters, or of none, count by their shares."""
    (weights, inverted), found = graph, Met(*np.zeros((4, len(labels))))
    names = weights.names
    lists = weights.starts, weights.ids, weights.values, inverted.heads, inverted.holders, inverted.weights
    known = labels[names], shares[names], wanted[names]
    sizes = np.bincount(labels[labels != NOISE])
    rows = np.flatnonzero(known[0] != NOISE)
    over_rows(
        lambda start, stop: _scores(*lists, *known, sizes, names, rows, start, stop, *found), len(rows), threads=threads
    )
    return found


@compiled
@typing.no_type_check
def _scores(
    starts, ids, values, heads, holders, weights, labels, shares, wanted, sizes, names, rows, start, stop,
    foreign, nearest, own, lowest,
):  # fmt: skip
    """What rows[start..stop-1] meet, written at their images."""
    shared, met = np.zeros(labels.size, np.float64), np.empty(labels.size, np.int64)
    for i in range(start, stop):
        row = rows[i]
        image, cluster, members, low = names[row], labels[row], 0, np.inf
        count = meet(starts, ids, values, heads, holders, weights, wanted, row, shared, met)
        for c in range(count):
            other = met[c]
            # Weights in single precision: those of equal rows may share a little more than 1.
            m = min(shared[other], 1.0)
            shared[other] = 0.0
            similarity = m / (2.0 - m)
            if labels[other] == cluster:
                own[image] += similarity
                low, members = min(low, similarity), members + 1
            else:
                foreign[image] += shares[other] * similarity
                nearest[image] = max(nearest[image], similarity)
        # Members that were not met are at similarity 0.
        lowest[image] = low if 0 < members == sizes[cluster] - 1 else 0.0

"""Scores of the members by the cosine of features (K1): which rule over which foreign items."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from gracl.relations.choices import CLOSED, Foreign, InterRule, IntraRule, Scores
from gracl.relations.closed import closed_forms, cluster_sums, foreign_counts
from gracl.relations.rules import inter_scores, intra_scores
from gracl.relations.scoring import Table, table_of
from gracl.relations.vector_rules import centroids_of, vector_scores
from gracl.types import NOISE, Feature, Neighbors


def by_cosine(
    features: Feature[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    sizes: Int64[ndarray, "clusters"],
    sums: Float64[ndarray, "clusters dim"],
    *,
    inter_rule: InterRule,
    intra_rule: IntraRule,
    foreign: Foreign,
    centroids: int,
    rule_temperature: float,
    ranked: bool,
    neighbors: Neighbors | None,
    block_rows: int,
    threads: int,
    place: str,
) -> tuple[Float64[ndarray, "images"], Scores]:
    """Own similarity, and what makes foreign similarity once it is known who can become a proxy.

    Args:
        ranked: own similarity has to put all members in order, not only to tell the lowest of each cluster.
        neighbors: see `mine_proxies`; the other options too.
    """
    noise = np.flatnonzero(labels == NOISE) if foreign == "noise_too" else np.empty(0, np.int64)
    noise_sum = _noise_sum(features, labels, block_rows, threads) if len(noise) else None
    nothing = not foreign_counts(sizes, False, len(noise)).any()
    options: dict[str, Any] = {"balanced": inter_rule == "cluster_mean", "threads": threads}
    closed, own = closed_forms(features, labels, sizes, sums, noise_sum=noise_sum, noise=len(noise), **options)
    numbers: dict[str, Any] = {"centroids": centroids, "rule_temperature": rule_temperature}
    # Made only where blocks are multiplied: a GPU may get a copy of the features.
    table: Callable[[], Table] = functools.cache(lambda: table_of(features, labels, sizes, block_rows, place))
    if intra_rule not in CLOSED:
        own = intra_scores(table(), exact=ranked)

    def scores(able: ndarray, proxies: ndarray | None) -> ndarray:
        vectors = centroids_of(sums) if foreign == "centroids" else None
        vectors = vectors if proxies is None else features[proxies].astype(np.float64)
        # Where nothing is foreign, the closed form is 0.
        if nothing or (inter_rule in CLOSED and vectors is None):
            return closed
        if vectors is None:
            those = replace(table(), able=able)
            return inter_scores(inter_rule, those, sums, noise=noise, neighbors=neighbors, threads=threads, **numbers)
        if inter_rule in CLOSED:
            return closed_forms(features, labels, np.ones_like(sizes), vectors, **options)[0]
        return vector_scores(inter_rule, replace(table(), able=able), vectors, **numbers)

    return own, scores


def _noise_sum(
    features: Feature[ndarray, "images dim"], labels: Int64[ndarray, "images"], step: int, threads: int
) -> Float64[ndarray, "dim"]:
    """The sum of the noise images, as if they were one cluster."""
    together = np.where(labels == NOISE, 0, NOISE)
    return np.asarray(cluster_sums(features, together, 1, step, threads)[0])

"""Which members stand for a cluster: the inter- and intra-ID relation-aware proxies of GRACL.

With S_c the sum of the features of cluster c, n_c its size, S and M the same of all K clusters (method.md 4.3), and
T_c = S_c / n_c, T their sum:

    foreign similarity of i   (f_i . S - f_i . S_c) / (M - n_c)       mean over the samples of other clusters (B1)
                              (f_i . T - f_i . T_c) / (K - 1)         mean over the other clusters' means (B2)
    own similarity of i       (f_i . S_c - f_i . f_i) / (n_c - 1)     mean over the other members (C1)

The inter proxy is the member with the lowest foreign similarity, the intra proxy the one with the lowest own
similarity. Noise takes part in neither (A1; A4 lets each noise image be a foreign cluster of its own). These rules take
linear time; the others are in `rules.py` and `items.py`.
"""

import typing
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from gracl.kernels import compiled, dot, over_rows, readable, real, thread_count
from gracl.relations.items import centroids_of, item_scores
from gracl.relations.members import cluster_sizes, eligible_members, noise_apart
from gracl.relations.rules import CLOSED, Foreign, InterRule, IntraRule, check_rules, inter_scores, intra_scores
from gracl.relations.scoring import EQUAL, steady, table_of
from gracl.similarity import Device, Options, resolve
from gracl.types import NOISE, Feature, Neighbors, Proxies


def mine_proxies(
    features: Feature[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    *,
    inter_rule: InterRule = "mean",
    intra_rule: IntraRule = "mean",
    centroids: int = 10,
    rule_temperature: float = 0.05,
    foreign: Foreign = "samples",
    trim: float = 0.0,
    neighbors: Neighbors | None = None,
    block_rows: int = 4096,
    threads: int = 0,
    device: Device = "auto",
) -> Proxies:
    """The two proxies of every cluster; of equal scores (closer than 1e-12) the lowest index.

    The only member of a cluster is both its proxies. Where there is only one cluster nothing is foreign, and its
    inter proxy is its first member. The proxies depend neither on `block_rows`, `threads` and `device`, nor on whether
    `neighbors` are given. The table is read in blocks and may be a file mapped into memory; but for C2 in order of
    index.

    Args:
        features: unit rows.
        labels: 0..C-1, each at least once; -1 is noise.
        inter_rule: how similarity to other clusters is aggregated (method.md 4.5 B): "mean" (B1), "cluster_mean"
            (B2), "nearest_sample" (B3), "nearest_centroids" (B4), "log_sum_exp" (B5).
        intra_rule: the same inside the cluster (4.5 C): "mean" (C1), "minimum" (C2).
        centroids: how many the mean of B4 is over, >= 1.
        rule_temperature: of B5, 1e-6 to 100.
        foreign: what similarity is to (method.md 4.5 A): "samples" of other clusters (A1); their "centroids" (A2);
            their "proxies" (A3: the inter proxies mined by A1 first, against which all are mined again); "noise_too"
            (A4: samples, and each noise image as a cluster of its own). A2 and A3 know the rules of `items.py`.
        trim: this share of the clustered images, those with the lowest own similarity by C1, can be no proxy
            (method.md 4.5 L); see `eligible_members`.
        neighbors: from `similarity.nearest` of the same features, exact. Spares B3 the search for all rows that have a
            foreign neighbour; the other rules do not look at it.
        block_rows: rows multiplied at a time, 8192 at most.
        threads: 0 takes torch's number.
        device: where blocks are multiplied; "auto" is the GPU where torch finds one. Not used by B1, B2 and C1.

    Raises:
        ConfigError: options out of range, or a device that is not there.
        GraclError: labels that are not numbered 0..C-1, or neighbours of other features.
    """
    check_rules(inter_rule, intra_rule, centroids, rule_temperature, block_rows, foreign, trim)
    threads, (_, place) = thread_count(threads), resolve(Options(device=device))
    features, clusters = np.ascontiguousarray(features), len(cluster_sizes(labels))
    apart = noise_apart(labels) if foreign == "noise_too" else labels
    sizes = cluster_sizes(apart)
    sums = _sums(features, apart, len(sizes), block_rows, threads)
    strange, own = _closed_forms(features, apart, sizes, sums, inter_rule == "cluster_mean", threads)
    eligible = eligible_members(own, labels, trim)
    how: dict[str, Any] = {"centroids": centroids, "rule_temperature": rule_temperature}
    # With one cluster nothing is foreign, and all scores are 0 whatever the rule.
    of_items = foreign in ("centroids", "proxies") and len(sizes) > 1
    search = inter_rule not in CLOSED and len(sizes) > 1
    if search or of_items or intra_rule not in CLOSED:
        with steady(threads):
            table = table_of(features, apart, sizes, eligible, block_rows, place)
            if search and foreign != "centroids":
                strange = inter_scores(inter_rule, table, sums, neighbors=neighbors, threads=threads, **how)
            if of_items:
                first = features[_lowest(strange, apart, eligible)] if foreign == "proxies" else centroids_of(sums)
                strange = item_scores(inter_rule, table, first.astype(np.float64), **how)
            if intra_rule not in CLOSED:
                own = intra_scores(table)
    inter, intra = (_lowest(scores, apart, eligible)[:clusters] for scores in (strange, own))
    return Proxies(
        inter=features[inter].astype(np.float32),
        intra=features[intra].astype(np.float32),
        inter_image=inter,
        intra_image=intra,
        cluster_sums=sums[:clusters].astype(np.float32),
    )


def centrality_ranks(
    features: Feature[ndarray, "images dim"], labels: Int64[ndarray, "images"], proxies: Proxies, *, threads: int = 0
) -> Float64[ndarray, "large_clusters"]:
    """Where each inter proxy stands in its cluster: 0 the most central member, 1 the farthest (method.md 4.4).

    It is the share of the other members whose cosine to the cluster's centre is higher. Clusters of one are left out.
    """
    sizes, bits = cluster_sizes(labels), readable(features)
    central = np.zeros(len(labels))
    over_rows(
        lambda start, stop: _central(bits, labels, proxies.cluster_sums, start, stop, central),
        len(labels),
        threads=threads,
    )
    members = np.flatnonzero(labels != NOISE)
    nearer = members[central[members] > central[proxies.inter_image][labels[members]]]
    counts = np.bincount(labels[nearer], minlength=len(sizes))
    large = sizes > 1
    return np.asarray(counts[large] / (sizes[large] - 1))


def _sums(
    features: Feature[ndarray, "images dim"], labels: Int64[ndarray, "images"], clusters: int, step: int, threads: int
) -> Float64[ndarray, "clusters dim"]:
    """The sum of each cluster's rows, added in order of index; the table is read once, from its start to its end."""
    bits, dim = readable(features), features.shape[1]
    sums = np.zeros((clusters, dim))

    def add(begin: int) -> None:
        rows = slice(begin, begin + step)
        over_rows(lambda start, stop: _add(bits[rows], labels[rows], start, stop, sums), dim, threads=threads)

    for begin in range(0, len(labels), step):
        add(begin)
    return sums


def _closed_forms(
    features: Feature[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    sizes: Int64[ndarray, "clusters"],
    sums: Float64[ndarray, "clusters dim"],
    balanced: bool,
    threads: int,
) -> tuple[Float64[ndarray, "images"], Float64[ndarray, "images"]]:
    """Foreign similarity by B1, or B2 where it is `balanced` over clusters, and own similarity by C1."""
    bits = readable(features)
    shares = 1 / sizes if balanced else np.ones(len(sizes))
    rest = np.full(len(sizes), len(sizes) - 1) if balanced else sizes.sum() - sizes
    total = np.einsum("c,cd->d", shares, sums)
    foreign, own = np.zeros(len(labels)), np.zeros(len(labels))
    over_rows(
        lambda start, stop: _score(bits, labels, sizes, sums, shares, rest, total, start, stop, foreign, own),
        len(labels),
        threads=threads,
    )
    return foreign, own


def _lowest(
    scores: Float64[ndarray, "images"], labels: Int64[ndarray, "images"], eligible: Bool[ndarray, "images"]
) -> Int64[ndarray, "clusters"]:
    """The first eligible member of each cluster whose score equals their lowest; infinity equals infinity."""
    members, clusters = np.flatnonzero((labels != NOISE) & eligible), labels.max(initial=NOISE) + 1
    lowest = np.full(clusters, np.inf)
    np.minimum.at(lowest, labels[members], scores[members])
    equal = members[scores[members] <= lowest[labels[members]] + EQUAL]
    first = np.full(clusters, len(labels), np.int64)
    np.minimum.at(first, labels[equal], equal)
    return first


@compiled
@typing.no_type_check
def _add(features, labels, start, stop, sums):
    """Adds the columns start..stop-1 of every clustered row to its cluster's sum, in order of index."""
    for row in range(labels.size):
        if labels[row] >= 0:
            for column in range(start, stop):
                sums[labels[row], column] += real(features[row, column])


@compiled
@typing.no_type_check
def _score(features, labels, sizes, sums, shares, rest, total, start, stop, foreign, own):
    """Foreign and own similarity of rows start..stop-1."""
    for row in range(start, stop):
        c = labels[row]
        if c < 0:
            continue
        inside = dot(features[row], sums[c])
        if rest[c] > 0:
            foreign[row] = (dot(features[row], total) - shares[c] * inside) / rest[c]
        if sizes[c] > 1:
            own[row] = (inside - dot(features[row], features[row])) / (sizes[c] - 1)


@compiled
@typing.no_type_check
def _central(features, labels, sums, start, stop, central):
    """How near rows start..stop-1 are to the centre of their cluster, but for its length."""
    for row in range(start, stop):
        if labels[row] >= 0:
            central[row] = dot(features[row], sums[labels[row]])

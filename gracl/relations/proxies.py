"""Which members stand for a cluster: the inter- and intra-ID relation-aware proxies of GRACL.

The inter proxy is the member with the lowest foreign similarity, the intra proxy the one with the lowest own
similarity. What these are is chosen in `choices.py`, and scored in `cosine.py` or `jaccard_rules.py`.
"""

import typing
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from gracl.errors import GraclError, expected
from gracl.kernels import compiled, dot, over_rows, readable, thread_count
from gracl.relations.choices import Foreign, InterRule, IntraRule, Space, check_rules
from gracl.relations.closed import cluster_sums
from gracl.relations.cosine import by_cosine
from gracl.relations.jaccard_rules import Graph, by_jaccard
from gracl.relations.scoring import EQUAL, steady
from gracl.relations.trimming import able_members
from gracl.similarity import Device, Options, resolve
from gracl.types import NOISE, Feature, Neighbors, Proxies


def mine_proxies(
    features: Feature[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    *,
    inter_rule: InterRule = "mean",
    intra_rule: IntraRule = "mean",
    foreign: Foreign = "samples",
    space: Space = "cosine",
    centroids: int = 10,
    rule_temperature: float = 0.05,
    trim: float = 0.0,
    neighbors: Neighbors | None = None,
    graph: Graph | None = None,
    block_rows: int = 4096,
    threads: int = 0,
    device: Device = "auto",
) -> Proxies:
    """The two proxies of every cluster; of equal scores (closer than 1e-12) the lowest index.

    The only member of a cluster is both its proxies. Where nothing is foreign, the inter proxy of the only cluster is
    its first member able. The proxies depend neither on `block_rows`, `threads` and `device`, nor on whether
    `neighbors` are given. The table is read in blocks and may be a file mapped into memory; but for C2 in order of
    index.

    Longer than our rule for functions because it names every choice there is.

    Args:
        features: unit rows.
        labels: 0..C-1, each at least once; -1 is noise.
        inter_rule: how similarity to other clusters is aggregated (method.md 4.5 B): "mean" (B1), "cluster_mean"
            (B2), "nearest_sample" (B3), "nearest_centroids" (B4), "log_sum_exp" (B5).
        intra_rule: the same inside the cluster (4.5 C): "mean" (C1), "minimum" (C2).
        foreign: what that is aggregated over (4.5 A): "samples" (A1), "centroids" (A2), "proxies" (A3: mined by A1,
            then once more against the inter proxies so found), "noise_too" (A4). `choices.py` says what goes together.
        space: whose similarity it is (4.5 K): "cosine" of features (K1), or 1 - distance in the "jaccard" `graph` (K2).
        centroids: how many the mean of B4 is over, >= 1.
        rule_temperature: of B5, 1e-6 to 100.
        trim: share of the clustered images that cannot become a proxy (4.5 L), see `able_members`; below 0.5.
        neighbors: from `similarity.nearest` of the same features, exact. Spares B3 the search for all rows that have a
            foreign neighbour; the other rules do not look at it.
        graph: the weights of the same features and what `lists.invert` makes of them; K1 does not look at it.
        block_rows: rows multiplied at a time, 8192 at most.
        threads: 0 takes torch's number.
        device: where blocks are multiplied; "auto" is the GPU where torch finds one. Not used by K2, nor by B1, B2, C1.

    Raises:
        ConfigError: options out of range or that do not go together, K2 without a graph, a device that is not there.
        GraclError: labels that are not numbered 0..C-1, or neighbours or a graph of other features.
    """
    check_rules(
        inter_rule=inter_rule,
        intra_rule=intra_rule,
        foreign=foreign,
        space=space,
        centroids=centroids,
        rule_temperature=rule_temperature,
        trim=trim,
        block_rows=block_rows,
    )
    threads, (_, place) = thread_count(threads), resolve(Options(device=device))
    sizes, features = cluster_sizes(labels), np.ascontiguousarray(features)
    sums = cluster_sums(features, labels, len(sizes), block_rows, threads)
    rules: dict[str, Any] = {"inter_rule": inter_rule, "intra_rule": intra_rule, "threads": threads}
    with steady(threads):
        if space == "jaccard":
            own, scores = by_jaccard(graph, labels, sizes, noise_too=foreign == "noise_too", **rules)
        else:
            own, scores = by_cosine(
                features,
                labels,
                sizes,
                sums,
                foreign=foreign,
                centroids=centroids,
                rule_temperature=rule_temperature,
                ranked=trim > 0,
                neighbors=neighbors,
                block_rows=block_rows,
                place=place,
                **rules,
            )
        able = able_members(own, labels, sizes, trim)
        inter = _lowest(scores(able, None), labels, able, len(sizes))
        if foreign == "proxies":
            inter = _lowest(scores(able, inter), labels, able, len(sizes))
    intra = _lowest(own, labels, able, len(sizes))
    return Proxies(
        inter=features[inter].astype(np.float32),
        intra=features[intra].astype(np.float32),
        inter_image=inter,
        intra_image=intra,
        cluster_sums=sums.astype(np.float32),
    )


def cluster_sizes(labels: Int64[ndarray, "images"]) -> Int64[ndarray, "clusters"]:
    """How many members each cluster has.

    Raises:
        GraclError: labels below -1, or a number that no image has.
    """
    if len(labels) and labels.min() < NOISE:
        raise GraclError(expected("labels from -1 up", labels.min(), "use the labels of dbscan"))
    sizes = np.bincount(labels[labels != NOISE])
    if not sizes.all():
        raise GraclError(
            expected(
                "clusters 0..C-1, each with a member", f"none in {np.flatnonzero(sizes == 0)[:5].tolist()}", "renumber"
            )
        )
    return sizes


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


def _lowest(
    scores: Float64[ndarray, "images"], labels: Int64[ndarray, "images"], able: Int64[ndarray, "able"], clusters: int
) -> Int64[ndarray, "clusters"]:
    """The first able member of each cluster whose score equals the lowest of these; infinity equals infinity."""
    lowest = np.full(clusters, np.inf)
    np.minimum.at(lowest, labels[able], scores[able])
    equal = able[scores[able] <= lowest[labels[able]] + EQUAL]
    first = np.full(clusters, len(labels), np.int64)
    np.minimum.at(first, labels[equal], equal)
    return first


@compiled
@typing.no_type_check
def _central(features, labels, sums, start, stop, central):
    """How near rows start..stop-1 are to the centre of their cluster, but for its length."""
    for row in range(start, stop):
        if labels[row] >= 0:
            central[row] = dot(features[row], sums[labels[row]])

"""What a clustering looks like, without knowing the truth: sizes, cameras, the regime of the proxies, silhouette."""

import typing

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from gracl.errors import ConfigError, GraclError, expected
from gracl.kernels import compiled, over_rows
from gracl.randomness import rng
from gracl.relations.lists import Inverted, Lists, meet
from gracl.relations.proxies import centrality_ranks, cluster_sizes
from gracl.types import NOISE, UNKNOWN, Feature, Proxies

_QUANTILES = {"size_min": 0.0, "size_p10": 0.1, "size_median": 0.5, "size_p90": 0.9, "size_max": 1.0}
# Weights in single precision: equal rows may share a little less than 1.
_SAME = 1e-6


def describe(
    features: Feature[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    proxies: Proxies,
    *,
    cameras: Int64[ndarray, "images"] | None = None,
    threads: int = 0,
) -> dict[str, float]:
    """What the clustering looks like and which regime the proxies are in (method.md 4.4).

    Args:
        features: unit rows.
        labels: 0..C-1, each at least once; -1 is noise.
        proxies: mined from them.
        cameras: who took each image. None, or -1 for any of them, and the two figures of cameras are left out.
        threads: 0 takes torch's number. No figure depends on it.

    Returns:
        `noise_fraction`; `size_min`, `size_p10`, `size_median`, `size_p90`, `size_max` (of the clusters, between two
        sizes linear); `mean_feature_norm` (of the clustered images; near 1: features share a direction);
        `proxies_coincide` (share of clusters whose two proxies are one image); `inter_centrality_rank` (mean place of
        the inter proxy in its cluster, 0 most central, 1 farthest; clusters of one left out); `camera_entropy` (mean
        over the clusters, see `camera_entropies`) and `single_camera_clusters` (share of clusters).

    Raises:
        GraclError: no cluster, or labels that are not numbered 0..C-1.
    """
    sizes = cluster_sizes(labels)
    if not len(sizes):
        raise GraclError(expected("at least one cluster", "noise only", "raise eps, or look at the features"))
    ranks = centrality_ranks(features, labels, proxies, threads=threads)
    mean = proxies.cluster_sums.sum(axis=0, dtype=np.float64) / sizes.sum()
    figures = {
        "noise_fraction": float((labels == NOISE).mean()),
        **{name: float(np.quantile(sizes, share)) for name, share in _QUANTILES.items()},
        "mean_feature_norm": float(np.linalg.norm(mean)),
        "proxies_coincide": float((proxies.inter_image == proxies.intra_image).mean()),
        "inter_centrality_rank": float(ranks.mean()) if len(ranks) else 0.0,
    }
    if cameras is not None and (cameras != UNKNOWN).all():
        entropies = camera_entropies(labels, cameras)
        figures["camera_entropy"] = float(entropies.mean())
        # One camera gives exactly 0, two or more never do; where there is only one, all clusters are of one.
        figures["single_camera_clusters"] = float((entropies == 0).mean())
    return figures


def camera_entropies(
    labels: Int64[ndarray, "images"], cameras: Int64[ndarray, "images"]
) -> Float64[ndarray, "clusters"]:
    """How evenly the cameras share each cluster: entropy of its camera histogram over that of an even one, 0..1.

    The even one has all cameras of the split, noise included. With one camera every entropy is 0.
    """
    sizes = cluster_sizes(labels)
    names, numbers = np.unique(cameras, return_inverse=True)
    if len(names) < 2:
        return np.zeros(len(sizes))
    clustered = labels != NOISE
    # Cluster and camera as one number, so that only the pairs that occur take room.
    pairs, counts = np.unique(labels[clustered] * len(names) + numbers[clustered], return_counts=True)
    clusters = pairs // len(names)
    shares = counts / sizes[clusters]
    sums = np.bincount(clusters, shares * -np.log(shares), minlength=len(sizes))
    return np.asarray(sums / np.log(len(names)))


def silhouette(
    weights: Lists,
    inverted: Inverted,
    labels: Int64[ndarray, "images"],
    *,
    sample: int = 10_000,
    threads: int = 0,
) -> float:
    """Mean silhouette of the clustered rows (Rousseeuw 1987) under the Jaccard distance 1 - m / (2 - m); -1..1.

    For a row let a be the mean distance to the other members of its cluster, b the lowest mean distance to the
    members of another one; its silhouette is (b - a) / max(a, b), 0 where both are 0 (below 1e-6, the precision of the
    weights), and 0 in a cluster of one. Rows that share no neighbour are at distance 1; noise takes no part. No
    distance is stored: memory is O(rows + clusters) for each thread.

    Args:
        weights: the final weights, whose shared minima are m; values > 0, a row sums to 1.
        inverted: what `lists.invert` makes of them.
        labels: 0..C-1, each at least once; -1 is noise.
        sample: with more clustered rows than this, it is the mean of this many of them, always the same.
        threads: 0 takes torch's number. The result does not depend on it.

    Returns:
        The mean; 0 with fewer than two clusters, where b has no meaning.

    Raises:
        ConfigError: `sample` below 1.
        GraclError: labels that are not numbered 0..C-1, or of other rows.
    """
    if sample < 1:
        raise ConfigError(expected("sample >= 1", sample, "the usual value is 10000"))
    if len(labels) != len(weights.starts) - 1:
        raise GraclError(
            expected(f"{len(weights.starts) - 1} labels", len(labels), "take the labels of the same features")
        )
    sizes, labels = cluster_sizes(labels), labels[weights.names]
    if len(sizes) < 2:
        return 0.0
    rows = np.flatnonzero(labels != NOISE)
    if len(rows) > sample:
        rows = np.sort(rng(0, "silhouette").choice(rows, sample, replace=False))
    lists = weights.starts, weights.ids, weights.values, inverted.heads, inverted.holders, inverted.weights
    scores = np.empty(len(rows))
    over_rows(
        lambda start, stop: _silhouette(*lists, labels, sizes, rows, start, stop, scores), len(rows), threads=threads
    )
    return float(scores.mean())


@compiled
@typing.no_type_check
def _silhouette(starts, ids, values, heads, holders, weights, labels, sizes, rows, start, stop, scores):
    """Silhouettes of rows[start..stop-1]."""
    shared, met = np.zeros(labels.size, np.float64), np.empty(labels.size, np.int64)
    near, reached = np.zeros(sizes.size, np.float64), np.empty(sizes.size, np.int64)
    clustered = labels >= 0
    for i in range(start, stop):
        row = rows[i]
        count = meet(starts, ids, values, heads, holders, weights, clustered, row, shared, met)
        clusters = _gather(shared, met, count, labels, near, reached)
        scores[i] = _score(labels[row], sizes, near, reached, clusters)


@compiled
@typing.no_type_check
def _gather(shared, met, count, labels, near, reached):
    """Adds 1 - distance of the rows met to their clusters, and clears `shared`; how many clusters were reached."""
    clusters = 0
    for c in range(count):
        m, cluster = shared[met[c]], labels[met[c]]
        shared[met[c]] = 0.0
        if near[cluster] == 0.0:
            reached[clusters] = cluster
            clusters += 1
        similarity = m / (2.0 - m)
        near[cluster] += 1.0 if similarity > 1.0 - _SAME else similarity
    return clusters


@compiled
@typing.no_type_check
def _score(own, sizes, near, reached, clusters):
    """The silhouette of one row of cluster `own` from the sums of 1 - distance, which are cleared."""
    # A cluster that was not reached is at distance 1, and none is farther.
    a, b = 1.0, 1.0
    for c in range(clusters):
        cluster = reached[c]
        if cluster == own:
            a = 1.0 - near[cluster] / (sizes[cluster] - 1)
        else:
            b = min(b, 1.0 - near[cluster] / sizes[cluster])
        near[cluster] = 0.0
    if sizes[own] == 1 or max(a, b) < _SAME:
        return 0.0
    return (b - a) / max(a, b)

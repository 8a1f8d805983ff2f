"""Which members stand for a cluster: the inter- and intra-ID relation-aware proxies of GRACL, in linear time.

With S_c the sum of the features of cluster c, n_c its size, S and M the same of all clustered images (method.md 4.3):

    foreign similarity of i   (f_i . S - f_i . S_c) / (M - n_c)       mean over the samples of other clusters (B1)
    own similarity of i       (f_i . S_c - f_i . f_i) / (n_c - 1)     mean over the other members (C1)

The inter proxy is the member with the lowest foreign similarity, the intra proxy the one with the lowest own
similarity. Noise takes part in neither (A1).
"""

import typing

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from gracl.errors import GraclError, expected
from gracl.kernels import compiled, dot, over_rows
from gracl.types import NOISE, Proxies

# Sums in double precision differ by less than this from the true means of float32 features; scores closer than that
# are equal (the two members of a pair always are).
_EQUAL = 1e-12


def mine_proxies(
    features: Float32[ndarray, "images dim"], labels: Int64[ndarray, "images"], *, threads: int = 0
) -> Proxies:
    """The two proxies of every cluster; of equal scores (closer than 1e-12) the lowest index.

    The only member of a cluster is both its proxies. Where there is only one cluster nothing is foreign, and its
    inter proxy is its first member.

    Args:
        features: unit rows.
        labels: 0..C-1, each at least once; -1 is noise.
        threads: 0 takes torch's number. The result does not depend on it.

    Raises:
        GraclError: labels that are not numbered 0..C-1.
    """
    sizes = cluster_sizes(labels)
    features = np.ascontiguousarray(features)
    sums = np.zeros((len(sizes), features.shape[1]))
    over_rows(lambda start, stop: _add(features, labels, start, stop, sums), features.shape[1], threads=threads)
    total = sums.sum(axis=0)
    foreign, own = np.zeros(len(labels)), np.zeros(len(labels))
    over_rows(
        lambda start, stop: _score(features, labels, sizes, sums, total, start, stop, foreign, own),
        len(labels),
        threads=threads,
    )
    inter, intra = _lowest(foreign, labels, len(sizes)), _lowest(own, labels, len(sizes))
    return Proxies(
        inter=features[inter],
        intra=features[intra],
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
    features: Float32[ndarray, "images dim"], labels: Int64[ndarray, "images"], proxies: Proxies, *, threads: int = 0
) -> Float64[ndarray, "large_clusters"]:
    """Where each inter proxy stands in its cluster: 0 the most central member, 1 the farthest (method.md 4.4).

    It is the share of the other members whose cosine to the cluster's centre is higher. Clusters of one are left out.
    """
    sizes = cluster_sizes(labels)
    nearer = np.zeros(len(labels), np.bool_)
    features = np.ascontiguousarray(features)
    over_rows(
        lambda start, stop: _nearer(features, labels, proxies.inter, proxies.cluster_sums, start, stop, nearer),
        len(labels),
        threads=threads,
    )
    counts = np.bincount(labels[nearer], minlength=len(sizes))
    large = sizes > 1
    return np.asarray(counts[large] / (sizes[large] - 1))


def _lowest(
    scores: Float64[ndarray, "images"], labels: Int64[ndarray, "images"], clusters: int
) -> Int64[ndarray, "clusters"]:
    """The first member of each cluster whose score equals the cluster's lowest."""
    members = np.flatnonzero(labels != NOISE)
    lowest = np.full(clusters, np.inf)
    np.minimum.at(lowest, labels[members], scores[members])
    equal = members[scores[members] <= lowest[labels[members]] + _EQUAL]
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
                sums[labels[row], column] += features[row, column]


@compiled
@typing.no_type_check
def _score(features, labels, sizes, sums, total, start, stop, foreign, own):
    """Foreign and own similarity of rows start..stop-1."""
    clustered = sizes.sum()
    for row in range(start, stop):
        c = labels[row]
        if c < 0:
            continue
        inside = dot(features[row], sums[c])
        if clustered > sizes[c]:
            foreign[row] = (dot(features[row], total) - inside) / (clustered - sizes[c])
        if sizes[c] > 1:
            own[row] = (inside - dot(features[row], features[row])) / (sizes[c] - 1)


@compiled
@typing.no_type_check
def _nearer(features, labels, inter, sums, start, stop, nearer):
    """Which of rows start..stop-1 are nearer to their cluster's centre than its inter proxy."""
    for row in range(start, stop):
        c = labels[row]
        if c >= 0:
            nearer[row] = dot(features[row], sums[c]) > dot(inter[c], sums[c])

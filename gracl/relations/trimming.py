"""Who can become a proxy: all clustered images but a share of those least like their own cluster (method.md 4.5 L)."""

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from gracl.relations.scoring import EQUAL
from gracl.types import NOISE


def able_members(
    own: Float64[ndarray, "images"],
    labels: Int64[ndarray, "images"],
    sizes: Int64[ndarray, "clusters"],
    trim: float,
) -> Int64[ndarray, "able"]:
    """The clustered images that can become a proxy, ascending; each cluster has one.

    Clustered images that are not alone in their cluster are put in order of own similarity; scores closer than 1e-12
    to that of the last one out are equal to it, and of those the lower indices come first. The first
    floor(trim x clustered images) are out. But the last of a cluster in that order (its highest, of equal ones the
    highest index) stays able, and nobody takes its place. A share of each cluster would be nobody in small ones.

    Args:
        own: similarity to the own cluster, of every member of a cluster of two or more.
        trim: share of all clustered images, 0 <= trim < 0.5.
    """
    members = np.flatnonzero(labels != NOISE)
    judged = members[sizes[labels[members]] > 1]
    count = min(int(trim * len(members)), len(judged))
    if not count:
        return members
    scores = own[judged]
    edge = np.partition(scores, count - 1)[count - 1]
    below, equal = judged[scores < edge - EQUAL], judged[np.abs(scores - edge) <= EQUAL]
    able = labels != NOISE
    able[below] = able[equal[: count - len(below)]] = False
    able[_lasts(own, judged, labels, able, len(sizes))] = True
    return np.flatnonzero(able)


def _lasts(
    own: Float64[ndarray, "images"], judged: ndarray, labels: ndarray, able: ndarray, clusters: int
) -> Int64[ndarray, "lost"]:
    """The last of each cluster that has nobody left: of its highest the highest index."""
    lost = judged[np.bincount(labels[able], minlength=clusters)[labels[judged]] == 0]
    highest = np.full(clusters, -np.inf)
    np.maximum.at(highest, labels[lost], own[lost])
    equal = lost[own[lost] >= highest[labels[lost]] - EQUAL]
    last = np.full(clusters, -1, np.int64)
    np.maximum.at(last, labels[equal], equal)
    return last[last >= 0]

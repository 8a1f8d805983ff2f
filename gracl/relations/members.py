"""Who is in a cluster, who stands apart, and who may be a proxy."""

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from gracl.errors import GraclError, expected
from gracl.types import NOISE


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


def noise_apart(labels: Int64[ndarray, "images"]) -> Int64[ndarray, "images"]:
    """Every noise image as a cluster of its own, numbered after the others in order of index."""
    noise = labels == NOISE
    return np.where(noise, labels.max(initial=NOISE) + np.cumsum(noise), labels)


def eligible_members(
    own: Float64[ndarray, "images"], labels: Int64[ndarray, "images"], trim: float
) -> Bool[ndarray, "images"]:
    """Which images may be proxies: all but the share `trim` with the lowest own similarity, rounded down.

    It is a share of all images in clusters of two or more: a few percent of the ten images of one would be none.
    Similarities that are equal to twelve digits are equal, and of equal ones the higher index goes first. The last
    member of a cluster stays, so fewer may go.

    Args:
        own: similarity to the other members.
    """
    eligible, sizes = np.ones(len(labels), bool), cluster_sizes(labels)
    members = np.flatnonzero((labels != NOISE) & (sizes[labels] > 1) if len(sizes) else labels != NOISE)
    order = members[np.lexsort((-members, np.round(own[members], 12)))]
    eligible[order[: int(trim * len(members))]] = False
    # The best of a cluster is its last in the order, and so the first in the order's reverse.
    clusters, last = np.unique(labels[order[::-1]], return_index=True)
    left = np.bincount(labels[members], weights=eligible[members], minlength=len(sizes))
    eligible[order[::-1][last[left[clusters] == 0]]] = True
    return eligible

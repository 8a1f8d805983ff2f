"""Which images of clusters are reliable (SpCL, Ge et al., NeurIPS 2020), and what noise is."""

from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.errors import ConfigError, expected
from gracl.relations.clusters import dbscan, numbered
from gracl.types import NOISE

Noise = Literal["left_out", "own_clusters"]
# How far eps is moved to either side: SpCL's gap.
EPS_GAP = 0.02


def reliable_labels(
    distance: csr_array,
    labels: Int64[ndarray, "rows"],
    *,
    eps: float,
    min_samples: int,
    least: float,
    counts: Int64[ndarray, "rows"] | None = None,
) -> Int64[ndarray, "rows"]:
    """The labels of rows whose cluster stays much the same when eps moves a little; the others are noise.

    A row is *reliable* when the overlap (shared rows over all rows of the two) of its cluster with its cluster at
    `eps - EPS_GAP` and with that at `eps + EPS_GAP` is at least `least`; where it is noise it is a cluster of one.
    After the compactness and independence of SpCL, which asks them of clusters, with bounds of its own for each.

    Args:
        distance: symmetric, up to `eps + EPS_GAP` at least. Left as it is.
        labels: `dbscan`'s at `eps`.
        eps, min_samples: see `clusters.dbscan`.
        least: 0..1; 1 keeps rows whose three clusters are the same.
        counts: how many images each row stands for, see `clusters.dbscan`; the overlap is then one of images.

    Returns:
        Labels numbered by first member; a cluster of which nobody is reliable is gone.
    """
    reliable = labels != NOISE
    counts = np.ones(len(labels), np.int64) if counts is None else counts
    copies, firsts = np.repeat(np.arange(len(labels)), counts), np.cumsum(counts) - counts
    for other in (eps - EPS_GAP, eps + EPS_GAP):
        found = dbscan(distance, eps=other, min_samples=min_samples, counts=counts)
        reliable &= overlaps(labels[copies], found[copies])[firsts] >= least
    return np.asarray(numbered(np.where(reliable, labels, NOISE)))


def overlaps(one: Int64[ndarray, "rows"], other: Int64[ndarray, "rows"]) -> Float64[ndarray, "rows"]:
    """For each row the rows in both of its clusters over the rows in either; noise is a cluster of one."""
    one, other = own_clusters(one), own_clusters(other)
    # Two clusters as one number, so that only the pairs that meet take room.
    _, of_pair, shared = np.unique(one * (other.max() + 1) + other, return_inverse=True, return_counts=True)
    both = shared[of_pair]
    return np.asarray(both / (np.bincount(one)[one] + np.bincount(other)[other] - both))


def own_clusters(labels: Int64[ndarray, "rows"]) -> Int64[ndarray, "rows"]:
    """The labels with each noise row a cluster of its own, numbered by first member."""
    noise = labels == NOISE
    apart = labels.copy()
    apart[noise] = labels.max(initial=NOISE) + 1 + np.arange(noise.sum())
    return np.asarray(numbered(apart))


def check_refining(reliability: float, noise: str, clustering: str, eps: float) -> None:
    """Refuses bounds that no row could meet, and a test that another clustering than DBSCAN does not pass through.

    Raises:
        ConfigError: one of them is out of range.
    """
    if noise not in ("left_out", "own_clusters"):
        raise ConfigError(expected("noise of left_out or own_clusters", repr(noise), "set relations.noise=left_out"))
    if not 0 <= reliability <= 1:
        raise ConfigError(expected("relations.reliability of 0 to 1", reliability, "0 leaves the test out"))
    if reliability and (clustering != "dbscan" or not EPS_GAP < eps < 1 - EPS_GAP):
        what = f"clustering=dbscan and an eps between {EPS_GAP} and {1 - EPS_GAP} with relations.reliability"
        raise ConfigError(expected(what, f"{clustering}, {eps}", "set relations.reliability=0"))

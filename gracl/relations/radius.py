"""How far is near: eps chosen from the Jaccard distances themselves, for `relations.eps=auto`.

As eps grows, noise becomes clusters, and then clusters run into each other. The silhouette alone likes a few tight
clusters and much noise, the share of clustered rows one cluster of all. Their product, which is the mean silhouette
over *all* rows with 0 for noise, falls on either side, and where it is highest labels agree best with the truth of the
worlds that were measured (docs/results.md, section 9, with what else was tried).
"""

from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.errors import ConfigError, expected
from gracl.relations.clusters import dbscan
from gracl.relations.diagnostics import silhouette
from gracl.relations.lists import Inverted, Lists
from gracl.types import NOISE

Eps = float | Literal["auto"]

# On 35 tables of features the best fixed eps was 0.4 to 0.575, but for an easy world (0.325 and 0.225), which loses
# little at 0.4. A wider range finds nothing more, and the graph is held up to the largest.
CANDIDATES = tuple(n / 40 for n in range(12, 29))
# Scores this close to the best, as a share of it, are as good: their middle moves less between nearly equal features
# than the place of the highest does, and is as good (docs/results.md, section 9).
_CLOSE = 0.02


def share_of_eps(epoch: int, first: float, rise: int) -> float:
    """With which share of eps an epoch clusters: `first` at epoch 0, even steps to 1 at epoch `rise`, and then 1.

    Early features tell objects apart badly, and clusters of several objects stay together once they are learnt; a
    smaller eps at first keeps them apart, at the price of noise (docs/results.md, section 19).

    Raises:
        ConfigError: a share outside 0 to 1 (0 not among them), or a rise of less than one epoch.
    """
    if not 0 < first <= 1 or rise < 1:
        came = f"eps_first={first:g}, eps_rise={rise}"
        raise ConfigError(expected("eps_first above 0 and at most 1, eps_rise of 1 or more", came, "set eps_first=1"))
    return first + (1 - first) * min(epoch / rise, 1.0)


def largest_eps(eps: Eps, clustering: str) -> float:
    """How far the graph has to reach: eps itself, or the largest that "auto" may choose.

    Raises:
        ConfigError: a word other than "auto", or "auto" for another clustering than DBSCAN: hdbscan has no eps, and
            infomap does better at 0.6 than at what DBSCAN's clusters choose (docs/results.md, section 9).
    """
    if not isinstance(eps, str):
        return eps
    if eps != "auto" or clustering != "dbscan":
        raise ConfigError(
            expected(
                "eps as a number, or auto with clustering=dbscan",
                f"eps={eps}, clustering={clustering}",
                "give eps a number between 0 and 1, for infomap perhaps 0.6",
            )
        )
    return CANDIDATES[-1]


def choose_eps(
    distance: csr_array,
    weights: Lists,
    inverted: Inverted,
    *,
    min_samples: int = 4,
    counts: Int64[ndarray, "rows"] | None = None,
    threads: int = 0,
) -> float:
    """The eps at which DBSCAN's clusters are apart from each other and hold most rows, without any identity.

    Time is that of a DBSCAN and a silhouette for each of `CANDIDATES`; memory that of one of them.

    Args:
        distance: of these weights, up to `CANDIDATES[-1]` at least. Left as it is.
        weights, inverted: see `diagnostics.silhouette`.
        min_samples, counts: see `clusters.dbscan`; in the silhouette and the share every row counts once.
        threads: 0 takes torch's number. The result does not depend on it.

    Returns:
        Between the first and the last of `CANDIDATES`; see `middle_of_best`.
    """
    scores = [
        covered_silhouette(
            distance, weights, inverted, eps=eps, min_samples=min_samples, counts=counts, threads=threads
        )
        for eps in CANDIDATES
    ]
    return middle_of_best(np.array(CANDIDATES), np.array(scores))


def covered_silhouette(
    distance: csr_array,
    weights: Lists,
    inverted: Inverted,
    *,
    eps: float,
    min_samples: int,
    counts: Int64[ndarray, "rows"] | None = None,
    threads: int = 0,
) -> float:
    """Mean silhouette over all rows at this eps, noise counted as 0; 0 with fewer than two clusters. -1..1."""
    labels = dbscan(distance, eps=eps, min_samples=min_samples, counts=counts)
    if labels.max(initial=NOISE) < 1:
        return 0.0
    return silhouette(weights, inverted, labels, threads=threads) * float((labels != NOISE).mean())


def middle_of_best(candidates: Float64[ndarray, "candidates"], scores: Float64[ndarray, "candidates"]) -> float:
    """The mean of the candidates around the best (of equal ones the first) whose scores are close to its.

    "Around": one after the other, so that the middle of two peaks with a valley between is never taken.
    """
    best = int(scores.argmax())
    far = np.flatnonzero(scores < scores[best] - _CLOSE * abs(scores[best]))
    first = far[far < best].max(initial=-1) + 1
    last = far[far > best].min(initial=len(scores)) - 1
    return float(candidates[first : last + 1].mean())

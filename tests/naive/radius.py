"""The choice of eps by definition: every candidate, one after the other, on dense tables."""

import numpy as np

from tests.naive.cameras import silhouettes
from tests.naive.relations import dbscan


def score(distance, stored, eps, min_samples):
    """The silhouettes of the clustered rows, summed, over all rows; 0 with fewer than two clusters.

    Args:
        distance: of the silhouettes, in double precision.
        stored: of DBSCAN, as float32 has them, so that rounding decides in the same way.
    """
    labels = dbscan(stored, np.float32(eps), min_samples)
    if len(set(labels) - {-1}) < 2:
        return 0.0
    return sum(silhouettes(distance, labels)) / len(labels)


def middle(candidates, scores, close=0.02):
    """Walks away from the first best candidate, down and up, while scores are close to the best."""
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    least = scores[best] - close * abs(scores[best])
    taken = [candidates[best]]
    for step in (-1, 1):
        i = best + step
        while 0 <= i < len(scores) and scores[i] >= least:
            taken.append(candidates[i])
            i += step
    return sum(taken) / len(taken)

"""How far pseudo labels agree with the true objects: adjusted Rand index, normalised mutual information, purity.

For judging a run when it is over. Nothing that trains may know of this file (`tests/architecture/test_truth.py`).
"""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.types import NOISE, UNKNOWN


def agreement(labels: Int64[ndarray, "images"], objects: Int64[ndarray, "images"]) -> dict[str, float]:
    """What the labels have in common with the objects; images of unknown objects are left out.

    Args:
        labels: the cluster of each image, -1 for noise.
        objects: who is on it, -1 where unknown.

    Returns:
        `ari` (Hubert and Arabie 1985: 1 same partition, 0 on average for random ones, below 0 worse), `nmi` (mutual
        information over the arithmetic mean of the two entropies, 0..1) and `purity` (share of the images that are of
        their cluster's most frequent object, 0..1), all three of the clustered images alone: read them beside the
        share of noise. `ari_all` counts noise too, each image of it as a cluster of its own. `objects`: how many
        there are, noise included.
        Empty where no object is known. Where all images are noise `ari`, `nmi` and `purity` are missing.
    """
    # scikit-learn costs a second of the start of every process that could ask for this.
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = objects != UNKNOWN
    labels, objects = labels[known], objects[known]
    if not len(objects):
        return {}
    noise = labels == NOISE
    alone = labels.copy()
    alone[noise] = labels.max() + 1 + np.arange(noise.sum())
    figures = {"ari_all": float(adjusted_rand_score(objects, alone)), "objects": float(len(np.unique(objects)))}
    labels, objects = labels[~noise], objects[~noise]
    if len(labels):
        figures |= {
            "ari": float(adjusted_rand_score(objects, labels)),
            "nmi": float(normalized_mutual_info_score(objects, labels)),
            "purity": purity(labels, objects),
        }
    return figures


def purity(labels: Int64[ndarray, "images"], objects: Int64[ndarray, "images"]) -> float:
    """Share of the images that are of their cluster's most frequent object; of one image or more."""
    clusters, numbers = np.unique(labels, return_inverse=True)
    names, owners = np.unique(objects, return_inverse=True)
    pairs, counts = np.unique(numbers * len(names) + owners, return_counts=True)
    largest = np.zeros(len(clusters), np.int64)
    np.maximum.at(largest, pairs // len(names), counts)
    return float(largest.sum() / len(labels))

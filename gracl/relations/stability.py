"""Do other views of the same images give the same clusters? A figure for those who have no identities."""

from typing import Any

from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import ClusteringCollapsed
from gracl.relations.refining import own_clusters
from gracl.relations.relate import relate
from gracl.types import Feature


def stability(features: Feature[ndarray, "images dim"], labels: Int64[ndarray, "images"], **options: Any) -> float:
    """The agreement of `labels` with those that other features of the same images get, with the same settings.

    The adjusted Rand index (Hubert and Arabie 1985) over all images, each image of noise a cluster of its own: 1 for
    the same partition, 0 on average for random ones; 0 too where the other features have fewer than two clusters. After
    the idea that clusters are to be trusted as far as they outlive a change that should not matter (Ben-Hur, Elisseeff
    and Guyon, "A stability based method for discovering structure in clustered data", 2002).

    Args:
        features: unit rows.
        labels: -1 for noise.
        options: of `relate`; the proxies' are of no account.
    """
    # scikit-learn costs a second of the start of every process that could ask for this; few do.
    from sklearn.metrics import adjusted_rand_score

    try:
        others = relate(features, **options).labels
    except ClusteringCollapsed:
        return 0.0
    return float(adjusted_rand_score(own_clusters(labels), own_clusters(others)))

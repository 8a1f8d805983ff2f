"""Which images are taken for one object: the three clusterings behind one function."""

from typing import Literal, get_args

from jaxtyping import Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.errors import ConfigError, expected
from gracl.relations.clusters import dbscan
from gracl.relations.hdbscan import hdbscan
from gracl.relations.infomap import infomap

Clustering = Literal["dbscan", "hdbscan", "infomap"]


def cluster(
    distance: csr_array,
    *,
    clustering: Clustering = "dbscan",
    eps: float = 0.6,
    min_samples: int = 4,
    min_cluster_size: int = 8,
    counts: Int64[ndarray, "rows"] | None = None,
) -> Int64[ndarray, "rows"]:
    """Labels of the rows, numbered by first member; -1 is noise.

    Args:
        distance: symmetric, in [0, 1]; what is not stored is at distance 1. Left as it is. For hdbscan it has to hold
            all pairs below 1, for the others those up to `eps` are enough.
        clustering: see `clusters.dbscan`, `hdbscan.hdbscan` and `infomap.infomap`.
        eps: 0 < eps < 1; hdbscan has no use for it.
        min_samples: >= 1.
        min_cluster_size: >= 2; only hdbscan has a use for it.
        counts: how many images each row stands for, see `clusters.dbscan`; only dbscan can count so.

    Raises:
        ConfigError: a clustering that there is not, options out of range (those that it has no use for, too), counts
            for one that cannot count, or a package that is missing.
        GraclError: a matrix that is not square.
    """
    if clustering not in get_args(Clustering):
        raise ConfigError(expected("a clustering", repr(clustering), f"take one of {', '.join(get_args(Clustering))}"))
    if not 0 < eps < 1 or min_cluster_size < 2:
        raise ConfigError(
            expected(
                "0 < eps < 1 and min_cluster_size >= 2",
                f"{eps} and {min_cluster_size}",
                "the usual values are 0.6 and 8",
            )
        )
    if counts is not None and clustering != "dbscan":
        what = "clustering=dbscan where rows stand for several images (tracks)"
        raise ConfigError(expected(what, clustering, "set relations.clustering=dbscan, or tracks=ignore"))
    if clustering == "hdbscan":
        return hdbscan(distance, min_samples=min_samples, min_cluster_size=min_cluster_size)
    if clustering == "infomap":
        return infomap(distance, eps=eps, min_samples=min_samples)
    return dbscan(distance, eps=eps, min_samples=min_samples, counts=counts)

"""Features into labels and proxies: the four steps of the relations in order, checked before and timed.

nearest neighbours -> k-reciprocal Jaccard distance -> DBSCAN -> proxies.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from gracl.errors import ClusteringCollapsed, ConfigError, GraclError, expected
from gracl.relations.clusters import dbscan
from gracl.relations.jaccard import jaccard_distance
from gracl.relations.proxies import centrality_ranks, cluster_sizes, mine_proxies
from gracl.similarity import Backend, Device, nearest
from gracl.types import NOISE, Assignment, Proxies

Progress = Callable[[str, int, int], None]

_LENGTH = 1e-3


def relate(
    features: Float32[ndarray, "images dim"],
    *,
    epoch: int = 0,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    min_samples: int = 4,
    backend: Backend = "auto",
    block_rows: int = 4096,
    threads: int = 0,
    device: Device = "auto",
    progress: Progress | None = None,
) -> Assignment:
    """What one epoch believes of all images: a label for each, and two proxies for each cluster (method.md 4.6).

    Args:
        features: unit rows in order of index, float32.
        epoch: written into the assignment.
        k1, k2: see `jaccard_distance`; with fewer images than k1 every image is everybody's neighbour.
        eps, min_samples: see `dbscan`.
        backend, block_rows, device: see `similarity.nearest`.
        threads: CPU threads of all steps; 0 takes torch's number. Labels and proxies do not depend on it.
        progress: called with (phase, done, rows); the phases are knn, jaccard, dbscan and proxies.

    Returns:
        An assignment whose stats are `knn_s`, `jaccard_s`, `dbscan_s`, `proxies_s` (seconds), `noise_fraction`,
        `size_min`, `size_median`, `size_max` (of the clusters), and the three numbers of method.md 4.4:
        `mean_feature_norm` (of the clustered images; near 1: features share a direction), `proxies_coincide` (share
        of clusters whose two proxies are one image), `inter_centrality_rank` (mean place of the inter proxy in its
        cluster, 0 most central, 1 farthest; clusters of one left out).

    Raises:
        ConfigError: options out of range.
        GraclError: features that are empty, not float32, not finite or not of unit length.
        ClusteringCollapsed: fewer than two clusters.
    """
    _check_options(k1, k2, eps, min_samples)
    _check_features(features)
    tell = progress or (lambda phase, done, rows: None)
    rows, stats = len(features), dict[str, float]()
    with _phase("knn", stats):
        neighbors = nearest(
            features,
            k1,
            backend=backend,
            block_rows=block_rows,
            threads=threads,
            device=device,
            progress=lambda done, rows: tell("knn", done, rows),
        )
    with _phase("jaccard", stats):
        # DBSCAN asks for nothing beyond eps, and what lies between eps and 1 is by far the most.
        distance = jaccard_distance(
            neighbors,
            features,
            k1=k1,
            k2=k2,
            limit=eps,
            threads=threads,
            progress=lambda done, rows: tell("jaccard", done, rows),
        )
    with _phase("dbscan", stats):
        labels = dbscan(distance, eps=eps, min_samples=min_samples)
    tell("dbscan", rows, rows)
    _check_clusters(labels, eps)
    with _phase("proxies", stats):
        proxies = mine_proxies(features, labels, threads=threads)
        stats |= _diagnose(features, labels, proxies, threads)
    tell("proxies", rows, rows)
    return Assignment(epoch=epoch, labels=labels, proxies=proxies, stats=stats)


def _check_options(k1: int, k2: int, eps: float, min_samples: int) -> None:
    """Refuses settings before any work; the other options are refused by `nearest`, which comes first."""
    if not 1 <= k2 <= k1:
        raise ConfigError(expected("1 <= k2 <= k1", f"k1={k1}, k2={k2}", "the usual values are k1=30 and k2=6"))
    if not 0 < eps < 1:
        raise ConfigError(expected("0 < eps < 1", f"eps={eps}", "the usual values are 0.4 to 0.7"))
    if min_samples < 1:
        raise ConfigError(expected("min_samples >= 1", min_samples, "the usual value is 4"))


def _check_features(features: ndarray) -> None:
    """Refuses what could only give labels without meaning."""
    if features.ndim != 2 or features.dtype != np.float32 or not features.size:
        raise GraclError(
            expected(
                "a non-empty table of float32 feature rows",
                f"{features.dtype} of shape {features.shape}",
                "extract the features of at least one image",
            )
        )
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
    for what, bad in (
        ("finite features", ~np.isfinite(lengths)),
        ("feature rows of length 1", np.abs(lengths - 1) > _LENGTH),
    ):
        if bad.any():
            first = np.flatnonzero(bad)[:5]
            raise GraclError(
                expected(
                    what,
                    f"{bad.sum()} other rows, among them {first.tolist()} of length {lengths[first].tolist()}",
                    "look for the step in which the loss broke, or divide each row by its length",
                )
            )


def _check_clusters(labels: Int64[ndarray, "images"], eps: float) -> None:
    """Refuses fewer than two clusters: there is nothing to contrast."""
    clusters, noise = int(labels.max()) + 1, float((labels == NOISE).mean())
    if clusters < 2:
        move = "raise eps" if noise > 0.5 else "lower eps"
        raise ClusteringCollapsed(
            expected(
                "at least 2 clusters",
                f"{clusters} among {len(labels)} images, {noise:.1%} of them noise, at eps={eps}",
                f"{move} (relations.eps), or look whether the features still tell images apart",
            )
        )


def _diagnose(
    features: Float32[ndarray, "images dim"], labels: Int64[ndarray, "images"], proxies: Proxies, threads: int
) -> dict[str, float]:
    """What the clustering looks like and which regime the proxies are in (method.md 4.4)."""
    sizes = cluster_sizes(labels)
    ranks = centrality_ranks(features, labels, proxies, threads=threads)
    mean = proxies.cluster_sums.sum(axis=0, dtype=np.float64) / sizes.sum()
    return {
        "noise_fraction": float((labels == NOISE).mean()),
        "size_min": float(sizes.min()),
        "size_median": float(np.median(sizes)),
        "size_max": float(sizes.max()),
        "mean_feature_norm": float(np.linalg.norm(mean)),
        "proxies_coincide": float((proxies.inter_image == proxies.intra_image).mean()),
        "inter_centrality_rank": float(ranks.mean()) if len(ranks) else 0.0,
    }


@contextmanager
def _phase(name: str, stats: dict[str, float]) -> Iterator[None]:
    """Writes the seconds of a phase into the stats."""
    start = time.perf_counter()
    yield
    stats[f"{name}_s"] = time.perf_counter() - start

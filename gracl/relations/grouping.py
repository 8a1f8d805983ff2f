"""Features into groups, for those who have no labels and want to know who is on which image.

The steps of the relations (`relate`) up to the clusters; no proxies are mined, and nothing is a collapse. What is new:
how sure an image is of its group (`confidence.py`), the image that stands for a group, and tracks (`tracks.py`).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.errors import ConfigError, expected
from gracl.kernels import thread_count
from gracl.measuring import phase
from gracl.relations.cameras import check_list_lengths
from gracl.relations.checks import check_cameras, check_extras, check_features, check_memory, check_settings
from gracl.relations.closed import cluster_sums
from gracl.relations.clustering import Clustering, cluster
from gracl.relations.confidence import confidences
from gracl.relations.jaccard import shared_distance
from gracl.relations.lists import invert
from gracl.relations.radius import Eps, choose_eps, largest_eps
from gracl.relations.refining import EPS_GAP, check_refining
from gracl.relations.steps import WHOLE, Centre, Progress, centred, find_here, labels_at, sets_of, telling
from gracl.relations.tracks import Rows, rows_of
from gracl.similarity import Backend, Device, Index, Options, Search, resolve
from gracl.types import NOISE, UNKNOWN, Feature

_NO_GRAPH = csr_array(np.zeros((0, 0), np.float32))


@dataclass(frozen=True)
class Groups:
    """Who belongs together.

    Attributes:
        labels: 0..G-1, the largest group first, of equal ones that of the lowest image; -1 is no group.
        confidence: of each image in its group, 0..1; 0 in no group. See `confidence.py`.
        centres: for each group its image most similar to the group's mean feature; of equal ones the lowest.
        rows: what was related: images, or tracks and images of none.
        stats: `eps` (not for hdbscan), `knn_recall`, and seconds and peak memory by phase.
    """

    labels: Int64[ndarray, "images"]
    confidence: Float32[ndarray, "images"]
    centres: Int64[ndarray, "groups"]
    rows: int
    stats: dict[str, float]


def group(
    features: Feature[ndarray, "images dim"],
    *,
    cameras: Int64[ndarray, "images"] | None = None,
    tracks: Int64[ndarray, "_"] | None = None,
    centre: Centre = "none",
    centre_k: int = 150,
    k1: int = 30,
    k2: int = 6,
    camera_aware: bool = False,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 2,
    k2_inter: int = 4,
    clustering: Clustering = "dbscan",
    eps: Eps = 0.6,
    min_samples: int = 4,
    min_cluster_size: int = 8,
    reliability: float = 0.0,
    precision: Literal["float32", "float16"] = "float32",
    search: Search = "exact",
    index: Index = "ivf",
    effort: int = 0,
    backend: Backend = "auto",
    block_rows: int = 4096,
    threads: int = 0,
    device: Device = "auto",
    progress: Progress | None = None,
) -> Groups:
    """Which images are of one object, and how sure each of them is. The same features and settings, the same groups.

    Longer than our rule for functions because it names every choice there is.

    Args:
        features: unit rows in order of index, float32 or float16.
        cameras: who took each image, -1 where unknown; for `camera_aware` and `centre`.
        tracks: images of one number stay together, -1 is of no track; k1, k2 and `centre_k` then count tracks, and
            min_samples images. None: images alone.
        centre ... device: as those of `relate`; `progress`, too, whose phases are centre (local), knn, jaccard,
            cluster, confidence.

    Raises:
        ConfigError: options out of range, or that ask for cameras that are not known, or tracks with another clustering
            than DBSCAN.
        NonFiniteValue: NaN or infinity in the features.
        GraclError: features that are empty, of another dtype, not of unit length, or too many for memory.
    """
    searched: dict[str, Any] = {"search": search, "index": index, "effort": effort, "backend": backend}
    searched |= {"block_rows": block_rows, "threads": threads, "device": device}
    clustered: dict[str, Any] = {"clustering": clustering, "min_samples": min_samples}
    clustered |= {"eps": largest_eps(eps, clustering), "min_cluster_size": min_cluster_size}
    check_settings(k1, k2, 1, search, camera_aware, centre)
    check_list_lengths(k1_intra, k1_inter, k2_intra, k2_inter)
    resolve(Options(**searched))
    check_refining(reliability, "left_out", clustering, clustered["eps"])
    cluster(_NO_GRAPH, **clustered, counts=None if tracks is None else np.empty(0, np.int64))
    check_features(features, 1, threads)
    found = _rows(features, tracks, cameras, block_rows, threads)
    rows, counts = len(found.features), None if tracks is None else found.counts
    ks: dict[str, int] = {"k1": k1, "k2": k2}
    if camera_aware:
        ks = {"k1_intra": k1_intra, "k1_inter": k1_inter, "k2_intra": k2_intra, "k2_inter": k2_inter}
    lengths = k1_intra + k1_inter if camera_aware else k1
    check_extras(centre, centre_k, 0, 0, rows)
    _check_cameras(found, camera_aware, centre)
    check_features(found.features, lengths, threads)
    whole = clustering in WHOLE
    check_memory(found.features, lengths, whole, camera_aware, searched, centre=centre, centre_k=centre_k)
    shown = found.features.astype(np.float16, copy=False) if precision == "float16" else found.features
    tell, stats = progress or (lambda phase, done, rows: None), dict[str, float]()
    how: dict[str, Any] = {"shards": 1, "find": find_here, "stats": stats, "tell": tell, "searched": searched}
    compared = centred(shown, found.cameras, centre=centre, centre_k=centre_k, **how)
    _, weights = sets_of(compared, found.cameras if camera_aware else None, ks, **how)
    del compared, shown
    with phase("jaccard", stats):
        inverted = invert(weights)
        limit = 1.0 if whole else clustered["eps"] + (EPS_GAP if reliability else 0.0)
        distance = shared_distance(weights, inverted, limit=limit, threads=threads, progress=telling(tell, "jaccard"))
    with phase("cluster", stats):
        if eps == "auto":
            clustered["eps"] = choose_eps(
                distance, weights, inverted, min_samples=min_samples, counts=counts, threads=threads
            )
        if not whole:
            stats["eps"] = clustered["eps"]
        labels = labels_at(distance, clustered, reliability, stats, counts)
    del distance
    tell("cluster", rows, rows)
    with phase("confidence", stats):
        sure = confidences(weights, inverted, labels, counts=counts, threads=threads)[found.of_image]
        labels = by_size(labels[found.of_image])
        centres = _centres(features, labels, block_rows, thread_count(threads))
    tell("confidence", rows, rows)
    return Groups(labels, sure, centres, rows, stats)


def by_size(labels: Int64[ndarray, "images"]) -> Int64[ndarray, "images"]:
    """Groups numbered anew: the largest is 0, of equal ones that with the lowest image; -1 stays."""
    names, firsts, sizes = np.unique(labels[labels != NOISE], return_index=True, return_counts=True)
    order = np.lexsort((firsts, -sizes))
    numbers = np.full(int(labels.max(initial=NOISE)) + 2, NOISE, np.int64)  # the last place is that of -1
    numbers[names[order]] = np.arange(len(names))
    return np.asarray(numbers[labels])


def _rows(features: ndarray, tracks: ndarray | None, cameras: ndarray | None, block_rows: int, threads: int) -> Rows:
    if tracks is None:
        images = np.arange(len(features))
        return Rows(features, images, np.ones(len(features), np.int64), cameras)
    return rows_of(features, tracks, cameras, block_rows=block_rows, threads=thread_count(threads))


def _check_cameras(rows: Rows, camera_aware: bool, centre: str) -> None:
    """Refuses lists by camera where one is unknown, and a mean by camera where all are.

    Raises:
        ConfigError, GraclError: see above, and `checks.check_cameras`.
    """
    check_cameras(rows.cameras, len(rows.features), camera_aware or centre == "camera")
    unknown = int((rows.cameras == UNKNOWN).sum()) if rows.cameras is not None else 0
    if (camera_aware and unknown) or (centre == "camera" and unknown == len(rows.features)):
        what = "the camera of every image (of a track: one camera)" if camera_aware else "the camera of some image"
        do = "set relations.camera_aware=false" if camera_aware else "set relations.centre=none"
        raise ConfigError(expected(what, f"{unknown} of {len(rows.features)} unknown", do))


def _centres(
    features: Feature[ndarray, "images dim"], labels: Int64[ndarray, "images"], block_rows: int, threads: int
) -> Int64[ndarray, "groups"]:
    """For each group the image most similar to its mean, in double precision; of equal ones the lowest."""
    groups = int(labels.max(initial=NOISE)) + 1
    sums, scores = cluster_sums(features, labels, groups, block_rows, threads), np.empty(len(labels))
    for start in range(0, len(labels) if groups else 0, block_rows):
        rows = slice(start, start + block_rows)
        scores[rows] = np.einsum("rd,rd->r", features[rows].astype(np.float64), sums[labels[rows]])
    members = np.flatnonzero(labels != NOISE)
    order = members[np.lexsort((members, -scores[members], labels[members]))]
    return np.asarray(order[np.unique(labels[order], return_index=True)[1]])

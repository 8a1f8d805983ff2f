"""The steps that turn features into clusters, as `relate` and `grouping.group` take them."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.kernels import thread_count
from gracl.measuring import phase
from gracl.relations.cameras import camera_neighbors, camera_weights
from gracl.relations.centring import centre_by_camera, centre_by_neighbours
from gracl.relations.clustering import Clustering, cluster
from gracl.relations.jaccard import reciprocal_weights
from gracl.relations.lists import Lists
from gracl.relations.refining import reliable_labels
from gracl.similarity import Searcher, merged, shares
from gracl.types import NOISE, Feature, Neighbors

Progress = Callable[[str, int, int], None]
Centre = Literal["none", "camera", "local"]
# The whole graph is asked for only where the clustering looks beyond eps.
WHOLE: tuple[Clustering, ...] = ("hdbscan",)


@runtime_checkable
class Find(Protocol):
    """Who makes the neighbour table: the shares of the rows one after the other here, or side by side on a cluster."""

    def __call__(
        self,
        features: Feature[ndarray, "images dim"],
        k: int,
        *,
        parts: int,
        progress: Callable[[int, int], None],
        **options: Any,
    ) -> Neighbors:
        """The k nearest rows of every row, made in `parts` shares; `options` are those of `similarity.nearest`."""
        ...


def find_here(
    features: Feature[ndarray, "images dim"],
    k: int,
    *,
    parts: int,
    progress: Callable[[int, int], None],
    **options: Any,
) -> Neighbors:
    """The shares one after the other in this process."""
    searcher, found = Searcher(features, **options), []
    for first, last in shares(len(features), parts):
        told = partial(_shifted, progress, first, len(features))
        found.append(searcher.nearest(k, rows=(first, last), progress=told))
    return merged(found)


def _shifted(progress: Callable[[int, int], None], first: int, rows: int, done: int, _: int) -> None:
    progress(first + done, rows)


def centred(
    features: Feature[ndarray, "rows dim"],
    cameras: Int64[ndarray, "rows"] | None,
    *,
    centre: Centre,
    centre_k: int,
    shards: int,
    find: Find,
    stats: dict[str, float],
    tell: Progress,
    searched: dict[str, Any],
) -> Feature[ndarray, "rows dim"]:
    """What is compared: features less their camera's mean, or that of their nearest, see `centring.py`; or as they are.

    `searched` are the options of `similarity.nearest`; seconds, memory and recall go into `stats`.
    """
    if centre == "camera" and cameras is not None:
        step, threads = searched["block_rows"], thread_count(searched["threads"])
        with phase("centre", stats):
            return centre_by_camera(features, cameras, block_rows=step, threads=threads)
    if centre == "local":
        with phase("centre", stats):
            nearby = find(features, centre_k, parts=shards, progress=telling(tell, "centre"), **searched)
            stats["centre_recall"] = nearby.recall
            return centre_by_neighbours(features, nearby, block_rows=searched["block_rows"])
    return features


def sets_of(
    features: Feature[ndarray, "rows dim"],
    cameras: Int64[ndarray, "rows"] | None,
    ks: dict[str, int],
    *,
    shards: int,
    find: Find,
    stats: dict[str, float],
    tell: Progress,
    searched: dict[str, Any],
) -> tuple[Neighbors | None, Lists]:
    """The weighted reciprocal sets of all rows, and the neighbour table they were made of where there is just one.

    Args:
        cameras: for sets by camera, whose keywords `ks` then holds (`cameras.camera_weights`); else None, and `ks` are
            k1 and k2 of `jaccard.reciprocal_weights`.
    """
    if cameras is not None:
        return None, _by_camera(features, cameras, ks, stats, tell, searched)
    return _by_all(features, ks["k1"], ks["k2"], find, shards, stats, tell, searched)


def labels_at(
    distance: csr_array,
    clustered: dict[str, Any],
    reliability: float,
    stats: dict[str, float],
    counts: Int64[ndarray, "rows"] | None = None,
) -> Int64[ndarray, "rows"]:
    """The labels of a clustering, without those that are not reliable; their share of the rows goes into `stats`."""
    labels = cluster(distance, **clustered, counts=counts)
    if reliability:
        before, ours = labels, {name: clustered[name] for name in ("eps", "min_samples")}
        labels = reliable_labels(distance, labels, **ours, least=reliability, counts=counts)
        stats["unreliable"] = float(((before != NOISE) & (labels == NOISE)).mean())
    return labels


def _by_all(
    features: Feature[ndarray, "images dim"],
    k1: int,
    k2: int,
    find: Find,
    shards: int,
    stats: dict[str, float],
    tell: Progress,
    searched: dict[str, Any],
) -> tuple[Neighbors, Lists]:
    """The neighbour table, and the weighted reciprocal sets that it gives."""
    with phase("knn", stats):
        table = find(features, k1, parts=shards, progress=telling(tell, "knn"), **searched)
    stats["knn_recall"] = table.recall
    with phase("weights", stats):
        return table, reciprocal_weights(table, features, k1=k1, k2=k2, threads=searched["threads"])


def _by_camera(
    features: Feature[ndarray, "images dim"],
    cameras: Int64[ndarray, "images"],
    ks: dict[str, int],
    stats: dict[str, float],
    tell: Progress,
    searched: dict[str, Any],
) -> Lists:
    """The weighted reciprocal sets of the two lists that every row has by camera."""
    with phase("knn", stats):
        lists = camera_neighbors(
            features,
            cameras,
            k_intra=ks["k1_intra"] + 1,
            k_inter=ks["k1_inter"] + 1,
            progress=telling(tell, "knn"),
            **searched,
        )
    with phase("weights", stats):
        return camera_weights(lists, **ks, threads=searched["threads"])


def telling(tell: Progress, name: str) -> Callable[[int, int], None]:
    """How far one phase is, as its own step tells it."""
    return lambda done, rows: tell(name, done, rows)

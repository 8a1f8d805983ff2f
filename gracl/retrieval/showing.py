"""What of a clustering is worth a look: which clusters, which of their members, which noise, which pairs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from gracl.randomness import rng
from gracl.types import NOISE, UNKNOWN, Proxies


@dataclass(frozen=True)
class ShownCluster:
    """A cluster on a sheet.

    Attributes:
        cluster: its number.
        members: images to show, the farthest from the centre first; the intra-ID proxy is the first.
        inter: the inter-ID proxy.
        size, cameras: images, and cameras that took them (0: not known).
        closeness: mean cosine of the members to their centre, 0..1.
    """

    cluster: int
    members: Int64[ndarray, "shown"]
    inter: int
    size: int
    cameras: int
    closeness: float


def notable_clusters(
    features: Float32[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    proxies: Proxies,
    cameras: Int64[ndarray, "images"],
    *,
    each: int = 4,
    members: int = 9,
) -> dict[str, list[ShownCluster]]:
    """The largest clusters, those of the most cameras, and the loosest: where faults of a clustering are seen first.

    Args:
        features: unit rows.
        labels: 0..C-1, each at least once; -1 is noise.
        proxies: mined from them.
        cameras: who took each image, -1 where unknown; with an unknown one none are counted.
        each: clusters of each kind; of equal ones those with the lowest number.
        members: images of each, spread evenly from the farthest from the centre to the nearest.
    """
    sizes = np.bincount(labels[labels != NOISE])
    closeness = _closeness(features, labels, proxies, sizes)
    seen = _cameras_seen(labels, cameras, len(sizes))
    kinds = {"largest": -sizes, "most cameras": -seen, "loosest": closeness}
    if not seen.any():
        del kinds["most cameras"]

    def shown(cluster: int) -> ShownCluster:
        mine = np.flatnonzero(labels == cluster)
        intra = int(proxies.intra_image[cluster])
        # In double precision, and by index where members are equally far.
        far = mine[np.argsort(features[mine].astype(np.float64) @ proxies.cluster_sums[cluster], kind="stable")]
        rest = far[far != intra]
        places = np.unique(np.linspace(0, len(rest) - 1, members - 1).round().astype(np.int64)) if len(rest) else rest
        return ShownCluster(
            cluster=cluster,
            members=np.concatenate([[intra], rest[places]]).astype(np.int64),
            inter=int(proxies.inter_image[cluster]),
            size=int(sizes[cluster]),
            cameras=int(seen[cluster]),
            closeness=float(closeness[cluster]),
        )

    return {
        kind: [shown(int(cluster)) for cluster in np.argsort(order, kind="stable")[:each]]
        for kind, order in kinds.items()
    }


def _closeness(features: ndarray, labels: ndarray, proxies: Proxies, sizes: ndarray) -> ndarray:
    """Mean cosine of each cluster's members to its centre: the length of the mean of unit rows."""
    return np.asarray(np.linalg.norm(proxies.cluster_sums.astype(np.float64), axis=1) / sizes)


def _cameras_seen(labels: ndarray, cameras: ndarray, clusters: int) -> ndarray:
    """Cameras of each cluster; 0 for all where one is unknown."""
    if (cameras == UNKNOWN).any():
        return np.zeros(clusters, np.int64)
    pairs = np.unique(np.stack([labels, cameras])[:, labels != NOISE], axis=1)
    return np.bincount(pairs[0], minlength=clusters)


def noise_to_show(labels: Int64[ndarray, "images"], count: int = 4) -> Int64[ndarray, "shown"]:
    """Images that are noise, drawn without regard to anything, always the same."""
    noise = np.flatnonzero(labels == NOISE)
    return np.sort(rng(0, "noise").permutation(noise)[:count])


def pair_similarities(
    features: Float32[ndarray, "images dim"], labels: Int64[ndarray, "images"], *, most: int = 50_000
) -> tuple[Float32[ndarray, "intra"], Float32[ndarray, "inter"]]:
    """Cosines of pairs of different images of one cluster, and of two clusters; noise takes no part.

    Drawn, always the same pairs: an image evenly among the clustered ones, another evenly among all others that make
    the pair of its kind; with a cluster of one there is no pair inside.

    Args:
        features: unit rows.
        labels: the cluster of each image, -1 for noise; two clusters or more.
        most: pairs of each kind.
    """
    dice = rng(0, "pairs")
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] != NOISE]
    sizes = np.bincount(labels[order])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    place = dice.integers(0, len(order), most)
    size, start = sizes[labels[order[place]]], starts[labels[order[place]]]
    # A step of 1..n-1 within the cluster, and of 0..(M-n)-1 beyond its end, each around the circle.
    fits = size > 1
    step = 1 + (dice.random(most) * (size - 1)).astype(np.int64)
    inside = start + (place - start + step) % size
    beyond = (start + size + (dice.random(most) * (len(order) - size)).astype(np.int64)) % len(order)

    def cosines(one: ndarray, other: ndarray) -> ndarray:
        found = np.einsum("ij,ij->i", features[order[one]], features[order[other]])
        return np.asarray(found, np.float32)

    return cosines(place[fits], inside[fits]), cosines(place, beyond)

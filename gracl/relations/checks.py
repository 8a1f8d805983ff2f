"""What `relate` refuses before it works, and after: settings, features, memory, and clusters that are none."""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import ClusteringCollapsed, ConfigError, GraclError, expected
from gracl.kernels import squared_lengths
from gracl.measuring import require_memory
from gracl.types import NOISE

_LENGTH = 1e-3
# What the steps after the search hold at their peak for each row and each of its k1 neighbours: the table, the sets
# and their averages, the inverted lists and both halves of the graph. Measured: 55 to 75 (docs/results.md).
_BYTES_A_NEIGHBOUR = 100


def check_settings(
    k1: int, k2: int, eps: float, min_samples: int, shards: int, search: str, camera_aware: bool
) -> None:
    """Refuses settings; those of the search, the proxies and the cameras are refused where they are used.

    Raises:
        ConfigError: one of them is out of range.
    """
    if not 1 <= k2 <= k1:
        raise ConfigError(expected("1 <= k2 <= k1", f"k1={k1}, k2={k2}", "the usual values are k1=30 and k2=6"))
    if not 0 < eps < 1:
        raise ConfigError(expected("0 < eps < 1", f"eps={eps}", "the usual values are 0.4 to 0.7"))
    if min_samples < 1:
        raise ConfigError(expected("min_samples >= 1", min_samples, "the usual value is 4"))
    if shards < 1 or (shards > 1 and (camera_aware or search != "exact")):
        raise ConfigError(
            expected(
                "shards >= 1, and 1 with camera_aware or an approximate search",
                f"shards={shards}, camera_aware={camera_aware}, search={search}",
                "use shards=1: lists by camera, and an index, are made in one place",
            )
        )


def check_features(features: ndarray, k1: int, threads: int) -> None:
    """Refuses what could only give labels without meaning, or none at all.

    Raises:
        GraclError: features that are empty, of another dtype, not finite, not of unit length, or too many for the
            memory that is free.
        ConfigError: a k1 that makes every image everybody's neighbour.
    """
    if features.ndim != 2 or features.dtype not in (np.float16, np.float32) or not features.size:
        raise GraclError(
            expected(
                "a non-empty table of float32 or float16 feature rows",
                f"{features.dtype} of shape {features.shape}",
                "extract the features of at least one image",
            )
        )
    if k1 > len(features):
        raise ConfigError(
            expected(
                f"at most {len(features)} neighbours, as many as there are images",
                f"{k1}, with which every image would be everybody's neighbour",
                "lower relations.k1 (with camera_aware: k1_intra, k1_inter) to the images of an object, or bring more",
            )
        )
    require_memory(
        len(features) * k1 * _BYTES_A_NEIGHBOUR,
        f"{k1} neighbours of {len(features)} images and what follows from them",
        "lower relations.k1, or run the relations on a larger machine",
    )
    _check_lengths(features, threads)


def _check_lengths(features: ndarray, threads: int) -> None:
    lengths = np.sqrt(squared_lengths(features, threads=threads))
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


def check_cameras(cameras: Int64[ndarray, "images"] | None, images: int, camera_aware: bool) -> None:
    """Refuses cameras of other images, and lists by camera without any.

    Raises:
        ConfigError: camera_aware without cameras.
        GraclError: another number of them.
    """
    if camera_aware and cameras is None:
        raise ConfigError(
            expected("the camera of every image", "none", "give cameras, or set relations.camera_aware=false")
        )
    if cameras is not None and len(cameras) != images:
        raise GraclError(expected(f"{images} cameras", len(cameras), "take those of the same split"))


def check_clusters(labels: Int64[ndarray, "images"], clustering: str, eps: float) -> None:
    """Refuses fewer than two clusters: there is nothing to contrast.

    Raises:
        ClusteringCollapsed: with the setting to move, and the direction.
    """
    clusters, noise = int(labels.max()) + 1, float((labels == NOISE).mean())
    if clusters < 2:
        how, move = f"eps={eps}", "raise eps (relations.eps)" if noise > 0.5 else "lower eps (relations.eps)"
        if clustering == "hdbscan":
            how, move = clustering, "lower relations.min_cluster_size and relations.min_samples"
        raise ClusteringCollapsed(
            expected(
                "at least 2 clusters",
                f"{clusters} among {len(labels)} images, {noise:.1%} of them noise, at {how}",
                f"{move}, or look whether the features still tell images apart",
            )
        )

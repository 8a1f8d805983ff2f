"""What `relate` refuses before it works, and after: settings, features, memory, and clusters that are none."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import ClusteringCollapsed, ConfigError, GraclError, NonFiniteValue, expected
from gracl.kernels import squared_lengths
from gracl.measuring import require_memory
from gracl.types import NOISE, Feature

_LENGTH = 1e-3
# What the steps hold at their peak for each row and each of its k1 neighbours: the table, the sets and their averages,
# the inverted lists and the graph up to eps (measured: docs/results.md, section 8).
_BYTES_A_NEIGHBOUR = 100
# All distances below 1 are some 500 entries a row, twice while the matrix is made; HDBSCAN takes 20 bytes for each.
_BYTES_OF_A_WHOLE_GRAPH = 12_000


def check_settings(k1: int, k2: int, shards: int, search: str, camera_aware: bool, centre: str) -> None:
    """Refuses settings of no step in particular; `relate` asks each step about its own.

    Raises:
        ConfigError: one of them is out of range.
    """
    if not 1 <= k2 <= k1:
        raise ConfigError(expected("1 <= k2 <= k1", f"k1={k1}, k2={k2}", "the usual values are k1=30 and k2=6"))
    if camera_aware and search != "exact":
        raise ConfigError(
            expected("search=exact with camera_aware", search, "use search=exact: nobody would hear of the recall")
        )
    if shards < 1 or (shards > 1 and (camera_aware or search != "exact" or centre != "none")):
        raise ConfigError(
            expected(
                "shards >= 1, and 1 with camera_aware, an approximate search or a centre",
                f"shards={shards}, camera_aware={camera_aware}, search={search}, centre={centre}",
                "use shards=1: lists by camera, an index and centred features are made in one place",
            )
        )


def check_extras(centre: str, centre_k: int, instances: int, consensus: int, images: int) -> None:
    """Refuses another centring than there is, and less than nothing of what the loss may be told.

    Raises:
        ConfigError: one of them is out of range.
    """
    if centre not in ("none", "camera", "local"):
        raise ConfigError(expected("a centre of none, camera or local", repr(centre), "set relations.centre=none"))
    if centre_k < 2:
        raise ConfigError(expected("relations.centre_k of 2 or more", centre_k, "one image is the mean of itself"))
    if centre == "local" and centre_k > images:
        what = f"relations.centre_k of at most the {images} images there are"
        raise ConfigError(expected(what, centre_k, "lower relations.centre_k to about a tenth of them"))
    if min(instances, consensus) < 0:
        raise ConfigError(
            expected("instances and consensus of 0 or more", f"{instances} and {consensus}", "0 leaves them out")
        )


def check_features(features: ndarray, k1: int, threads: int) -> None:
    """Refuses what could only give labels without meaning, or none at all.

    Raises:
        NonFiniteValue: NaN or infinity among them.
        GraclError: features that are empty, of another dtype, or not of unit length.
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
    _check_lengths(features, threads)


def check_memory(
    features: Feature[ndarray, "images dim"],
    k1: int,
    whole: bool,
    camera_aware: bool,
    searched: Mapping[str, Any],
    *,
    centre: str = "none",
    centre_k: int = 0,
) -> None:
    """Refuses work that the free memory is surely too small for.

    Args:
        k1: neighbours of each image, of both lists by camera.
        whole: the clustering asks for all distances below 1.
        searched: the options of the search.
        centre, centre_k: of centred features there is a second table, for "local" a list of so many nearest.

    Raises:
        GraclError: less is free. Not counted are the sums of clusters, of which nobody knows how many there will be.
    """
    graph, singles = _BYTES_OF_A_WHOLE_GRAPH if whole else 0, 4 * features.size
    needed = len(features) * (k1 * _BYTES_A_NEIGHBOUR + graph) + (features.nbytes if camera_aware else 0)
    needed += features.nbytes if centre != "none" else 0
    needed += 16 * centre_k * len(features) if centre == "local" else 0  # the list, twice while its shares are joined
    if searched["search"] == "approximate" and searched["index"] == "hnsw":
        needed += singles
    if searched["backend"] == "faiss" and features.dtype == np.float16:
        needed += singles
    require_memory(
        needed,
        f"{k1} neighbours of {len(features)} images and what follows from them",
        "lower relations.k1, or run the relations on a larger machine",
    )


def _check_lengths(features: ndarray, threads: int) -> None:
    lengths = np.sqrt(squared_lengths(features, threads=threads))
    for what, bad, error in (
        ("finite features", ~np.isfinite(lengths), NonFiniteValue),
        ("feature rows of length 1", np.abs(lengths - 1) > _LENGTH, GraclError),
    ):
        if bad.any():
            first = np.flatnonzero(bad)[:5]
            raise error(
                expected(
                    what,
                    f"{bad.sum()} other rows, among them {first.tolist()} of length {lengths[first].tolist()}",
                    "look for the step in which the loss broke, or divide each row by its length",
                )
            )


def check_cameras(cameras: Int64[ndarray, "images"] | None, images: int, asked: bool) -> None:
    """Refuses cameras of other images, and none where a setting asks for them.

    Raises:
        ConfigError: no cameras.
        GraclError: another number of them.
    """
    if asked and cameras is None:
        what = "relations.centre=none, camera_aware=false and camera_proxies=false"
        raise ConfigError(expected("the camera of every image", "none", f"give cameras, or set {what}"))
    if cameras is not None and len(cameras) != images:
        raise GraclError(expected(f"{images} cameras", len(cameras), "take those of the same split"))


def check_clusters(
    labels: Int64[ndarray, "images"],
    clustering: str,
    eps: float,
    *,
    chosen: bool = False,
    reliability: float = 0.0,
    least: int = 2,
    tried: str = "",
) -> None:
    """Refuses fewer than `least` clusters, two as a rule: with one there is nothing to contrast.

    Args:
        labels: -1 is noise.
        clustering: who made them.
        eps: at which.
        chosen: eps is not what the user gave.
        reliability: the bound that images had to meet to stay in their cluster.
        least: clusters that are enough.
        tried: what was tried against it, in words.

    Raises:
        ClusteringCollapsed: with the setting to move, and the direction.
    """
    clusters, noise = int(labels.max()) + 1, float((labels == NOISE).mean())
    if clusters < least:
        how, move = f"eps={eps}", "raise eps (relations.eps)" if noise > 0.5 else "lower eps (relations.eps)"
        if chosen:
            how, move = f"eps=auto, here {eps:g}", "give relations.eps a number"
        if clustering == "hdbscan":
            how, move = clustering, "lower relations.min_cluster_size and relations.min_samples"
        if reliability:
            how, move = f"{how}, reliability={reliability:g}", f"lower relations.reliability, {move}"
        raise ClusteringCollapsed(
            expected(
                f"at least {least} clusters",
                f"{clusters} among {len(labels)} images, {noise:.1%} of them noise, at {how}{tried and ', '}{tried}",
                f"{move}, or look whether the features still tell images apart",
            )
        )

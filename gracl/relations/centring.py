"""Features without what the images around them have in common.

A camera's light, view and background are in every feature of its images; two objects seen by one camera then are more
alike than one object seen by two. Taking each camera's mean away leaves what tells its images from each other.
Published methods normalise by camera inside the network (camera-based batch norm; AIBN in IICS); this is the same
thought, on the features that are clustered alone. Where nobody knows the cameras, an image's many nearest images are
mostly of its own: less their mean, it is told from its surroundings (localized centring, Hara et al., AAAI 2015).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.measuring import require_memory
from gracl.relations.closed import cluster_sums
from gracl.types import Feature, Neighbors

# A camera's own mean counts as much as that of all images once it has this many images: with one image alone, nothing
# of that image would be left.
_FIRM = 16
# More than float32 leaves of a unit row less the mean of some hundred copies of itself.
_NOTHING = 1e-4


def centre_by_camera(
    features: Feature[ndarray, "images dim"],
    cameras: Int64[ndarray, "images"],
    *,
    block_rows: int = 4096,
    threads: int,
) -> Feature[ndarray, "images dim"]:
    """Each row less the mean of its camera's rows, brought to length 1; a row that is that mean stays as it is.

    The mean of a camera of n images is taken as (its sum + 16 * the mean of all images) / (n + 16).

    Args:
        features: unit rows.
        cameras: who took each image; -1 (unknown) counts as a camera like any other.
        block_rows: rows worked on at a time; the result does not depend on it.
        threads: of the sums.

    Raises:
        GraclError: too little memory for a second table.
    """
    _require_memory(features)
    names, codes = np.unique(cameras, return_inverse=True)
    sums = cluster_sums(features, codes, len(names), block_rows, threads)
    overall = sums.sum(0) / len(features)
    counts = np.bincount(codes)[:, None]
    means = (sums + _FIRM * overall) / (counts + _FIRM)
    return _less(features, lambda rows: means[codes[rows]], block_rows)


def centre_by_neighbours(
    features: Feature[ndarray, "images dim"], nearby: Neighbors, *, block_rows: int = 4096
) -> Feature[ndarray, "images dim"]:
    """Each row less the mean of its nearest rows, itself counted, brought to length 1; as it was where 0 is left.

    Args:
        features: unit rows.
        nearby: many nearest rows of each, some hundred: of its camera rather than of its object.
        block_rows: rows worked on at a time; the result does not depend on it.

    Raises:
        GraclError: too little memory for a second table.
    """
    _require_memory(features, 4 * features.size if features.dtype == np.float16 else 0)
    k, table = nearby.indices.shape[1], features.astype(np.float32, copy=False)

    def means(rows: slice) -> Float32[ndarray, "rows dim"]:
        ids = nearby.indices[rows]
        shares = np.full(ids.size, 1 / k, np.float32)
        picked = csr_array((shares, ids.ravel(), np.arange(0, ids.size + 1, k)), shape=(len(ids), len(table)))
        return np.asarray(picked @ table)

    return _less(features, means, block_rows)


def _require_memory(features: Feature[ndarray, "images dim"], more: int = 0) -> None:
    require_memory(
        features.nbytes + more,
        f"{len(features)} features less what is around them",
        "set relations.centre=none, or run the relations on a larger machine",
    )


def _less(
    features: Feature[ndarray, "images dim"], means: Callable[[slice], ndarray], block_rows: int
) -> Feature[ndarray, "images dim"]:
    """The rows less their means, of length 1, in the precision of the rows."""
    centred = np.empty_like(features)
    for begin in range(0, len(features), block_rows):
        rows = slice(begin, begin + block_rows)
        block = features[rows].astype(np.float32) - means(rows)
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        centred[rows] = np.where(lengths > _NOTHING, block / np.maximum(lengths, _NOTHING), features[rows])
    return centred

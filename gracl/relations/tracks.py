"""Tracks: images that are known to be of one object, since somebody followed it. Each becomes one row.

A row is the mean of its images' features at length 1, and counts as often as it has images (`clusters.dbscan`: counts).
So no clustering can part the images of a track, and a track of `min_samples` images is a group by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import GraclError, expected
from gracl.relations.closed import cluster_sums
from gracl.types import UNKNOWN, Feature

# Numbers of neighbours are not brought down below these (docs/use.md, section Groups).
LEAST = {"k1": 6, "k2": 2, "k1_intra": 2, "k1_inter": 6, "k2_intra": 1, "k2_inter": 1, "centre_k": 20}
# Less is left of unit rows only where they cancel each other out.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Rows:
    """What is related: a row for each track, and one for each image of none, in order of their first images.

    Attributes:
        features: unit rows, of the dtype of the images'.
        of_image: the row of each image.
        counts: images of each row.
        cameras: of each row, -1 where its images are of several or of an unknown one; None where nobody knows.
    """

    features: Feature[ndarray, "rows dim"]
    of_image: Int64[ndarray, "images"]
    counts: Int64[ndarray, "rows"]
    cameras: Int64[ndarray, "rows"] | None


def rows_of(
    features: Feature[ndarray, "images dim"],
    tracks: Int64[ndarray, "_"],
    cameras: Int64[ndarray, "images"] | None = None,
    *,
    block_rows: int = 4096,
    threads: int = 1,
) -> Rows:
    """Tracks as rows. A track whose features cancel each other out has that of its first image.

    Args:
        features: unit rows.
        tracks: any numbers from 0 up; -1 is an image of no track, a row of its own.
        cameras: who took each image, -1 where unknown.
        block_rows: images read at a time; the result does not depend on it.
        threads: of the sums.

    Raises:
        GraclError: tracks or cameras of other images.
    """
    images = len(features)
    if len(tracks) != images or (cameras is not None and len(cameras) != images):
        came = f"{len(tracks)} tracks, {images if cameras is None else len(cameras)} cameras"
        raise GraclError(expected(f"tracks and cameras of {images} images", came, "take those of the same table"))
    apart = np.where(tracks == UNKNOWN, tracks.max(initial=UNKNOWN) + 1 + np.arange(images), tracks)
    _, firsts, numbers = np.unique(apart, return_index=True, return_inverse=True)
    places = np.empty(len(firsts), np.int64)
    places[np.argsort(firsts)] = np.arange(len(firsts))
    of_image, firsts = places[numbers], np.sort(firsts)
    sums = cluster_sums(features, of_image, len(firsts), block_rows, threads)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    means = (sums / np.maximum(lengths, _NOTHING)).astype(features.dtype)
    counts = np.bincount(of_image, minlength=len(firsts))
    kept = (counts == 1) | (lengths[:, 0] < _NOTHING)  # one image is its own mean, to the bit
    means[kept] = features[firsts[kept]]
    return Rows(means, of_image, counts, None if cameras is None else _cameras(cameras, of_image, firsts))


def fewer_neighbours(counted: Mapping[str, int], images: int, rows: int) -> dict[str, int]:
    """Numbers of neighbours that were chosen for images, for rows: an object has rows / images as many of them.

    Args:
        counted: by their names in `LEAST`; which is as far down as they go, where they are not below it already.
        images: of which there are `rows` rows.
    """
    return {name: min(k, max(LEAST[name], round(k * rows / images))) for name, k in counted.items()}


def _cameras(cameras: ndarray, of_image: ndarray, firsts: ndarray) -> Int64[ndarray, "rows"]:
    found = cameras[firsts]
    found[of_image[cameras != found[of_image]]] = UNKNOWN
    return np.asarray(found)

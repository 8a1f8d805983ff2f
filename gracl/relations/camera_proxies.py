"""A proxy for each cluster in each camera (method.md 2: CAP, O2CAP): what an object looks like there."""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.relations.closed import cluster_sums
from gracl.types import NOISE, CameraProxies, Feature


def mine_camera_proxies(
    features: Feature[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    cameras: Int64[ndarray, "images"],
    *,
    block_rows: int = 4096,
    threads: int,
) -> CameraProxies:
    """The means of the images of each cluster by camera, brought to length 1; in order of cluster, then camera.

    Args:
        features: unit rows.
        labels: 0..C-1; -1 is noise.
        cameras: who took each image; -1 (unknown) counts as a camera like any other.
        block_rows: rows read at a time; the result does not depend on it.
        threads: of the sums.
    """
    _, codes = np.unique(cameras, return_inverse=True)
    keys = np.where(labels == NOISE, -1, labels * (codes.max() + 1) + codes)
    of_image = np.full(len(labels), -1, np.int64)
    found, first, of_image[keys >= 0] = np.unique(keys[keys >= 0], return_index=True, return_inverse=True)
    images = np.flatnonzero(keys >= 0)[first]
    sums = cluster_sums(features, of_image, len(found), block_rows, threads)
    rows = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return CameraProxies(rows.astype(np.float32), labels[images], cameras[images], of_image)

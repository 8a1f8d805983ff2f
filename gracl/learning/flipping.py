"""Flip-averaged features: an image and its mirror image described as one (an option of evaluate and extract only)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np

from gracl.errors import expected
from gracl.learning.encoder import Encoder
from gracl.learning.encoding import encode
from gracl.types import Batch, FeatureTable

# A sum shorter than this has no direction; the row stays about 0.
_SHORTEST = 1e-12


def encode_with_mirror(
    encoder: Encoder,
    scan: Iterator[Batch],
    casting: AbstractContextManager[object],
    progress: Callable[[int], None],
) -> tuple[FeatureTable, FeatureTable]:
    """The plain features f(x) of a scan, as `encode` gives them, and the averaged ones, unit(f(x) + f(mirror x)).

    Each picture is decoded once and seen twice. Arguments as `encode`; progress counts the pictures.
    """
    plain, averaged, done = [], [], 0
    for batch in scan:
        one, other = (encode(encoder, iter([seen]), casting, lambda count: None) for seen in (batch, mirrored(batch)))
        plain.append(one)
        averaged.append(average(one, other))
        done += len(batch.indices)
        progress(done)
    return _joined(encoder, plain), _joined(encoder, averaged)


def mirrored(batch: Batch) -> Batch:
    """The batch with left and right exchanged in every picture.

    Raises:
        ValueError: its pictures are still to be augmented, and would be mirrored before that.
    """
    if batch.augmentations is not None:
        raise ValueError(expected("plain pictures to mirror", "augmentations beside them", "scan with eval_view alone"))
    return replace(batch, images=np.ascontiguousarray(batch.images[:, :, ::-1]))


def average(one: FeatureTable, other: FeatureTable) -> FeatureTable:
    """The unit sums of two descriptions of the same images, in double precision."""
    sums = one.features.astype(np.float64) + other.features
    lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), _SHORTEST)
    return FeatureTable(one.indices, (sums / lengths).astype(np.float32))


def _joined(encoder: Encoder, parts: list[FeatureTable]) -> FeatureTable:
    indices, features = [np.zeros(0, np.int64)], [np.zeros((0, encoder.feature_size), np.float32)]
    return FeatureTable(
        np.concatenate(indices + [part.indices for part in parts]),
        np.concatenate(features + [part.features for part in parts]),
    )

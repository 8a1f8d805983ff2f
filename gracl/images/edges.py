"""The colours along the edges of pictures: what is seen of the place where a picture was taken, and little of what is
on it.

Pictures of re-identification are cut around their objects, so the object is in the middle, and the edges show the road,
the wall or the water behind it in the light of that camera. `relations/surroundings.py` makes groups of them.
"""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from gracl.errors import expected
from gracl.images.loading import load, share_tickets
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.types import FeatureTable, Plan

# Mean and deviation of three colours on four edges.
COLOURS = 24


def edge_colours(
    images: UInt8[ndarray, "images height width 3"], *, edge: float = 0.1
) -> Float32[ndarray, "images colours"]:
    """Mean and standard deviation of red, green and blue along the top, bottom, left and right edge, 0..1.

    Args:
        images: RGB pictures.
        edge: width of an edge, as a share of the picture's height (top, bottom) or width (left, right); a pixel at
            least.

    Returns:
        24 values for each picture: twelve means (top's red, green, blue, then bottom's, ...), then twelve deviations.

    Raises:
        ValueError: an edge that is none, or wider than half of the picture.
    """
    if not 0 < edge <= 0.5:
        raise ValueError(expected("an edge above 0 and of at most 0.5", edge, "correct it"))
    count, height, width, _ = images.shape
    rows, columns = max(1, round(edge * height)), max(1, round(edge * width))
    strips = (images[:, :rows], images[:, -rows:], images[:, :, :columns], images[:, :, -columns:])
    # Sums of whole numbers: exact, so that the answer does not hang on how they are added up.
    flat = [strip.reshape(count, -1, 3).astype(np.int64) for strip in strips]
    means = [strip.mean(1) for strip in flat]
    squares = [(strip**2).mean(1) for strip in flat]
    spreads = [np.sqrt(np.maximum(square - mean**2, 0)) for square, mean in zip(squares, means, strict=True)]
    return (np.concatenate([*means, *spreads], axis=1) / 255).astype(np.float32)


def describe_edges(
    store: ShardStore, plan: Plan, *, height: int, width: int, edge: float = 0.1, threads: int = 1
) -> FeatureTable:
    """The edges of the images of a plan, read from shards and seen plainly at the network's size.

    Raises:
        ImageError, ShardError: an image or shard that cannot be read.
    """
    size: dict[str, Any] = {"height": height, "width": width}
    batches = load(share_tickets(store.read, plan), partial(eval_view, **size), **size, seed=None, threads=threads)
    parts = [(batch.indices, edge_colours(batch.images, edge=edge)) for batch in batches]
    indices = [indices for indices, _ in parts] or [np.empty(0, np.int64)]
    colours = [colours for _, colours in parts] or [np.empty((0, COLOURS), np.float32)]
    return FeatureTable(np.concatenate(indices), np.concatenate(colours))

"""Several instance proxies per cluster: members that the loss remembers one by one (method.md 2.2, DCMIP)."""

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import ConfigError, expected
from gracl.measuring import require_memory
from gracl.randomness import rng
from gracl.types import NOISE, Feature, Instances


def pick_instances(
    features: Feature[ndarray, "images dim"], labels: Int64[ndarray, "images"], each: int, *, epoch: int = 0
) -> Instances:
    """`each` members of every cluster, drawn without regard to anything; other epochs draw others.

    A cluster with fewer members shows all of them, each as often as the next or once more.

    Args:
        features: unit rows, perhaps mapped from a file: the rows drawn are read in order of index.
        labels: 0..C-1, each at least once; -1 is noise.
        each: members of a cluster, >= 1.
        epoch: of the draw.

    Raises:
        ConfigError: each < 1.
        GraclError: too little memory for them.
    """
    if each < 1:
        raise ConfigError(expected("relations.instances of at least 1", each, "16 is usual; 0 leaves them out"))
    shuffled = rng(0, "instances", epoch).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    order = order[np.searchsorted(labels[order], NOISE + 1) :]
    sizes = np.bincount(labels[order])
    starts = np.cumsum(sizes) - sizes
    images = order[starts[:, None] + np.arange(each) % sizes[:, None]]
    drawn = np.unique(images)
    require_memory(
        4 * features.shape[1] * len(drawn),
        f"{each} instances of {len(sizes)} clusters",
        "lower relations.instances, or run the relations on a larger machine",
    )
    return Instances(images, features[drawn].astype(np.float32, copy=False))

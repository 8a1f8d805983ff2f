"""review(config): one HTML page on a checkpoint, for those who look at what a training has learnt.

The page is that of `looking.py`; identities of the train split are read only where they are asked for, after all else.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.config import ReviewConfig
from gracl.images import storage
from gracl.retrieval.agreement import agreement
from gracl.runtime.extract import near
from gracl.runtime.looking import look
from gracl.runtime.terminal import say
from gracl.runtime.truth import objects_of
from gracl.types import UNKNOWN


def review(config: ReviewConfig) -> dict[str, Any]:
    """Describes, clusters and judges, and writes the page.

    Returns:
        The page, its size in bytes, clusters, share of noise, mAP (None where nothing was judged), the MLflow run that
        has the page (None for none), seconds.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts.
        ClusteringCollapsed: fewer than two clusters.
    """

    def truth(labels: Int64[ndarray, "images"]) -> tuple[Int64[ndarray, "images"], dict[str, float]]:
        objects = objects_of(storage.absolute(config.data.root), config.data.train, near(config.data.cache))
        if np.equal(objects, UNKNOWN).all():
            say(f"note: the split {config.data.train} has no identities, so none are on the page")
        return objects, agreement(labels, objects)

    return look(config, truth if config.identities else None)

"""After a training: how its labels agree with the true objects. Here alone the train split's identities are read.

No file that trains knows of this one (`tests/architecture/test_truth.py`), and nothing of it goes back into a run.
"""

import numpy as np
import ray
from jaxtyping import Int64
from numpy import ndarray

from gracl.images.shards import ShardStore
from gracl.retrieval.agreement import agreement
from gracl.runtime.describe import describe_train
from gracl.runtime.relator import RayRelator
from gracl.runtime.runs import Run
from gracl.runtime.surroundings import cameras_of_run
from gracl.runtime.train import start_relations
from gracl.types import NOISE, FeatureTable


def final_labels(run: Run, checkpoint: str) -> Int64[ndarray, "images"]:
    """The labels that the weights of a checkpoint give the train split: what the next epoch would learn from.

    Described and related once more as the run did it, with what it reserved, since a checkpoint holds no labels.

    Raises:
        ClusteringCollapsed: fewer than two clusters.
    """
    config, images = run.config, run.sizes[run.config.data.train]
    features = FeatureTable.gather(describe_train(config, checkpoint), images)
    cameras = [ray.put(cameras_of_run(run))] if config.relations.wants_cameras else []
    actor = start_relations(run, None, cameras)
    precision, wait_s = config.relations.precision, config.scale.wait_s
    relator = RayRelator(actor, attempt="after", rank=0, ranks=1, precision=precision, wait_s=wait_s)
    return relator.relate(config.epochs, FeatureTable(np.arange(images), features)).labels


def objects_of(root: str, split: str, cache: str | None) -> Int64[ndarray, "images"]:
    """The identities of a split, for a review; -1 where unknown."""
    return ShardStore.open(root, split, cache=cache).identities().object_ids


def label_figures(run: Run, labels: Int64[ndarray, "images"]) -> dict[str, float]:
    """`clusters` and `noise` of the labels, and their `agreement` with the train split's identities."""
    objects = objects_of(run.root, run.config.data.train, run.config.data.cache)
    found = {"clusters": float(labels.max() + 1), "noise": float((labels == NOISE).mean())}
    return found | agreement(labels, objects)

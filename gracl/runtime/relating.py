"""The labels of a split by a checkpoint: described and clustered once more, since a checkpoint holds none."""

from collections.abc import Mapping
from typing import Any

import ray
from jaxtyping import Float32
from numpy import ndarray

from gracl.learning.checkpoint import TrainState
from gracl.relations.relate import relate
from gracl.runtime.checkpoints import relations_of
from gracl.runtime.describe import demand, describe_split
from gracl.runtime.session import Demand, refusals
from gracl.runtime.surroundings import cameras_of_state
from gracl.runtime.waiting import answer_of
from gracl.sections import Place
from gracl.types import UNKNOWN, Assignment, FeatureTable
from gracl.uses import ClusteringConfig, ModelConfig


def clustering_demand(config: ClusteringConfig) -> Demand:
    """Describers and the task that clusters take turns, so the larger counts."""
    crew = demand(config.scale)
    return Demand(max(crew.cpus, config.relation_cpus), crew.gpus, parts=crew.parts, waits=crew.waits)


def described_once(config: ModelConfig, data: Place, split: str, images: int) -> Float32[ndarray, "images dim"]:
    """The features of a split in order of index: flip-averaged where `config.flip`, else plain."""
    parts = describe_split(config, data, split, plain=not config.flip)
    return FeatureTable.gather((part for (part,) in parts), images)


def labels_of(
    config: ClusteringConfig, state: TrainState, features: Float32[ndarray, "images dim"], place: Place, split: str
) -> Assignment:
    """Labels and proxies as the training of a checkpoint would make them, where the cluster has room for it.

    Raises:
        CheckpointError: settings that this version does not know.
        ClusteringCollapsed: fewer than two clusters.
    """
    relations, cameras = relations_of(state), cameras_of_state(state, place, split, config.scale)
    options = relations.options() | {"threads": config.relation_threads, "device": "cpu"}
    known = cameras if (cameras != UNKNOWN).any() else None
    with refusals():
        task = ray.remote(num_cpus=config.relation_cpus)(_relate)
        asked = task.remote(features, known, options | {"epoch": state.epoch})
        found: Assignment = answer_of(asked, "the labels of the train split", config.scale.wait_s)
    return found


def _relate(features: ndarray, cameras: ndarray | None, options: Mapping[str, Any]) -> Assignment:
    return relate(features, cameras=cameras, **options)

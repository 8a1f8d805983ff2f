"""What a checkpoint holds of labels, proxies and reports: plain values, arrays as tensors."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from gracl.errors import CheckpointError, expected
from gracl.types import EMPTY, NOISE, Assignment, CameraProxies, Consensus, Instances, Proxies, RetrievalReport

# What an assignment may be made of beside its labels; only the proxies are always there.
_PARTS: dict[str, Any] = {
    "proxies": Proxies,
    "instances": Instances,
    "consensus": Consensus,
    "camera_proxies": CameraProxies,
}


def pack_assignment(assignment: Assignment | None) -> dict[str, Any] | None:
    """An assignment as plain values, arrays as tensors."""
    if assignment is None:
        return None
    packed = {"epoch": assignment.epoch, "stats": dict(assignment.stats), "labels": torch.tensor(assignment.labels)}
    for part, kind in _PARTS.items():
        value = getattr(assignment, part)
        if value is not None:
            packed[part] = {name.name: torch.tensor(getattr(value, name.name)) for name in fields(kind)}
    return packed


def unpack_assignment(packed: Any, path: Path) -> Assignment | None:
    """What `pack_assignment` made of an assignment, as one again.

    Raises:
        CheckpointError: parts that are missing, of another kind, or do not belong together.
    """
    if packed is None:
        return None
    try:
        parts = {
            part: kind(**{name: tensor.numpy() for name, tensor in packed[part].items()})
            for part, kind in _PARTS.items()
            if part in packed
        }
        assignment = Assignment(packed["epoch"], packed["labels"].numpy(), stats=packed["stats"], **parts)
        whole = _is_whole(assignment)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(
            expected(
                f"a whole assignment at {path}",
                "labels and proxies that do not belong together",
                "resume from an older checkpoint or start a new run",
            )
        )
    return assignment


def _is_whole(assignment: Assignment) -> bool:
    """Whether labels, proxies and the images that they are belong together."""
    labels, proxies = assignment.labels, assignment.proxies
    clusters, dim = proxies.inter.shape
    tables = [proxies.inter, proxies.intra, proxies.cluster_sums]
    images = [proxies.inter_image, proxies.intra_image]
    shown, told, seen = assignment.instances, assignment.consensus, assignment.camera_proxies
    return bool(
        all((table.dtype.name, table.shape) == ("float32", (clusters, dim)) for table in tables)
        and all((image.dtype.name, image.shape) == ("int64", (clusters,)) for image in images)
        and (labels.dtype.name, labels.ndim) == ("int64", 1)
        and labels.min() >= NOISE
        and labels.max() == clusters - 1
        and all(image.min() >= 0 and image.max() < len(labels) for image in images)
        and (shown is None or _are_members(shown, labels, clusters, dim))
        and (told is None or _fits(told, len(labels), clusters))
        and (seen is None or _are_seen(seen, labels, dim))
    )


def _are_members(shown: Instances, labels: ndarray, clusters: int, dim: int) -> bool:
    """Whether the instances are members of their clusters."""
    images = shown.images
    return bool(
        (images.dtype.name, images.ndim, len(images)) == ("int64", 2, clusters)
        and (shown.rows.dtype.name, shown.rows.shape) == ("float32", (len(np.unique(images)), dim))
        and (labels[images] == np.arange(clusters)[:, None]).all()
    )


def _are_seen(seen: CameraProxies, labels: ndarray, dim: int) -> bool:
    """Whether camera proxies are those of the images of these clusters."""
    count, clustered = len(seen.rows), labels != NOISE
    return bool(
        (seen.rows.dtype.name, seen.rows.shape) == ("float32", (count, dim))
        and all((one.dtype.name, one.shape) == ("int64", (count,)) for one in (seen.clusters, seen.cameras))
        and (seen.of_image.dtype.name, seen.of_image.shape) == ("int64", labels.shape)
        and (seen.of_image[~clustered] == NOISE).all()
        and seen.of_image[clustered].min() >= 0
        and (seen.clusters[seen.of_image[clustered]] == labels[clustered]).all()
    )


def _fits(told: Consensus, images: int, clusters: int) -> bool:
    """Whether a consensus speaks of these images and clusters."""
    return bool(
        (told.clusters.dtype.name, told.clusters.ndim, len(told.clusters)) == ("int32", 2, images)
        and (told.shares.dtype.name, told.shares.shape) == ("float32", told.clusters.shape)
        and told.clusters.min() >= EMPTY
        and told.clusters.max() < clusters
    )


def pack_report(report: RetrievalReport | None) -> dict[str, Any] | None:
    """A report as plain values, arrays as tensors."""
    if report is None:
        return None
    values = {name.name: getattr(report, name.name) for name in fields(report)}
    return {name: torch.tensor(value) if isinstance(value, ndarray) else value for name, value in values.items()}


def unpack_report(packed: dict[str, Any] | None) -> RetrievalReport | None:
    """What `pack_report` made of a report, as one again."""
    if packed is None:
        return None
    arrays = {name: value.numpy() for name, value in packed.items() if isinstance(value, torch.Tensor)}
    return RetrievalReport(**packed | arrays)

"""What a run leaves at an epoch's end: written whole or not at all, read back or refused.

An epoch depends on weights, optimizer and epoch number alone (architecture.md 5.11), so that is what is saved, with the
teacher's weights where there is one. Banks, labels and generators are not: the next epoch makes its own. Only where
labels are one epoch old (docs/decisions/0012-overlap) are those saved which the next epoch will learn, and where it may
fall back on older ones (docs/decisions/0023-too-few-clusters) those.
"""

import os
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from gracl.errors import CheckpointError, expected
from gracl.learning.encoder import Encoder, build_encoder, load_exactly
from gracl.types import EMPTY, NOISE, Assignment, CameraProxies, Consensus, Instances, Proxies

STATE_FILE = "state.pt"
SCHEMA = 3
# What the files of older schemas do not have.
SINCE = {2: {"assignment": None}, 3: {"teacher": None}}
ABSENT = "absent"


@dataclass(frozen=True)
class TrainState:
    """A run at the end of an epoch. Tensors apart, every value is plain (None, bool, int, float, str, list, dict).

    Attributes:
        epoch: epochs completed; also the number of the next one, counted from 0.
        model: state dict of the encoder.
        optimizer: state dict of the optimizer.
        best: best figure so far (share, mAP), None before the first evaluation.
        best_epoch: epochs completed when it was reached.
        recipe: every setting of the run under its dotted name.
        encoder: `Encoder.options`.
        view: {"height": pixels, "width": pixels} of the images the encoder was trained on.
        history: the figures of every epoch completed, by name.
        assignment: what the next epoch learns, made of the scan of the last one; or what the last one learnt, where
            its labels are there to fall back on; None where neither is asked for.
        teacher: state dict of the teacher, which then is the model to use; None where there is none.
    """

    epoch: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    best: float | None
    best_epoch: int | None
    recipe: dict[str, object]
    encoder: dict[str, Any]
    view: dict[str, int]
    history: list[dict[str, float]] = field(default_factory=list)
    assignment: Assignment | None = None
    teacher: dict[str, Any] | None = None

    @staticmethod
    def fresh(encoder: Encoder, recipe: Mapping[str, object], *, height: int, width: int) -> "TrainState":
        """Before the first epoch: no weights yet, those of `encoder` as it is will be used."""
        view = {"height": height, "width": width}
        return TrainState(0, {}, {}, None, None, dict(recipe), dict(encoder.options), view)

    def elsewhere(self, recipe: Mapping[str, object], *, height: int, width: int) -> "TrainState":
        """This state as the beginning of another run: weights, optimizer, epochs done and their figures.

        The best is sought anew among the epochs of that run, which has no checkpoint of those before. Labels for the
        next epoch are left out: they were made by the settings of this run.
        """
        view = {"height": height, "width": width}
        return replace(self, recipe=dict(recipe), view=view, best=None, best_epoch=None, assignment=None)

    def after(
        self,
        figures: dict[str, float],
        *,
        encoder: Encoder,
        optimizer: torch.optim.Optimizer,
        assignment: Assignment | None = None,
        teacher: Encoder | None = None,
        score: str = "val/mAP",
    ) -> "TrainState":
        """The state one epoch later. The tensors are those of encoder and optimizer, not copies: save before they move.

        Args:
            figures: the epoch's, by name; `score`, where it is among them, decides whether it is the best. Of equal
                ones the later is, as Ray Train has it, which keeps the best checkpoint.
            assignment: what the next epoch is to learn, where that is decided already, or may fall back on.
        """
        epoch, best, best_epoch = self.epoch + 1, self.best, self.best_epoch
        if score in figures and (best is None or figures[score] >= best):
            best, best_epoch = figures[score], epoch
        return replace(
            self,
            epoch=epoch,
            model=encoder.state_dict(),
            optimizer=optimizer.state_dict(),
            best=best,
            best_epoch=best_epoch,
            history=[*self.history, figures],
            assignment=assignment,
            teacher=teacher.state_dict() if teacher else None,
        )


def save_state(state: TrainState, folder: str | Path) -> Path:
    """Writes `state.pt` into a folder, which is made where it is missing; returns the file's path.

    The file appears under its name only when it is complete and on the disk; one that was there is replaced.

    Raises:
        CheckpointError: a value that is not plain, which could be written but never be read back without running code.
    """
    payload = {"schema": SCHEMA} | {name.name: getattr(state, name.name) for name in fields(state)}
    payload["assignment"] = _pack(state.assignment)
    _check_plain(payload, "state")
    Path(folder).mkdir(parents=True, exist_ok=True)
    target = Path(folder) / STATE_FILE
    part = target.with_name(f".{STATE_FILE}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as stream:
            torch.save(payload, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def load_state(folder: str | Path) -> TrainState:
    """Reads what `save_state` wrote, onto the CPU; takes the folder or the file. No code in the file is run.

    Raises:
        CheckpointError: missing, torn, or of a schema that we do not know.
    """
    path = Path(folder) / STATE_FILE if Path(folder).is_dir() else Path(folder)
    if not path.is_file():
        raise CheckpointError(expected(f"a checkpoint at {path}", "no such file", "check the path or start a new run"))
    payload = _in_our_schema(_read(path))
    names = [name.name for name in fields(TrainState)]
    if not isinstance(payload, dict) or payload.get("schema") != SCHEMA or {*payload} != {"schema", *names}:
        came = f"schema {payload.get('schema')}" if isinstance(payload, dict) else type(payload).__name__
        raise CheckpointError(
            expected(f"a gracl checkpoint of schema {SCHEMA} at {path}", came, "use the version of gracl that wrote it")
        )
    values = {name: payload[name] for name in names}
    return TrainState(**values | {"assignment": _unpack(payload["assignment"], path)})


def check_recipe(saved: dict[str, object], wanted: dict[str, object], *, ignore: tuple[str, ...] = ()) -> None:
    """Refuses to go on with a run under other settings than it was begun with.

    Args:
        saved: the settings of the checkpoint, by dotted name.
        wanted: the settings asked for now.
        ignore: names that may differ; a section ("tracking") stands for all names under it.

    Raises:
        CheckpointError: lists each setting that differs with both values; one that is not there is "absent".
    """
    names = sorted(name for name in {*saved, *wanted} if not _ignored(name, ignore))
    differing = [
        f"{name}: {saved.get(name, ABSENT)!r} in the checkpoint, {wanted.get(name, ABSENT)!r} now"
        for name in names
        if _listed(saved.get(name, ABSENT)) != _listed(wanted.get(name, ABSENT))
    ]
    if differing:
        raise CheckpointError(
            expected("the settings of the checkpoint", "; ".join(differing), "give the old settings or a new run name")
        )


def load_encoder(source: str | Path) -> tuple[Encoder, dict[str, int]]:
    """Rebuilds the encoder of a checkpoint, or its teacher, in evaluation mode on the CPU, and the view it wants.

    Args:
        source: a folder with `state.pt`, or such a file.

    Returns:
        The encoder, and {"height": pixels, "width": pixels}.

    Raises:
        CheckpointError: missing, torn, of another schema, or weights that do not fit the encoder described.
    """
    state = load_state(source)
    encoder = build_encoder(**state.encoder)
    load_exactly(encoder, state.teacher or state.model, source=str(source))
    return encoder.eval(), state.view


def _read(path: Path) -> object:
    """Unpacks the file; its checksums first, because torch reads a flipped bit without a word."""
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
        if torn is not None:
            raise zipfile.BadZipFile(f"wrong checksum in {torn}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can fail in the readers in any way
        raise CheckpointError(
            expected(
                f"a whole checkpoint at {path}",
                f"{type(error).__name__}: {error}",
                "resume from an older checkpoint or start a new run",
            )
        ) from error


def _in_our_schema(payload: object) -> object:
    """A payload of an older schema as one of ours; others as they are."""
    schema = payload.get("schema") if isinstance(payload, dict) else None
    if not isinstance(payload, dict) or not isinstance(schema, int) or not 1 <= schema < SCHEMA:
        return payload
    later = {name: value for since, added in SINCE.items() if since > schema for name, value in added.items()}
    return payload if later.keys() & payload.keys() else payload | later | {"schema": SCHEMA}


# What an assignment may be made of beside its labels; only the proxies are always there.
_PARTS: dict[str, Any] = {
    "proxies": Proxies,
    "instances": Instances,
    "consensus": Consensus,
    "camera_proxies": CameraProxies,
}


def _pack(assignment: Assignment | None) -> dict[str, Any] | None:
    """An assignment as plain values, arrays as tensors."""
    if assignment is None:
        return None
    packed = {"epoch": assignment.epoch, "stats": dict(assignment.stats), "labels": torch.tensor(assignment.labels)}
    for part, kind in _PARTS.items():
        value = getattr(assignment, part)
        if value is not None:
            packed[part] = {name.name: torch.tensor(getattr(value, name.name)) for name in fields(kind)}
    return packed


def _unpack(packed: Any, path: Path) -> Assignment | None:
    """What `_pack` made of an assignment, as one again.

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


def _check_plain(value: object, place: str) -> None:
    """Refuses anything that a reader without pickled code could not build again (a NumPy number, a path)."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"{place} key")
            _check_plain(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{place}[{number}]")
    elif not (value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str)):
        raise CheckpointError(
            expected(f"a plain value at {place}", type(value).__name__, "convert it to int, float, str, list or dict")
        )


def _ignored(name: str, ignore: tuple[str, ...]) -> bool:
    """Whether a setting, or a section it is in, stands in the list."""
    return any(name == entry or name.startswith(f"{entry}.") for entry in ignore)


def _listed(value: object) -> object:
    """The value with tuples as lists: files know no tuples."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value

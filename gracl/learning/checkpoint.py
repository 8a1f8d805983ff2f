"""What a run leaves at an epoch's end, and on the way: written whole or not at all, read back or refused.

An epoch depends on weights, optimizer and epoch number alone (architecture.md 5.11), so that is what is saved, with the
teacher's weights where there is one. Banks, labels and generators are not: the next epoch makes its own. Only where
labels are one epoch old (docs/decisions/0012-overlap) are those saved which the next epoch will learn, and where it may
fall back on older ones (docs/decisions/0024-too-few-clusters) those. A state from within an epoch (docs/decisions/0023)
has what the rest of that epoch needs beside, as its `midway`.
"""

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from gracl.errors import CheckpointError, StorageError, expected
from gracl.learning.claims import check_kinds, described
from gracl.learning.encoder import Encoder, load_exactly
from gracl.learning.packing import pack_assignment, pack_report, unpack_assignment, unpack_report
from gracl.learning.plain_files import load_plain
from gracl.types import Assignment, RetrievalReport

STATE_FILE = "state.pt"
SCHEMA = 4
# What the files of older schemas do not have.
SINCE = {2: {"assignment": None}, 3: {"teacher": None}, 4: {"midway": None}}
ABSENT = "absent"


@dataclass(frozen=True)
class Midway:
    """What the rest of an epoch needs beside weights and optimizer, and what its report will tell.

    Attributes:
        step: steps of the epoch that were taken, from 1.
        assignment: what the epoch learns.
        moved: `Criterion.moved()` after that step.
        losses: what `train_epoch` has of each of these steps, on each rank.
        seconds: by phase, of the epoch so far.
        untrained: how the first weights were judged, where this epoch is to tell it.
    """

    step: int
    assignment: Assignment
    moved: dict[str, Tensor]
    losses: Float32[Tensor, "ranks steps 5"]
    seconds: dict[str, float]
    untrained: RetrievalReport | None = None

    def rows(self, rank: int, ranks: int, device: torch.device) -> list[Tensor]:
        """The losses of a rank, step by step; where there were other ranks, the mean over those."""
        mine = self.losses[rank] if len(self.losses) == ranks else self.losses.mean(0)
        return list(mine.to(device))


@dataclass(frozen=True)
class TrainState:
    """A run at the end of an epoch, or within one.

    Tensors apart, every value is plain (None, bool, int, float, str, list, dict).

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
        midway: how far the next epoch is, and `assignment` is then for the one after it; None at an epoch's end.
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
    midway: Midway | None = None

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
        return replace(self, recipe=dict(recipe), view=view, best=None, best_epoch=None, assignment=None, midway=None)

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
            midway=None,
        )

    def within(
        self,
        midway: Midway,
        *,
        encoder: Encoder,
        optimizer: torch.optim.Optimizer,
        assignment: Assignment | None = None,
        teacher: Encoder | None = None,
    ) -> "TrainState":
        """The state some steps later, as many epochs done as before. Tensors are no copies, as in `after`."""
        return replace(
            self,
            model=encoder.state_dict(),
            optimizer=optimizer.state_dict(),
            assignment=assignment,
            teacher=teacher.state_dict() if teacher else None,
            midway=midway,
        )


def save_state(state: TrainState, folder: str | Path) -> Path:
    """Writes `state.pt` into a folder, which is made where it is missing; returns the file's path.

    The file appears under its name only when it is complete and on the disk; one that was there is replaced.

    Raises:
        CheckpointError: a value that is not plain, which could be written but never be read back without running code.
        StorageError: the disk is full, read-only or gone; what was there before still is.
    """
    payload = {"schema": SCHEMA} | {name.name: getattr(state, name.name) for name in fields(state)}
    payload["assignment"], payload["midway"] = pack_assignment(state.assignment), _pack_midway(state.midway)
    _check_plain(payload, "state")
    target = Path(folder) / STATE_FILE
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _replace(target, payload)
    except OSError as error:
        advice = "see to the disk (GRACL_TMP names another), then run the same command again"
        raise StorageError(expected(f"room and leave to write {target}", error, advice)) from error
    return target


def _replace(target: Path, payload: dict[str, Any]) -> None:
    part = target.with_name(f".{STATE_FILE}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as stream:
            try:
                torch.save(payload, stream)
            except RuntimeError as error:
                # Of a full disk torch says "unexpected pos 1024 vs 918", while the disk's own words are behind it.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    finally:
        with suppress(OSError):  # a disk that went away cannot be tidied, and its own error says so
            part.unlink(missing_ok=True)


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
    check_kinds(values, path)
    values["assignment"] = unpack_assignment(payload["assignment"], path)
    return TrainState(**values | {"midway": _unpack_midway(payload["midway"], path)})


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
    encoder = described(state.encoder, state.teacher or state.model, str(source))
    load_exactly(encoder, state.teacher or state.model, source=str(source))
    return encoder.eval(), state.view


def _read(path: Path) -> object:
    """Unpacks the file, whose checksums must be right."""
    try:
        return load_plain(path, whole=True)
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


def _pack_midway(midway: Midway | None) -> dict[str, Any] | None:
    """What an epoch under way needs, as plain values."""
    if midway is None:
        return None
    packed = {name.name: getattr(midway, name.name) for name in fields(midway)}
    return packed | {
        "assignment": pack_assignment(midway.assignment),
        "seconds": dict(midway.seconds),
        "untrained": pack_report(midway.untrained),
    }


def _unpack_midway(packed: Any, path: Path) -> Midway | None:
    """What `_pack_midway` made, as it was.

    Raises:
        CheckpointError: parts that are missing or do not belong together.
    """
    if packed is None:
        return None
    try:
        assignment = unpack_assignment(packed["assignment"], path)
        midway = Midway(**packed | {"assignment": assignment, "untrained": unpack_report(packed["untrained"])})
        whole = (
            assignment is not None
            and midway.step > 0
            and midway.losses.shape[1:] == (midway.step, 5)
            and all(isinstance(rows, Tensor) for rows in midway.moved.values())
            and all(type(spent) is float for spent in midway.seconds.values())
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(
            expected(
                f"the whole of an epoch under way at {path}",
                "parts that are missing or do not belong together",
                "remove this checkpoint: the run then goes on from the end of the epoch before",
            )
        )
    return midway


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

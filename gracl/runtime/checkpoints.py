"""Checkpoints by URI: `learning/checkpoint.py` reads folders of this machine, runs may be kept elsewhere."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gracl.errors import CheckpointError, expected
from gracl.images import storage
from gracl.learning.checkpoint import STATE_FILE, TrainState, load_encoder, load_state
from gracl.learning.encoder import Encoder
from gracl.sections import Relations

# As `epoch_folder` writes it; a folder of another name is none of ours.
EPOCH = re.compile(r"epoch-([0-9]{4}|[1-9][0-9]{4,})")


def load_run_state(uri: str) -> TrainState:
    """The state at an epoch's end in a checkpoint's folder.

    Raises:
        CheckpointError: missing, torn, of another schema, or from within an epoch.
    """
    state = load_any_state(uri)
    if state.midway is not None:
        raise CheckpointError(
            expected(
                f"a checkpoint of the end of an epoch at {uri}",
                f"one from within epoch {state.epoch + 1}, after step {state.midway.step}",
                "name epoch-XXXX of the run; evaluate and extract also take this one, and its own run resumes from it",
            )
        )
    return state


def load_any_state(uri: str) -> TrainState:
    """The state in a checkpoint's folder, whether from the end of an epoch or from within one.

    Raises:
        CheckpointError: missing, torn, or of another schema.
    """
    with _near(uri) as path, _named(uri, path):
        return load_state(path)


def load_model(uri: str) -> tuple[Encoder, dict[str, int]]:
    """The encoder of a checkpoint, in eval mode, and the height and width it wants.

    Args:
        uri: the checkpoint's folder, or its `state.pt`.

    Raises:
        CheckpointError: missing, torn, or of another schema.
    """
    with _near(uri) as path, _named(uri, path):
        return load_encoder(path)


def relations_of(state: TrainState) -> Relations:
    """The relations of the run that a checkpoint is of.

    Raises:
        CheckpointError: settings that this version does not know.
    """
    known = {
        name.removeprefix("relations."): value for name, value in state.recipe.items() if name.startswith("relations.")
    }
    try:
        return Relations.model_validate(known)
    except ValidationError as error:
        raise CheckpointError(
            expected("a checkpoint whose relations this version knows", str(error), "train with this version")
        ) from None


def takes_surroundings(recipe: Mapping[str, Any]) -> bool:
    """Whether a run of this recipe took groups of surroundings for cameras."""
    return recipe.get("cameras_from") == "surroundings"


@contextmanager
def _named(uri: str, path: Path) -> Iterator[None]:
    """An error about a copy names what it is a copy of."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(path), uri)) from error


@contextmanager
def _near(uri: str) -> Iterator[Path]:
    if storage.is_local(uri):
        yield storage.local_path(uri)
        return
    file = uri if uri.endswith(STATE_FILE) else storage.join(uri, STATE_FILE)
    if not storage.exists(file):
        raise CheckpointError(expected(f"a checkpoint at {file}", "no such file", "check the URI"))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, STATE_FILE).write_bytes(storage.read_bytes(file))
        yield Path(folder)


def epoch_folder(epoch: int) -> str:
    """The name of a checkpoint's folder in that of its run."""
    return f"epoch-{epoch:04d}"

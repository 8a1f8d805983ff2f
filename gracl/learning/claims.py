"""What a checkpoint claims, looked at before anything is made of it: kinds of values, sizes of encoder and view."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gracl.errors import CheckpointError, expected
from gracl.learning.encoder import Encoder, build_encoder
from gracl.types import MAX_SIDE

# What the values of a state are; what is in them is looked at where it is used.
_KINDS: dict[str, Any] = {
    "epoch": int,
    "model": dict,
    "optimizer": dict,
    "best": float | int | None,
    "best_epoch": int | None,
    "recipe": dict,
    "encoder": dict,
    "view": dict,
    "history": list,
    "teacher": dict | None,
}
_WORDS = ("backbone", "pooling")
_NUMBERS = ("last_stride", "bn_group", "feature_size", "seed")


def check_kinds(values: Mapping[str, Any], path: Path) -> None:
    """Refuses values of another kind, and a view for which a batch would take any memory that the file claims.

    Raises:
        CheckpointError: naming what is wrong.
    """
    wrong = [name for name, kind in _KINDS.items() if not isinstance(values[name], kind)]
    if not wrong:
        view = values["view"]
        sides = [view.get("height"), view.get("width")]
        fits = view.keys() == {"height", "width"} and all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides)
        wrong = [] if fits else ["view"]
    if wrong:
        what = f"a gracl checkpoint at {path}, with a view of at most {MAX_SIDE} pixels a side"
        raise CheckpointError(expected(what, f"something else as {', '.join(wrong)}", "give one that gracl wrote"))


def described(options: Mapping[str, Any], weights: Mapping[str, Any], source: str) -> Encoder:
    """The encoder that a checkpoint describes; it is no larger than the weights that come with it.

    Raises:
        CheckpointError: other options than `Encoder.options` has, or of another kind, or another feature size.
        ConfigError: no such backbone, pooling or stride.
    """
    neck = weights.get("neck.weight")
    size = len(neck) if isinstance(neck, Tensor) and neck.ndim == 1 else -1
    kinds = dict.fromkeys(_WORDS, str) | dict.fromkeys(_NUMBERS, int) | {"weights": type(None)}
    whole = (
        options.keys() <= kinds.keys()
        and all(type(value) is kinds[name] for name, value in options.items())
        and options.get("feature_size", 0) in (0, size)
        and all(isinstance(weight, Tensor) for weight in weights.values())
    )
    if not whole:
        what = f"an encoder and its weights in {source}"
        raise CheckpointError(expected(what, f"{str(dict(options))[:300]}", "give a checkpoint that gracl wrote"))
    return build_encoder(**options)

"""The encoder through torch's compiler: batch norm, activations and sums fused into the kernels around them.

For training, where one shape comes thousands of times. What is learnt differs by the rounding of other kernels.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from gracl.errors import ConfigError, expected
from gracl.learning.encoder import Encoder

INDUCTOR = "inductor"


def compile_encoder(encoder: Encoder, *, backend: str | Callable[..., Any] = INDUCTOR) -> None:
    """From now on each call of the encoder is compiled, once for each shape in training and in evaluation.

    In place: names, weights and statistics stay what they are, and the state of a run says nothing of it.

    Args:
        encoder: changed in place.
        backend: as `torch.compile` has it; others than the default are for tests.

    Raises:
        ConfigError: this machine cannot compile (on a CPU: no C++ compiler, or no headers of Python).
    """
    device = next(encoder.parameters()).device
    if backend == INDUCTOR:
        _try(device)
    encoder.compile(backend=backend, dynamic=False)
    encoder.backend = backend


def like(encoder: Encoder, model: Encoder) -> None:
    """Compiles a copy of an encoder as that is, if it is: copies are made without."""
    if model.backend:
        encoder.compile(backend=model.backend, dynamic=False)
        encoder.backend = model.backend


def as_written(encoder: Encoder, when: bool = True) -> AbstractContextManager[object]:
    """Within it a compiled encoder is not: for a shape that comes once, which is not worth its minute."""
    if not (encoder.backend and when):
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def _try(device: torch.device) -> None:
    """Compiles something small, that a machine which cannot says so before the work."""
    try:
        torch.compile(lambda number: number.exp() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of torch's, the compiler's or the linker's, whatever they have
        cause = getattr(error, "inner_exception", error)
        said = str(cause).strip().splitlines() or ["no reason given"]
        came = f"{type(cause).__name__}: {said[0]}"
        advice = "install a C++ compiler and Python's headers (Debian: g++, python3-dev), or set scale.compile=false"
        raise ConfigError(expected(f"a machine on which torch compiles for {device.type}", came, advice)) from error

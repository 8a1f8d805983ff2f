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
_ADVICE = {
    "cpu": "install a C++ compiler and Python's headers (Debian: g++, python3-dev)",
    "cuda": "install Triton of torch's release and a C compiler, on a card of compute capability 7 or above",
}


def compile_encoder(encoder: Encoder, *, backend: str | Callable[..., Any] = INDUCTOR) -> None:
    """From now on calls of the encoder are compiled, each shape anew, in training and in evaluation.

    In place: names, weights and statistics stay what they are, and the state of a run says nothing of it. In a group of
    ranks torch cuts the graph of training where it begins to send gradients.

    Args:
        encoder: changed in place.
        backend: as `torch.compile` has it; others than the default are for tests.

    Raises:
        ConfigError: this machine cannot compile (on a CPU: no C++ compiler, or no headers of Python).
    """
    device = next(encoder.parameters()).device
    if backend == INDUCTOR:
        _try(device)
    _compile(encoder, backend)


def like(encoder: Encoder, model: Encoder) -> None:
    """Compiles a copy of an encoder as that is, if it is: torch makes copies without."""
    if is_compiled(model):
        _compile(encoder, model.backend)


def is_compiled(encoder: Encoder) -> bool:
    """Whether calls of it are."""
    return encoder._compiled_call_impl is not None


def as_written(encoder: Encoder) -> AbstractContextManager[object]:
    """Within it a compiled encoder is not: for a shape that comes once, which is not worth its minute."""
    if not is_compiled(encoder):
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def compiled_where_it_pays(encoder: Encoder, rows: int) -> AbstractContextManager[object]:
    """For a batch of a scan: a compiled encoder takes those that are the largest so far as compiled.

    The last of a split, and all of a split smaller than a batch, are seen as written, once a whole batch was seen.
    """
    encoder.most_rows = max(encoder.most_rows, rows)
    return as_written(encoder) if rows < encoder.most_rows else nullcontext()


def _compile(encoder: Encoder, backend: str | Callable[..., Any]) -> None:
    encoder.compile(backend=backend, dynamic=False)
    encoder.backend = backend


def _try(device: torch.device) -> None:
    """Compiles something small, that a machine which cannot says so before the work."""
    try:
        torch.compile(lambda number: number.exp() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of torch's, the compiler's or the linker's, whatever they have
        cause = getattr(error, "inner_exception", error)
        said = str(cause).strip().splitlines() or ["no reason given"]
        came = f"{type(cause).__name__}: {said[0]}"
        raise ConfigError(
            expected(
                f"a machine on which torch compiles for {device.type}",
                came,
                f"{_ADVICE.get(device.type, 'see what torch says')}, or set scale.compile=false",
            )
        ) from error

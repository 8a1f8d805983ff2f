"""In which arithmetic the network runs: float32, or bfloat16 autocast with an eye on one kernel that is wrong."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bfloat16 where asked for, and by default on a GPU; float32 otherwise. Can be entered again and again."""
    if precision != "bfloat16" and (precision != "auto" or device.type != "cuda"):
        return nullcontext()
    casting = torch.autocast(device.type, dtype=torch.bfloat16)
    return _NarrowInFull(casting) if device.type == "cpu" else casting


class _NarrowInFull(TorchFunctionMode):
    """Autocast on a CPU, but for convolutions whose maps come out one place wide: those are computed in float32.

    On CPUs with AMX the oneDNN of torch 2.11 to 2.13 leaves part of such maps, or of the gradient of the weights (that
    one with AVX-512 alone, too), unwritten if the stride is above 1: what lay in that memory before is then taken for
    features, without an error (docs/decisions/0029, benchmarks/bench_convolutions.py). Pictures 16 pixels wide get
    there, and with `encoder.last_stride=2` those of 32.
    """

    def __init__(self, casting: torch.autocast) -> None:
        super().__init__()
        self._casting = casting

    def __enter__(self) -> "_NarrowInFull":
        self._casting.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._casting.__exit__(kind, error, trace)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """As torch would, but for such a convolution."""
        given = dict(kwargs or {})
        if func is not F.conv2d or not _is_narrow(*args, **given):
            return func(*args, **given)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_full, args), **{name: _full(value) for name, value in given.items()}).bfloat16()


def _is_narrow(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> bool:
    """Whether maps come out one place wide with a stride that leaves places out; named as torch names them."""
    stride_w, dilation_w = _last(stride), _last(dilation)
    padding_w = 0 if isinstance(padding, str) else _last(padding)  # a name is "valid": "same" allows no such stride
    reached = dilation_w * (weight.shape[-1] - 1) + 1
    return stride_w > 1 and (input.shape[-1] + 2 * padding_w - reached) // stride_w == 0


def _last(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[-1]


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value

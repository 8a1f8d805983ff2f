"""Compiled row kernels and the threads that run them.

A kernel is a function of a run of rows, compiled without Python's lock. Every row is computed by one thread, in one
order, so no result depends on how many threads there are or where the runs are cut. Plain threads are used instead of
numba's own: they hold no global state, survive a fork, and can tell how far they are.
"""

import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from jaxtyping import Float64
from numba.extending import overload
from numpy import ndarray

from gracl.errors import ConfigError, expected

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Progress = Callable[[int, int], None]

_MOST_ROWS = 4096


def compiled(function: F) -> F:
    """Compiles a kernel with numba and keeps the machine code on disk.

    Sums may be regrouped into vector lanes, in the same way for every row; NaN and infinity keep their meaning. Put
    `@typing.no_type_check` below it: the shape checks of the tests cannot look into compiled code.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"}}
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # No folder is writable (neither the package's nor the home's): compile anew in each process.
        return cast(F, numba.njit(**options)(function))


def over_rows(
    kernel: Callable[[int, int], T], rows: int, *, threads: int = 0, progress: Progress | None = None
) -> list[T]:
    """Runs `kernel(start, stop)` over all rows, several runs at a time, and returns what they gave, in order.

    Args:
        kernel: works on rows start..stop-1; has to leave Python's lock for threads to help.
        rows: how many there are; none calls nothing.
        threads: 0 takes torch's number as it is.
        progress: called with (rows done, rows) after each run, in this thread.

    Raises:
        ConfigError: `threads` below 0.
    """
    threads = thread_count(threads)
    step = int(np.clip(-(-rows // (8 * threads)), 64, _MOST_ROWS))
    starts = range(0, rows, step)
    stops = [min(start + step, rows) for start in starts]
    if threads == 1:
        return [_told(kernel(start, stop), stop, rows, progress) for start, stop in zip(starts, stops, strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        results = zip(pool.map(kernel, starts, stops), stops, strict=True)
        return [_told(result, stop, rows, progress) for result, stop in results]


def _told(result: T, done: int, rows: int, progress: Progress | None) -> T:
    """The result, after telling how far the rows are."""
    if progress:
        progress(done, rows)
    return result


def thread_count(threads: int) -> int:
    """`threads` itself, or torch's number for 0 (it follows OMP_NUM_THREADS, which Ray sets for its actors).

    Raises:
        ConfigError: `threads` below 0.
    """
    if threads < 0:
        raise ConfigError(expected("threads >= 0", threads, "give the number of threads, or 0 for torch's own"))
    return threads or torch.get_num_threads()


def readable(features: ndarray) -> ndarray:
    """Feature rows as kernels read them: float32 as they are, float16 as its bits (numba has no float16 on the CPU).

    No copy is made of contiguous rows, so a memory-mapped table stays on disk. Kernels take elements with `real`.
    """
    features = np.ascontiguousarray(features)
    return features.view(np.uint16) if features.dtype == np.float16 else features


def real(element: Any) -> float:
    """One element of `readable(features)` as a double. Only for compiled kernels."""
    raise RuntimeError(f"our mistake: real({element}) outside a kernel")


@overload(real)
@typing.no_type_check
def _real(element):
    if not isinstance(element, numba.types.Integer):
        return lambda element: np.float64(element)

    def of_half(element):
        # The bits of a float16 in the places of a float32's, whose exponent counts from 127 instead of 15. Exact for
        # every finite value, subnormal ones too.
        bits = np.uint32(element)
        bits = ((bits & np.uint32(0x8000)) << np.uint32(16)) | ((bits & np.uint32(0x7FFF)) << np.uint32(13))
        return np.float64(np.uint32(bits).view(np.float32)) * 2.0**112

    return of_half


def finite(element: Any) -> bool:
    """Whether one element of `readable(features)` is a number: `real` does not know a float16's NaN and infinity."""
    raise RuntimeError(f"our mistake: finite({element}) outside a kernel")


@overload(finite)
@typing.no_type_check
def _finite(element):
    if isinstance(element, numba.types.Integer):
        return lambda element: (element & 0x7C00) != 0x7C00
    return lambda element: np.isfinite(element)


@compiled
@typing.no_type_check
def dot(a, b):
    """Inner product of two readable rows, summed in double precision: equal for copies of a row, in either order."""
    total = 0.0
    for i in range(a.size):
        total += real(a[i]) * real(b[i])
    return total


def squared_lengths(features: ndarray, *, threads: int = 0) -> Float64[ndarray, "rows"]:
    """The squared length of every row, in double precision; NaN where an element is NaN or infinite.

    Args:
        features: float32 or float16; read once, in place.
        threads: 0 takes torch's number.
    """
    rows, lengths = readable(features), np.empty(len(features))
    over_rows(lambda start, stop: _lengths(rows, start, stop, lengths), len(rows), threads=threads)
    return lengths


@compiled
@typing.no_type_check
def _lengths(rows, start, stop, lengths):
    for row in range(start, stop):
        lengths[row] = dot(rows[row], rows[row])
        for column in range(rows.shape[1]):
            if not finite(rows[row, column]):
                lengths[row] = np.nan

"""Blocks of queries times all rows, on CPU or GPU, and the best of each: what proposes candidates exactly.

On a GPU the product takes half-precision rows and sums in float32; rows that do not fit beside the work stay in the
host's memory (or on its disk) and pass by in blocks, once for each block of queries.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from torch import Tensor

from gracl.types import Feature

# Similarities held at a time, on each kind of device: 256 MB and 1 GB of float32.
MOST_VALUES = {"cpu": 2**26, "cuda": 2**28}
# The share of a GPU's free memory that resident rows may take.
_RESIDENT = 0.6


class Product:
    """All rows of a table, ready to be multiplied with blocks of queries.

    Args:
        gallery: the rows; a memory-mapped table is read where it is.
        place: "cpu" or "cuda".
        half: rows are rounded to float16; the sums stay float32. Rows that came as float16 lose nothing.
        resident: keep the rows on the GPU; None: when they fit. On the CPU they are read where they lie.

    Attributes:
        kept: the rows on the device as they came, where they are resident on one.
        error: how far a similarity of unit rows may be off at most, before `settling` has seen any: n products and sums
            in float32 (Higham 3.1), and the rounding of both factors to 11 bits.
    """

    def __init__(
        self,
        gallery: Feature[ndarray, "gallery dim"],
        place: str,
        *,
        half: bool = False,
        resident: bool | None = None,
    ) -> None:
        self.place, self.rows, self.half = place, len(gallery), half
        self._dtype = torch.float16 if half else torch.float32
        self._gallery = gallery
        rounds = half and gallery.dtype != np.float16
        self.error = (gallery.shape[1] + 16) * 2.0**-24 + (2 * 2.0**-11 if rounds else 0)
        # The rows as they came, for `settling`, and rounded for the product: one tensor when they are the same.
        self.kept: Tensor | None = None
        self._rounded: Tensor | None = None
        if place != "cpu" and (self._fits() if resident is None else resident):
            self.kept = self._upload(0, self.rows)
            self._rounded = self.kept.to(self._dtype)

    def block(self, queries: int) -> int:
        """Rows that a block of so many queries is multiplied with at a time."""
        return max(1, min(self.rows, MOST_VALUES[self.place] // max(1, queries)))

    def propose(
        self, query: Feature[ndarray, "queries dim"], count: int
    ) -> tuple[Float32[Tensor, "queries count"], Int64[Tensor, "queries count"]]:
        """Similarities and indices of the `count` best rows of each query, on the device, best first."""
        values = torch.empty((len(query), 0), device=self.place)
        indices = torch.empty((len(query), 0), dtype=torch.int64, device=self.place)
        for start, scores in self._scores(query):
            top = scores.topk(min(count, scores.shape[1]), dim=1)
            values = torch.cat([values, top.values], dim=1)
            indices = torch.cat([indices, top.indices + start], dim=1)
            if values.shape[1] > top.values.shape[1]:
                values, order = values.topk(min(count, values.shape[1]), dim=1)
                indices = indices.gather(1, order)
        return values, indices

    def in_double(self, query: Feature[ndarray, "queries dim"]) -> Float64[ndarray, "queries gallery"]:
        """The similarities of a few queries to every row, from the rows as they came, in double precision."""
        out = np.empty((len(query), self.rows))
        rows = as_tensor(np.ascontiguousarray(query)).to(self.place).double()
        step = max(1, MOST_VALUES[self.place] // (4 * max(1, self._gallery.shape[1])))
        for start in range(0, self.rows, step):
            some = slice(start, min(start + step, self.rows))
            columns = self._upload(some.start, some.stop) if self.kept is None else self.kept[some]
            out[:, some] = (rows @ columns.double().T).cpu().numpy()
        return out

    def between(self, query: Tensor, rows: Int64[ndarray, "rows"]) -> Float32[Tensor, "queries rows"]:
        """The similarities of queries that `put` has brought to some of the rows."""
        if self._rounded is None:
            return self._multiply(query, self.put(self._gallery[rows]))
        return self._multiply(query, self._rounded[torch.from_numpy(rows).to(self._rounded.device)])

    def _scores(self, query: Feature[ndarray, "queries dim"]) -> Iterator[tuple[int, Tensor]]:
        rows, step = self.put(query), self.block(len(query))
        for start in range(0, self.rows, step):
            yield start, self._multiply(rows, self._columns(start, min(start + step, self.rows)))

    def _columns(self, start: int, stop: int) -> Tensor:
        return self.put(self._gallery[start:stop]) if self._rounded is None else self._rounded[start:stop]

    def _upload(self, start: int, stop: int) -> Tensor:
        """Rows on the device as they came; piece by piece, so that a file is never read whole into memory."""
        first = as_tensor(np.ascontiguousarray(self._gallery[start : start + 1]))
        out = torch.empty((stop - start, self._gallery.shape[1]), dtype=first.dtype, device=self.place)
        for begin in range(start, stop, 2**16):
            end = min(begin + 2**16, stop)
            out[begin - start : end - start] = as_tensor(np.ascontiguousarray(self._gallery[begin:end]))
        return out

    def put(self, rows: Feature[ndarray, "rows dim"]) -> Tensor:
        """Rows as a tensor on the device, in the product's precision."""
        moved = as_tensor(np.ascontiguousarray(rows)).to(self.place).to(self._dtype)
        # The CPU has no half product that sums in float32; there `half` only rounds the rows.
        return moved.float() if self.place == "cpu" else moved

    def _multiply(self, query: Tensor, columns: Tensor) -> Tensor:
        if self.half and self.place != "cpu":
            return torch.mm(query, columns.T, out_dtype=torch.float32)
        return query @ columns.T

    def _fits(self) -> bool:
        twice = self._gallery.dtype != np.float16 and self.half
        return self._gallery.nbytes + twice * self._gallery.nbytes // 2 < _RESIDENT * free_on_gpu()


def free_on_gpu() -> int:
    """Bytes that torch can still take of the GPU: what it holds back of an earlier table is free to it."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def as_tensor(array: ndarray) -> Tensor:
    """The array as a tensor on the same memory."""
    with warnings.catch_warnings():
        # Arrays out of Ray's object store or a file are read-only; torch warns, but this tensor is only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)

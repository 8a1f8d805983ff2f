"""From proposed candidates to the one right order: scored again in double precision, own row first, ties by index.

A row is *disputed* when something that was not proposed could be as near as its k-th, given how far proposals may be
off: `Product.error`, or twice what is measured on the candidates where that is more (somebody may have allowed TF32).
"""

import typing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from numpy import ndarray
from torch import Tensor

from gracl.kernels import compiled, dot, over_rows, readable
from gracl.similarity.products import MOST_VALUES, Product, as_tensor
from gracl.types import EMPTY, Feature

# Rows with more equals than this at the k-th place are not scored again one by one.
_MOST_EQUALS = 1024
# Sums of float32 products in double precision, in whatever order, differ by less than this between unit rows.
_DOUBLE = 1e-12


@dataclass(frozen=True)
class Block:
    """Some queries, what they are looked up in, and where their part of the table is written.

    `own` is the gallery row that stands first in a query's list, or -1.
    """

    query: Feature[ndarray, "rows dim"]
    gallery: Feature[ndarray, "gallery dim"]
    own: Int64[ndarray, "rows"]
    indices: Int32[ndarray, "rows k"]
    similarities: Float32[ndarray, "rows k"]


def settle(block: Block, raw: ndarray, candidates: ndarray, threads: int) -> float:
    """Writes the k best candidates of every row; returns how far the raw similarities were off at most.

    Candidates of -1 are empty places; where fewer than k are left, the end of the row is -1 and minus infinity.
    """
    query, gallery = readable(block.query), readable(block.gallery)
    errors = over_rows(
        lambda start, stop: _score(
            query, gallery, raw, candidates, block.own, start, stop, block.indices, block.similarities
        ),
        len(query),
        threads=threads,
    )
    return max(errors, default=0.0)


def settle_on_device(
    block: Block, raw: Float32[Tensor, "rows width"], candidates: Int64[Tensor, "rows width"], kept: Tensor
) -> float:
    """`settle` by torch where the rows are kept: for a GPU, whose double precision beats the CPU's by far."""
    own = as_tensor(block.own).to(kept.device)
    absent = (own >= 0) & ~(candidates == own[:, None]).any(dim=1)  # a row of more copies than candidates
    candidates = candidates.clone()
    candidates[absent, -1] = own[absent]
    near = _exact(as_tensor(np.ascontiguousarray(block.query)).to(kept.device), candidates, kept)
    off = (raw.double() - near).abs()
    off[absent, -1] = 0
    ranked = near.float()
    first = torch.where(candidates == own[:, None], torch.inf, ranked)  # itself first, whatever a copy scores
    by_index = candidates.argsort(dim=1)
    by_value = first.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
    order = by_index.gather(1, by_value)[:, : block.indices.shape[1]]
    block.indices[:] = candidates.gather(1, order).cpu().numpy()
    block.similarities[:] = ranked.gather(1, order).cpu().numpy()
    return float(off.max())


def _exact(query: Tensor, candidates: Int64[Tensor, "rows width"], kept: Tensor) -> Float64[Tensor, "rows width"]:
    """The candidates' similarities in double precision, a few rows at a time."""
    out = torch.empty(candidates.shape, dtype=torch.float64, device=kept.device)
    step = max(1, MOST_VALUES[kept.device.type] // (2 * candidates.shape[1] * kept.shape[1]))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        out[part] = torch.einsum("rwd,rd->rw", kept[candidates[part]].double(), query[part].double())
    return out


def disputed(block: Block, lowest: Float32[ndarray, "rows"], error: float) -> Int64[ndarray, "disputed"]:
    """The rows whose k-th place something that was not proposed could claim.

    Args:
        lowest: the lowest raw similarity that was proposed for each row.
        error: how far raw similarities may be off: what was not proposed is at most this much nearer than `lowest`.
    """
    return np.flatnonzero(block.similarities[:, -1] <= lowest + error)


def look_through(block: Block, rows: Int64[ndarray, "disputed"], product: Product) -> None:
    """Settles disputed rows by the similarities of all gallery rows, in double precision."""
    k, step = block.indices.shape[1], max(1, MOST_VALUES["cpu"] // (2 * len(block.gallery)))
    query, gallery = readable(block.query), readable(block.gallery)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        scores = product.in_double(block.query[some])
        for row, one in zip(some, scores, strict=True):
            near, part = _near(one, k), slice(row, row + 1)
            mine = block.own[part], 0, 1, block.indices[part], block.similarities[part]
            _score(query[part], gallery, one[near].astype(np.float32)[None], near[None], *mine)


def _near(scores: Float64[ndarray, "gallery"], k: int) -> Int64[ndarray, "near"]:
    """Every gallery row that may belong to the k nearest by float32 similarity and index, given double ones.

    Rows are equal when float32 cannot tell them apart. Where thousands are (copies; a network that has collapsed):
    those that are nearer, and the lowest indices of the equal ones.
    """
    k = min(k, len(scores))
    floor = np.partition(scores, len(scores) - k)[len(scores) - k]
    rounding = np.spacing(np.float32(abs(floor))) / 2 + _DOUBLE
    near = np.flatnonzero(scores >= floor - 2 * rounding)
    if len(near) <= k + _MOST_EQUALS:
        return near
    singles = scores.astype(np.float32)
    last = np.float32(floor)
    sure, equal = np.flatnonzero(singles > last), np.flatnonzero(singles == last)
    return np.concatenate([sure, equal[: k - min(k, len(sure))]])


@compiled
@typing.no_type_check
def _score(query, gallery, raw, candidates, own, start, stop, indices, similarities):
    """Sorts the candidates of rows start..stop-1 by exact similarity, own row first; returns the largest raw error."""
    k, width = indices.shape[1], candidates.shape[1]
    ids = np.empty(width + 1, np.int64)
    values = np.empty(width + 1, np.float32)
    error = 0.0
    for row in range(start, stop):
        first = 0
        if own[row] >= 0:
            ids[0], values[0] = own[row], np.float32(dot(query[row], gallery[own[row]]))
            first = 1
        found = first
        for c in range(width):
            j = candidates[row, c]
            if j < 0:
                continue
            value = np.float32(dot(query[row], gallery[j]))
            error = max(error, abs(np.float64(raw[row, c]) - np.float64(value)))
            if j == own[row]:
                continue
            # Insertion: the candidates come almost in order.
            place = found
            while place > first and (values[place - 1] < value or (values[place - 1] == value and ids[place - 1] > j)):
                values[place], ids[place] = values[place - 1], ids[place - 1]
                place -= 1
            values[place], ids[place] = value, j
            found += 1
        for c in range(k):
            if c < found:
                indices[row, c], similarities[row, c] = ids[c], values[c]
            else:
                indices[row, c], similarities[row, c] = EMPTY, -np.inf
    return error

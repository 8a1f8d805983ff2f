"""Propose, then settle: scores of all rows in float32 blocks, then exact ones for the few that could be the lowest.

A rule is a function that scores rows at the precision it is told. Asked in float32 it proposes: a member takes part as
long as its score, less the rounding error, lies below every other of its cluster plus theirs. Where more than one is
left the rule is asked again, in double precision. So what is chosen depends neither on device, block size and threads
nor on the rounding of a matrix product; a bound that is too wide costs time and changes nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor

from gracl.similarity.products import as_tensor, free_on_gpu
from gracl.types import NOISE, Feature

Read = Callable[[ndarray, torch.dtype], Tensor]
Score = Callable[[ndarray, torch.dtype], ndarray]

# Sums in double precision differ by less than this from the true means of float32 features; scores closer than that
# are equal (the two members of a pair always are).
EQUAL = 1e-12
# Half the distance of 1 from the next float32.
_ROUNDING = 2.0**-24
# Rows of a block at most, whatever `block_rows` says: a block against another one is then 256 MiB of float32.
_MOST_ROWS = 8192


@dataclass(frozen=True)
class Table:
    """Feature rows on their way to the device, and what is known of them. `step` is how many make a block.

    `able` are the clustered images that can become proxies, ascending.
    """

    read: Read
    labels: Int64[ndarray, "images"]
    sizes: Int64[ndarray, "clusters"]
    able: Int64[ndarray, "rows"]
    dim: int
    step: int
    place: str

    @property
    def clustered(self) -> Int64[ndarray, "rows"]:
        """The images that are not noise, in order of index."""
        return np.flatnonzero(self.labels != NOISE)

    @property
    def contested(self) -> Int64[ndarray, "rows"]:
        """Those able whose cluster has more than one: the only one of a cluster is its lowest by any score."""
        own = self.labels[self.able]
        return np.asarray(self.able[np.bincount(own, minlength=len(self.sizes))[own] > 1])


def table_of(
    features: Feature[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    sizes: Int64[ndarray, "clusters"],
    block_rows: int,
    place: str,
) -> Table:
    """The table of contiguous features, read where they are; a GPU that has room for two gets a copy, as it is.

    Everyone who is clustered is able.
    """
    return Table(
        read=_reader(features, place),
        labels=labels,
        sizes=sizes,
        able=np.flatnonzero(labels != NOISE),
        dim=features.shape[1],
        step=min(block_rows, _MOST_ROWS),
        place=place,
    )


def settled(
    table: Table,
    rows: Int64[ndarray, "rows"],
    proposed: Float64[ndarray, "rows"],
    errors: Float64[ndarray, "rows"],
    score: Score,
) -> Float64[ndarray, "images"]:
    """Scores that tell which member of each cluster is the lowest; infinity for those that are not.

    Args:
        table: whose labels say who competes with whom.
        rows: clustered images, in any order.
        proposed: their scores, and `errors`: how far these may be off.
        score: the rule, asked again in double precision for the rows in dispute.
    """
    clusters, own = len(table.sizes), table.labels[rows]
    ceiling = np.full(clusters, np.inf)
    np.minimum.at(ceiling, own, proposed + errors)
    near = proposed - errors <= ceiling[own] + EQUAL
    rows, own, scores = rows[near], own[near], proposed[near]
    disputed = np.bincount(own, minlength=clusters)[own] > 1
    scores[disputed] = score(rows[disputed], torch.float64)
    decisive = np.full(len(table.labels), np.inf)
    decisive[rows] = scores
    return decisive


def float32_error(terms: int) -> float:
    """How far a float32 inner product of two unit rows may be from the true one, in whatever order it is summed.

    n u / (1 - n u) times the two lengths, with u = 2**-24 and n terms (Higham, Accuracy and Stability of Numerical
    Algorithms, 3.1). Twice that, and a few terms more, covers the denominator, lengths that are 1 only to 1e-3 (rows
    of float16) and one rounding of each factor. A sum of n positive numbers is off by this share of itself at most.
    """
    return 2 * (terms + 16) * _ROUNDING


def in_blocks(score: Callable[[ndarray, torch.dtype], Tensor], step: int) -> Score:
    """The rule that scores any number of rows, from one that scores a block of at most `step`."""

    def scores(rows: ndarray, dtype: torch.dtype) -> ndarray:
        parts = [score(part, dtype).double().cpu().numpy() for part in _parts(rows, step)]
        return np.concatenate([np.empty(0), *parts])

    return scores


def against(
    table: Table, rows: Int64[ndarray, "rows"], columns: Int64[ndarray, "columns"], dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A block of rows against all columns, a block at a time: similarities, same cluster, and which columns."""
    left = table.read(rows, dtype)
    own = torch.from_numpy(table.labels[rows]).to(table.place)
    for part in _parts(columns, table.step):
        others, theirs = (torch.from_numpy(ids).to(table.place) for ids in (part, table.labels[part]))
        yield left @ table.read(part, dtype).T, own[:, None] == theirs, others


def _parts(rows: ndarray, step: int) -> Iterator[ndarray]:
    """The rows, `step` at a time."""
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _reader(features: Feature[ndarray, "images dim"], place: str) -> Read:
    """What gives some rows as a tensor on the device, in the precision asked for."""
    rows = as_tensor(features)
    if place == "cuda" and 2 * features.nbytes < free_on_gpu():
        rows = rows.to(place)
    return lambda ids, dtype: rows.index_select(0, torch.from_numpy(ids).to(rows.device)).to(place).to(dtype)


@contextmanager
def steady(threads: int) -> Iterator[None]:
    """Torch works with this many threads (0: its own number) and multiplies float32 as float32, as the bound wants.

    Both are as before afterwards. TF32 and bfloat16 round the factors, for which the bound has no room.
    """
    backends: Any = torch.backends
    products = backends.cuda.matmul, backends.mkldnn.matmul
    before = torch.get_num_threads(), [product.fp32_precision for product in products]
    torch.set_num_threads(threads or before[0])
    for product in products:
        product.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        for product, precision in zip(products, before[1], strict=True):
            product.fp32_precision = precision

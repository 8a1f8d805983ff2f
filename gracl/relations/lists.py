"""Rows of different length as three flat arrays: how the relations are held between their steps."""

import typing
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray

from gracl.kernels import compiled


class Lists(NamedTuple):
    """Rows of different length: row i is `ids[starts[i]:starts[i + 1]]`, with a value beside each id."""

    starts: Int64[ndarray, "rows_and_one"]
    ids: Int32[ndarray, "entries"]
    values: Float32[ndarray, "entries"]


class Inverted(NamedTuple):
    """For every id the rows that hold it, ascending: `holders[heads[id]:heads[id + 1]]`, with the weight of each.

    `places` stands beside the entries of the lists that were inverted: how far down its id's holders an entry went.
    """

    heads: Int64[ndarray, "rows_and_one"]
    holders: Int32[ndarray, "entries"]
    weights: Float32[ndarray, "entries"]
    places: Int32[ndarray, "entries"]


def join(parts: list[tuple[ndarray, ndarray, ndarray]]) -> Lists:
    """The lists of all runs of rows as one."""
    if not parts:
        return Lists(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    lengths, ids, values = zip(*parts, strict=True)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    return Lists(starts, np.concatenate(ids), np.concatenate(values))


@compiled
@typing.no_type_check
def grown(ids, values, needed):
    """Room for at least `needed` entries, twice as many as there was."""
    if needed <= ids.size:
        return ids, values
    size = max(needed, 2 * ids.size)
    more_ids, more_values = np.empty(size, np.int32), np.empty(size, np.float32)
    more_ids[: ids.size], more_values[: values.size] = ids, values
    return more_ids, more_values


def invert(lists: Lists) -> Inverted:
    """Who holds what."""
    return Inverted(*_invert(*lists))


@compiled
@typing.no_type_check
def _invert(starts, ids, values):
    rows = starts.size - 1
    heads = np.zeros(rows + 1, np.int64)
    for p in range(ids.size):
        heads[ids[p] + 1] += 1
    for i in range(rows):
        heads[i + 1] += heads[i]
    free = heads[:-1].copy()
    holders, weights = np.empty(ids.size, np.int32), np.empty(ids.size, np.float32)
    places = np.empty(ids.size, np.int32)
    for row in range(rows):
        for p in range(starts[row], starts[row + 1]):
            q = free[ids[p]]
            free[ids[p]] = q + 1
            holders[q], weights[q], places[p] = row, values[p], q - heads[ids[p]]
    return heads, holders, weights, places


@compiled
@typing.no_type_check
def mirror(starts, ids, values):
    """The whole symmetric matrix from its upper half, ids ascending in every row."""
    rows = starts.size - 1
    heads = np.zeros(rows + 1, np.int64)
    lower = np.zeros(rows, np.int64)
    for row in range(rows):
        for p in range(starts[row], starts[row + 1]):
            heads[row + 1] += 1
            if ids[p] != row:
                heads[ids[p] + 1] += 1
                lower[ids[p]] += 1
    for i in range(rows):
        heads[i + 1] += heads[i]
    out_ids, out_values = np.empty(heads[rows], np.int32), np.empty(heads[rows], np.float32)
    free = heads[:-1].copy()
    # Rows in order write themselves into the lists of later rows: those halves come out ascending.
    for row in range(rows):
        for p in range(starts[row], starts[row + 1]):
            if ids[p] != row:
                out_ids[free[ids[p]]], out_values[free[ids[p]]] = row, values[p]
                free[ids[p]] += 1
    # The same once more, read from the halves just written: the other halves come out ascending, too.
    for row in range(rows):
        out_ids[free[row]], out_values[free[row]] = row, 0.0
        free[row] += 1
    for row in range(rows):
        for p in range(heads[row], heads[row] + lower[row]):
            out_ids[free[out_ids[p]]], out_values[free[out_ids[p]]] = row, out_values[p]
            free[out_ids[p]] += 1
    return heads, out_ids, out_values

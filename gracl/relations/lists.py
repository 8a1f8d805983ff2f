"""Rows of different length as three flat arrays: how the relations are held between their steps."""

import typing
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray

from gracl.kernels import compiled, over_rows

# How far the squared length of a unit row may be from 1: rows of float16, and of products that were summed in float32.
LENGTH = 3e-3


class Lists(NamedTuple):
    """Rows of different length: row i is `ids[starts[i]:starts[i + 1]]`, with a value beside each id.

    `names[i]` is the image that row i (and id i) stands for. Rows may stand in another order than images do, so that
    rows that share members lie near each other in memory (`nearby`; docs/decisions/0013-rows-near-their-neighbours).
    """

    starts: Int64[ndarray, "rows_and_one"]
    ids: Int32[ndarray, "entries"]
    values: Float32[ndarray, "entries"]
    names: Int64[ndarray, "rows"]


class Inverted(NamedTuple):
    """For every id the rows that hold it, ascending: `holders[heads[id]:heads[id + 1]]`, with the weight of each.

    `places` stands beside the entries of the lists that were inverted: how far down its id's holders an entry went.
    """

    heads: Int64[ndarray, "rows_and_one"]
    holders: Int32[ndarray, "entries"]
    weights: Float32[ndarray, "entries"]
    places: Int32[ndarray, "entries"]


def join(parts: list[tuple[ndarray, ndarray, ndarray]], names: Int64[ndarray, "rows"] | None = None) -> Lists:
    """The lists of all runs of rows (lengths, ids, values) as one; without names each row stands for itself."""
    if not parts:
        return Lists(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int64))
    lengths, ids, values = zip(*parts, strict=True)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    names = np.arange(len(starts) - 1) if names is None else names
    return Lists(starts, np.concatenate(ids), np.concatenate(values), names)


def nearby(table: Int32[ndarray, "rows k"]) -> Int64[ndarray, "rows"]:
    """All rows in an order in which most rows stand near their nearest ones: by the lowest row a few steps away.

    Args:
        table: the nearest rows of every row; a few of them are enough. -1 is an empty place.
    """
    return np.argsort(_lowest_nearby(table), kind="stable")


@compiled
@typing.no_type_check
def _lowest_nearby(table):
    """For every row the lowest row met in three rounds, each asking the nearest rows what they have met."""
    lowest = np.arange(table.shape[0])
    for _ in range(3):
        for row in range(table.shape[0]):
            for place in range(table.shape[1]):
                if table[row, place] >= 0:
                    lowest[row] = min(lowest[row], lowest[table[row, place]])
    return lowest


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
    return Inverted(*_invert(lists.starts, lists.ids, lists.values))


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
def meet(starts, ids, values, heads, holders, weights, wanted, row, shared, met):
    """Adds up what `row` shares with every other wanted row, and notes whom it met; how many these are. For kernels.

    `shared`, float64 [rows], has to be 0 everywhere; it is the caller who clears those met.
    """
    count = 0
    for p in range(starts[row], starts[row + 1]):
        for q in range(heads[ids[p]], heads[ids[p] + 1]):
            other = holders[q]
            if not wanted[other] or other == row:
                continue
            if shared[other] == 0.0:
                met[count] = other
                count += 1
            shared[other] += min(values[p], weights[q])
    return count


@compiled
@typing.no_type_check
def soften(values, begin, end):
    """Cosines begin..end-1 become weights: softmax of minus the squared distance 2 - 2s. In place, for kernels."""
    total = 0.0
    for p in range(begin, end):
        # Held to the range of a cosine, so that no weight can vanish.
        values[p] = np.exp(2.0 * max(-1.0, min(1.0, np.float64(values[p]))) - 2.0)
        total += values[p]
    for p in range(begin, end):
        values[p] = values[p] / total


def averaged(lists: Lists, leaders: Int32[ndarray, "rows k"], *, threads: int = 0) -> Lists:
    """Query expansion: each row becomes the mean of the lists of its leaders (of those there are; -1 is none)."""
    entries = lists.starts, lists.ids, lists.values
    rows = len(leaders)
    parts = over_rows(lambda start, stop: _average(leaders, *entries, start, stop), rows, threads=threads)
    return join(parts, lists.names)


@compiled
@typing.no_type_check
def _average(leaders, starts, ids, values, start, stop):
    lengths = np.empty(stop - start, np.int64)
    out_ids, out_values = np.empty(64 * (stop - start), np.int32), np.empty(64 * (stop - start), np.float32)
    sums = np.zeros(starts.size - 1, np.float64)
    end = 0
    for row in range(start, stop):
        begin, count = end, 0
        for place in range(leaders.shape[1]):
            j = leaders[row, place]
            if j < 0:
                continue
            count += 1
            out_ids, out_values = grown(out_ids, out_values, end + starts[j + 1] - starts[j])
            for p in range(starts[j], starts[j + 1]):
                if sums[ids[p]] == 0.0:
                    out_ids[end] = ids[p]
                    end += 1
                sums[ids[p]] += values[p]
        for p in range(begin, end):
            out_values[p] = sums[out_ids[p]] / count
            sums[out_ids[p]] = 0.0
        lengths[row - start] = end - begin
    return lengths, out_ids[:end].copy(), out_values[:end].copy()


def mirror(
    half: Lists,
) -> tuple[Int64[ndarray, "images_and_one"], Int32[ndarray, "entries"], Float32[ndarray, "entries"]]:
    """The symmetric matrix of images (starts, ids, values) from lists that hold each pair once, at either row.

    Ids ascend in every row.
    """
    # Written row by row, then read again in order of index: so the second writing is in order of index everywhere.
    starts, ids, values = _transposed(*_both_ways(half.starts, half.ids, half.values, half.names))
    return starts, ids, values


@compiled
@typing.no_type_check
def _both_ways(starts, ids, values, names):
    """Every pair at both its images, in no order."""
    rows = starts.size - 1
    heads = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        for p in range(starts[row], starts[row + 1]):
            heads[names[row] + 1] += 1
            if ids[p] != row:
                heads[names[ids[p]] + 1] += 1
    for i in range(rows):
        heads[i + 1] += heads[i]
    out_ids, out_values = np.empty(heads[rows], np.int32), np.empty(heads[rows], np.float32)
    free = heads[:-1].copy()
    for row in range(rows):
        one = names[row]
        for p in range(starts[row], starts[row + 1]):
            other = names[ids[p]]
            out_ids[free[one]], out_values[free[one]] = other, values[p]
            free[one] += 1
            if other != one:
                out_ids[free[other]], out_values[free[other]] = one, values[p]
                free[other] += 1
    return heads, out_ids, out_values


@compiled
@typing.no_type_check
def _transposed(heads, ids, values):
    """The transpose of a matrix whose rows hold as many entries as its columns."""
    out_ids, out_values = np.empty(ids.size, np.int32), np.empty(ids.size, np.float32)
    free = heads[:-1].copy()
    for row in range(heads.size - 1):
        for p in range(heads[row], heads[row + 1]):
            place = free[ids[p]]
            out_ids[place], out_values[place] = row, values[p]
            free[ids[p]] = place + 1
    return heads, out_ids, out_values

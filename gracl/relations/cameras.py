"""Neighbours and weights that know of cameras: the CA-Jaccard distance (Chen et al., CVPR 2024), on lists only.

Two pictures of one camera are alike for the camera's sake, so the nearest rows of a row are mostly of its own camera.
Here a row has two lists instead of one: its nearest rows of the same camera, and its nearest rows of the others.

One difference from the authors' code (chenyiyuu/CA-Jaccard, caj_rerank.py): there the wrong camera is pushed away by
999 and not shut out, so rows of the wrong camera fill a list that its camera is too small for. Here the list is short.
"""

import typing
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray

from gracl.errors import ConfigError, GraclError, expected
from gracl.kernels import Progress, compiled, over_rows
from gracl.relations.lists import LENGTH, Lists, averaged, join, soften
from gracl.similarity import nearest, top_k
from gracl.types import EMPTY, Feature


@dataclass(frozen=True)
class CameraNeighbors:
    """The nearest rows of every row, once among its own camera (itself first) and once among the others.

    Similarities fall along a list, equal ones in order of index. Where a camera has too few rows the rest of the list
    is `EMPTY` (-1), with similarity minus infinity.
    """

    intra: Int32[ndarray, "rows intra"]
    intra_similarities: Float32[ndarray, "rows intra"]
    inter: Int32[ndarray, "rows inter"]
    inter_similarities: Float32[ndarray, "rows inter"]


def camera_neighbors(
    features: Feature[ndarray, "images dim"],
    cameras: Int64[ndarray, "images"],
    *,
    k_intra: int,
    k_inter: int,
    progress: Progress | None = None,
    **options: Any,
) -> CameraNeighbors:
    """Both lists of every row: for each camera one search among its own rows, and one among all others.

    Beside the tables it holds, one camera at a time, a copy of the camera's rows and one of all other rows.

    Args:
        features: unit rows.
        cameras: who took each image; any numbers from 0 up. With one camera only, all inter lists are empty.
        k_intra: length of the lists of the same camera, the row itself counted, >= 1.
        k_inter: length of the lists of other cameras, >= 1.
        progress: called with (rows done, rows) as the longer of the two searches goes on.
        options: the other keywords of `similarity.nearest` and `top_k`, for every search.

    Raises:
        ConfigError: options out of range.
        GraclError: an image whose camera is unknown; features that are not finite.
    """
    _check_cameras(features, cameras, k_intra, k_inter)
    rows, done = len(features), 0
    intra, inter = _empty(rows, k_intra), _empty(rows, k_inter)
    for camera in np.unique(cameras):
        own, others = np.flatnonzero(cameras == camera), np.flatnonzero(cameras != camera)
        part, tell = features[own], _shifted(progress, done, rows)
        found = nearest(part, k_intra, progress=None if len(others) else tell, **options)
        _enter(intra, own, own, found.indices, found.similarities)
        if len(others):
            _enter(inter, own, others, *top_k(part, features[others], k_inter, progress=tell, **options))
        done += len(own)
    return CameraNeighbors(*intra, *inter)


def camera_weights(
    neighbors: CameraNeighbors,
    *,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 2,
    k2_inter: int = 4,
    threads: int = 0,
) -> Lists:
    """Weights of the camera-aware k-reciprocal sets, averaged over the nearest rows of both lists.

    j is in the set of i when each is among the other's first k1_intra + 1 of its camera, or each among the other's
    first k1_inter + 1 of other cameras; sets are not expanded. Weights are the softmax of minus the squared distance.
    Then each row becomes the mean of those of its first k2_intra of its camera (itself the first) and k2_inter of
    others, or of as many as there are. (The authors' code defaults to 3 and 3 and takes them in the first epoch; their
    commands say 2 and 4, which are ours throughout.)

    Args:
        neighbors: from `camera_neighbors`, with k_intra > k1_intra and k_inter > k1_inter.
        k1_intra, k1_inter: neighbours of the sets, >= 1. As in the authors' code both lists are cut at k1 + 1; the row
            itself takes a place in the first of them only.
        k2_intra: rows of the same camera that are averaged, itself counted, 1..k1_intra + 1.
        k2_inter: rows of other cameras that are averaged, 0..k1_inter + 1.
        threads: 0 takes torch's number. The result does not depend on it.

    Returns:
        For each row the ids it shares weight with, in no order, each once, and their weights, > 0, together 1.

    Raises:
        ConfigError: options out of range.
        GraclError: tables that are too short, or not of `camera_neighbors`.
    """
    check_list_lengths(k1_intra, k1_inter, k2_intra, k2_inter)
    _check_tables(neighbors, k1_intra, k1_inter)
    intra, near = map(np.ascontiguousarray, (neighbors.intra, neighbors.intra_similarities))
    inter, far = map(np.ascontiguousarray, (neighbors.inter, neighbors.inter_similarities))
    rows, lengths = len(intra), (k1_intra + 1, k1_inter + 1)
    weights = join(
        over_rows(lambda start, stop: _weigh(intra, near, inter, far, *lengths, start, stop), rows, threads=threads)
    )
    if k2_intra + k2_inter == 1:
        return weights
    leaders = np.concatenate([intra[:, :k2_intra], inter[:, :k2_inter]], axis=1)
    return averaged(weights, leaders, threads=threads)


def _check_cameras(
    features: Feature[ndarray, "images dim"], cameras: Int64[ndarray, "images"], k_intra: int, k_inter: int
) -> None:
    """Refuses empty lists, and images whose camera nobody knows."""
    if k_intra < 1 or k_inter < 1:
        came = f"{k_intra} and {k_inter}"
        raise ConfigError(expected("k_intra >= 1 and k_inter >= 1", came, "take k1 + 1: the usual are 6 and 21"))
    if len(cameras) != len(features):
        what = f"a camera for each of {len(features)} images"
        raise GraclError(expected(what, f"{len(cameras)} cameras", "take both of one split"))
    unknown = np.flatnonzero(cameras < 0)
    if len(unknown):
        raise GraclError(
            expected(
                "a known camera for every image",
                f"{len(unknown)} images without, among them {unknown[:5].tolist()}",
                "ingest with a layout that knows cameras, or set relations.camera_aware=false",
            )
        )


def check_list_lengths(k1_intra: int, k1_inter: int, k2_intra: int, k2_inter: int) -> None:
    """Refuses settings before any work.

    Raises:
        ConfigError: one of them is out of range.
    """
    if min(k1_intra, k1_inter) < 1 or not 1 <= k2_intra <= k1_intra + 1 or not 0 <= k2_inter <= k1_inter + 1:
        raise ConfigError(
            expected(
                "k1_intra, k1_inter >= 1, 1 <= k2_intra <= k1_intra + 1 and 0 <= k2_inter <= k1_inter + 1",
                f"k1_intra={k1_intra}, k1_inter={k1_inter}, k2_intra={k2_intra}, k2_inter={k2_inter}",
                "the usual values are 5, 20, 2 and 4",
            )
        )


def _check_tables(neighbors: CameraNeighbors, k1_intra: int, k1_inter: int) -> None:
    """Refuses lists that are cut too short, and what did not come from `camera_neighbors`."""
    widths, rows = (neighbors.intra.shape[1], neighbors.inter.shape[1]), len(neighbors.intra)
    if widths[0] <= k1_intra or widths[1] <= k1_inter:
        raise GraclError(
            expected(
                f"lists of {k1_intra + 1} and {k1_inter + 1} rows",
                f"{widths[0]} and {widths[1]}",
                "make them with camera_neighbors, k_intra=k1_intra + 1 and k_inter=k1_inter + 1",
            )
        )
    if not rows:
        return
    tables, first = (neighbors.intra, neighbors.inter), neighbors.intra_similarities[:, 0]
    inside = all(table.min() >= EMPTY and table.max() < rows for table in tables)
    if not inside or (neighbors.intra[:, 0] != np.arange(rows)).any():
        do = "use camera_neighbors"
        raise GraclError(expected(f"rows 0..{rows - 1}, each first in the list of its camera", "something else", do))
    if not (np.abs(first - 1) <= LENGTH).all():
        raise GraclError(expected("unit rows", "rows that are not", "divide each row by its length"))


def _empty(rows: int, k: int) -> tuple[Int32[ndarray, "rows k"], Float32[ndarray, "rows k"]]:
    """A table without a neighbour in it."""
    return np.full((rows, k), EMPTY, np.int32), np.full((rows, k), -np.inf, np.float32)


def _enter(
    table: tuple[Int32[ndarray, "rows k"], Float32[ndarray, "rows k"]],
    own: Int64[ndarray, "own"],
    gallery: Int64[ndarray, "gallery"],
    places: Int32[ndarray, "own found"],
    similarities: Float32[ndarray, "own found"],
) -> None:
    """Writes the lists of the rows `own`, found as places in `gallery`; what is left of them stays empty."""
    found = places.shape[1]
    table[0][own, :found] = np.where(places < 0, EMPTY, gallery[places])
    table[1][own, :found] = similarities


def _shifted(progress: Progress | None, before: int, rows: int) -> Progress | None:
    """What tells of a part of the rows as if it told of all."""
    return (lambda done, _: progress(before + done, rows)) if progress else None


@compiled
@typing.no_type_check
def _reciprocal(table, similarities, row, k, ids, values, end):
    """Enters those of a row's first k that have it among their own first k; returns where the list ends then."""
    for place in range(k):
        other = table[row, place]
        if other < 0:
            continue
        for back in range(k):
            if table[other, back] == row:
                ids[end], values[end] = other, similarities[row, place]
                end += 1
                break
    return end


@compiled
@typing.no_type_check
def _weigh(intra, near, inter, far, k_intra, k_inter, start, stop):
    """Camera-aware k-reciprocal sets with softmax weights of minus the squared distance 2 - 2s, as lists."""
    lengths = np.empty(stop - start, np.int64)
    most = (stop - start) * (k_intra + k_inter)
    ids, values = np.empty(most, np.int32), np.empty(most, np.float32)
    end = 0
    for row in range(start, stop):
        begin = end
        # No row is in both lists, so none is entered twice.
        end = _reciprocal(intra, near, row, k_intra, ids, values, end)
        end = _reciprocal(inter, far, row, k_inter, ids, values, end)
        soften(values, begin, end)
        lengths[row - start] = end - begin
    return lengths, ids[:end].copy(), values[:end].copy()

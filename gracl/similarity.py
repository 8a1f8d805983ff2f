"""Who is near whom: exact top-k by inner product, in blocks, never N x N.

A backend (faiss, or torch on CPU or GPU) proposes a few more candidates than asked for, and a compiled kernel scores
them again in double precision. So the table does not depend on backend, block size, threads or the rounding of the
matrix product: equal rows are exactly equal, and stand in order of index.
"""

import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray
from torch import Tensor

from gracl.errors import ConfigError, GraclError, expected
from gracl.kernels import Progress, compiled, dot, over_rows, thread_count
from gracl.types import Neighbors

Backend = Literal["auto", "faiss", "torch"]
Device = Literal["auto", "cpu", "cuda"]
Search = Callable[[ndarray], tuple[ndarray, ndarray]]
Product = Callable[[ndarray], Tensor]

# Candidates beyond k. They make it rare that the k-th place is disputed (then the whole row is looked through).
_SPARE = 8
# Rows with more equals than this at the k-th place are not scored again one by one.
_MOST_EQUALS = 1024
# Similarities held at a time: 1 GiB of float32, whatever `block_rows` says.
_MOST_VALUES = 2**28
_EPSILON = 1e-7


def nearest(
    features: Float32[ndarray, "rows dim"],
    k: int,
    *,
    backend: Backend = "auto",
    block_rows: int = 4096,
    threads: int = 0,
    device: Device = "auto",
    progress: Progress | None = None,
) -> Neighbors:
    """The k nearest rows of every row, itself first (ray.md section 8; method.md 4.7).

    For unit rows the order is that of Euclidean distance. Row i starts with i, also among copies; the others fall in
    similarity, equal ones in order of index.

    Args:
        features: unit rows.
        k: length of a list, the row itself counted, >= 1; more than there are rows gives all rows.
        backend: "auto" is torch, on the GPU where there is one; "faiss" is its Flat search on the CPU.
        block_rows: rows searched at a time, at most (fewer where the block would pass 1 GiB).
        threads: CPU threads; 0 leaves torch's and faiss's numbers as they are.
        device: "auto" is the GPU where torch finds one. faiss is used on the CPU only.
        progress: called with (rows done, rows) after every block.

    Raises:
        ConfigError: options out of range, or a backend or device that is not there.
        GraclError: features that are not finite.
    """
    own = np.arange(len(features), dtype=np.int64)
    indices, similarities = _top_k(features, features, k, own, backend, block_rows, threads, device, progress)
    return Neighbors(indices=indices, similarities=similarities)


def top_k(
    query: Float32[ndarray, "queries dim"],
    gallery: Float32[ndarray, "gallery dim"],
    k: int,
    *,
    backend: Backend = "auto",
    block_rows: int = 4096,
    threads: int = 0,
    device: Device = "auto",
    progress: Progress | None = None,
) -> tuple[Int32[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
    """The k most similar gallery rows of every query, and how similar: `nearest` between two sets.

    Meant for k much smaller than the gallery; more than there are rows gives all rows. Options and errors as
    `nearest`.
    """
    nobody = np.full(len(query), -1, np.int64)
    return _top_k(query, gallery, k, nobody, backend, block_rows, threads, device, progress)


def _top_k(
    query: Float32[ndarray, "queries dim"],
    gallery: Float32[ndarray, "gallery dim"],
    k: int,
    own: Int64[ndarray, "queries"],
    backend: Backend,
    block_rows: int,
    threads: int,
    device: Device,
    progress: Progress | None,
) -> tuple[Int32[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
    """Proposes, scores again and settles, block by block; `own` is the gallery row to put first, or -1."""
    if k < 1 or block_rows < 1:
        raise ConfigError(expected("k >= 1 and block_rows >= 1", f"{k} and {block_rows}", "raise them to 1 or more"))
    thread_count(threads)  # refuses a negative number before work starts
    engine, place = _resolve(backend, device)
    k = min(k, len(gallery))
    indices = np.empty((len(query), k), np.int32)
    similarities = np.empty((len(query), k), np.float32)
    if not k:
        return indices, similarities
    _check_finite(query, gallery)
    query, gallery = np.ascontiguousarray(query), np.ascontiguousarray(gallery)
    step = max(1, min(block_rows, _MOST_VALUES // len(gallery)))
    with _threads(threads, engine):
        product = _product(gallery, place)
        search = _search(gallery, min(k + _SPARE, len(gallery)), engine, product)
        for start in range(0, len(query), step):
            part = slice(start, min(start + step, len(query)))
            found = indices[part], similarities[part]
            _fill(query[part], gallery, own[part], search, product, found, threads)
            if progress:
                progress(part.stop, len(query))
    return indices, similarities


def _fill(
    query: Float32[ndarray, "rows dim"],
    gallery: Float32[ndarray, "gallery dim"],
    own: Int64[ndarray, "rows"],
    search: Search,
    product: Product,
    found: tuple[Int32[ndarray, "rows k"], Float32[ndarray, "rows k"]],
    threads: int,
) -> None:
    """Writes the table of one block of rows into `found`."""
    indices, similarities = found
    raw, candidates = search(query)
    errors = over_rows(
        lambda start, stop: _score(query, gallery, raw, candidates, own, start, stop, indices, similarities),
        len(query),
        threads=threads,
    )
    if candidates.shape[1] == len(gallery):
        return
    # How far the product may be off is measured on the candidates, so half precision or TF32 need no other rule. A
    # row is disputed when something that was not proposed could be as near as its k-th.
    margin = 2 * max(errors) + _EPSILON
    disputed = np.flatnonzero(similarities[:, -1] <= raw.min(axis=1) + margin)
    step = max(1, _MOST_VALUES // len(gallery))
    for start in range(0, len(disputed), step):
        rows = disputed[start : start + step]
        for row, scores in zip(rows, product(query[rows]).cpu().numpy(), strict=True):
            near = _near(scores, float(similarities[row, -1]), indices.shape[1], margin)[None]
            one = slice(row, row + 1)
            _score(query[one], gallery, scores[near], near, own[one], 0, 1, indices[one], similarities[one])


def _near(scores: Float32[ndarray, "gallery"], last: float, k: int, margin: float) -> Int64[ndarray, "near"]:
    """Every gallery row that may belong to the k nearest, given that k rows at or above `last` are known.

    Where thousands are equal within the margin (copies; a network that has collapsed), those that surely belong and
    the lowest indices of the rest.
    """
    near = np.flatnonzero(scores >= last - margin)
    if len(near) <= k + _MOST_EQUALS:
        return near
    floor = np.partition(scores, len(scores) - k)[len(scores) - k]
    sure = np.flatnonzero(scores > floor + margin)
    equal = np.flatnonzero(np.abs(scores - floor) <= margin)
    return np.concatenate([sure, equal[: k - len(sure)]])


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
            indices[row, c], similarities[row, c] = ids[c], values[c]
    return error


def _search(gallery: Float32[ndarray, "gallery dim"], count: int, backend: str, product: Product) -> Search:
    """What proposes `count` candidates for a block of queries: their raw similarities and their indices."""
    if backend == "faiss":
        import faiss

        return lambda block: faiss.knn(block, gallery, count, metric=faiss.METRIC_INNER_PRODUCT)

    def by_torch(block: ndarray) -> tuple[ndarray, ndarray]:
        top = product(block).topk(count, dim=1)
        return top.values.cpu().numpy(), top.indices.cpu().numpy()

    return by_torch


def _product(gallery: Float32[ndarray, "gallery dim"], place: str) -> Product:
    """What multiplies a block of queries with the whole gallery, on the device."""
    columns = _tensor(gallery).to(place).T
    return lambda block: _tensor(block).to(place) @ columns


def _tensor(array: Float32[ndarray, "rows dim"]) -> Tensor:
    """The array as a tensor on the same memory."""
    with warnings.catch_warnings():
        # Arrays out of Ray's object store are read-only; torch warns, but this tensor is only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _resolve(backend: str, device: str) -> tuple[str, str]:
    """The backend and the torch device that are meant, or a refusal."""
    if backend not in ("auto", "faiss", "torch") or device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            expected("backend auto, faiss or torch and device auto, cpu or cuda", f"{backend} and {device}", "choose")
        )
    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise ConfigError(expected("a CUDA device", "none that torch can see", "use device=auto or device=cpu"))
    if backend == "faiss" and device == "cuda":
        raise ConfigError(expected("backend=torch on a GPU", "backend=faiss", "use backend=torch, or device=cpu"))
    if backend == "faiss" and find_spec("faiss") is None:
        raise ConfigError(expected("faiss", "no such package", "install gracl[cpu], or use backend=torch"))
    place = "cuda" if gpu and device != "cpu" and backend != "faiss" else "cpu"
    # Measured here: faiss-cpu 1.15 needs 3 to 5 times the time of torch's product for the same table (docs/results.md).
    return "torch" if backend == "auto" else backend, place


@contextmanager
def _threads(threads: int, backend: str) -> Iterator[None]:
    """Torch and faiss work with this many threads inside (0: with their own), and with as many as before after."""
    if not threads:
        yield
        return
    faiss: Any = None
    if backend == "faiss":
        import faiss
    before = torch.get_num_threads(), faiss.omp_get_max_threads() if faiss else 0
    torch.set_num_threads(threads)
    if faiss:
        faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        if faiss:
            faiss.omp_set_num_threads(before[1])


def _check_finite(*tables: Float32[ndarray, "_ dim"]) -> None:
    """Refuses NaN and infinity, which would make every order meaningless."""
    for table in tables:
        bad = np.flatnonzero(~np.isfinite(np.einsum("nd,nd->n", table, table)))
        if len(bad):
            raise GraclError(
                expected("finite features", f"NaN or infinity in {len(bad)} rows {bad[:5].tolist()}", "check the loss")
            )

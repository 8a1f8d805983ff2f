"""`nearest` and `top_k`: which engine proposes, and the way of a block of queries through it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from numpy import ndarray

from gracl.errors import ConfigError, NonFiniteValue, expected
from gracl.kernels import Progress, squared_lengths
from gracl.randomness import rng
from gracl.similarity.approximate import Flat, open_index
from gracl.similarity.options import Options, resolve
from gracl.similarity.products import Product
from gracl.similarity.settling import Block, disputed, look_through, settle, settle_on_device
from gracl.types import EMPTY, Feature, Neighbors

# Candidates beyond k. They make it rare that the k-th place is disputed (then the whole row is looked through); a
# half product needs more of them, because it cannot tell apart what is nearer than its rounding.
_SPARE, _SPARE_HALF = 8, 34
# Rows whose true neighbours are looked up to see what an approximate search has found.
_RECALL_ROWS = 1000


def nearest(
    features: Feature[ndarray, "rows dim"],
    k: int,
    *,
    rows: tuple[int, int] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Neighbors:
    """The k nearest rows of every row, itself first (ray.md section 8; method.md 4.7).

    For unit rows the order is that of Euclidean distance. Row i starts with i, also among copies; the others fall in
    similarity, equal ones in order of index.

    Args:
        features: unit rows, float32 or float16, in memory or memory-mapped.
        k: length of a list, the row itself counted, >= 1; more than there are rows gives all rows.
        rows: make the lists of rows `start` to `stop - 1` only; they are those of the whole table.
        progress: called with (rows done, rows) after every block.
        options: see `Options`:
            search: "exact", or "approximate" (then the table's `recall` says what share of it is true);
            index: of the approximate search: "ivf" (k-means cells, of which the nearest are looked into) or "hnsw"
                (faiss's graph, on the CPU);
            effort: cells looked into, or the graph's efSearch; 0 chooses;
            backend: "auto" is torch; "faiss" is its exact Flat search, on the CPU or with faiss-gpu on the GPU;
            block_rows: rows searched at a time, at most;
            threads: CPU threads; 0 leaves torch's and faiss's numbers as they are;
            device: "auto" is the GPU where torch finds one.

    Raises:
        ConfigError: options out of range, or a backend, device or package that is not there.
        GraclError: features that are not finite.
    """
    return Searcher(features, **options).nearest(k, rows=rows, progress=progress)


def top_k(
    query: Feature[ndarray, "queries dim"],
    gallery: Feature[ndarray, "gallery dim"],
    k: int,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Int32[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
    """The k most similar gallery rows of every query, and how similar: `nearest` between two sets.

    Meant for k much smaller than the gallery; more than there are rows gives all rows. Options and errors as
    `nearest`, but for an approximate search, which is refused: nobody would hear of its recall.
    """
    if options.get("search", "exact") != "exact":
        raise ConfigError(expected("search=exact between two sets", options["search"], "use nearest, or leave it out"))
    return Searcher(gallery, **options).top_k(query, k, progress)


def shares(rows: int, parts: int) -> list[tuple[int, int]]:
    """`parts` runs of rows, as equal as can be, for `nearest(rows=...)`; fewer where there are fewer rows."""
    parts = max(1, min(parts, rows))
    edges = [rows * part // parts for part in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def merged(parts: Sequence[Neighbors]) -> Neighbors:
    """The table of all rows from the tables of their shares, in order."""
    counts = [len(part.indices) for part in parts]
    return Neighbors(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.similarities for part in parts]),
        recall=float(np.average([part.recall for part in parts], weights=counts)) if sum(counts) else 1.0,
    )


class Searcher:
    """A gallery made ready for any number of questions: uploaded or indexed once. It lives as long as the epoch.

    Args:
        gallery: unit rows.
        options: the fields of `Options`.

    Raises:
        ConfigError, GraclError: as `nearest`.
    """

    def __init__(self, gallery: Feature[ndarray, "gallery dim"], **options: Any) -> None:
        self.options = chosen = Options(**options)
        self._backend, self._place = resolve(chosen)
        self._uses_faiss = self._backend == "faiss" or chosen.search == "approximate"
        _check_finite(gallery, chosen.threads)
        self._gallery = np.ascontiguousarray(gallery)
        with _threads(chosen.threads, self._uses_faiss):
            faiss = self._backend == "faiss"
            self._flat = Flat(self._gallery, self._place) if faiss and chosen.search == "exact" else None
            self._product = Product(
                self._gallery,
                self._place,
                half=self._place == "cuda" and not faiss,
                resident=False if faiss else None,  # only disputed rows would read it
            )
            self._index = (
                open_index(self._product, self._gallery, chosen.index, chosen.effort)
                if chosen.search == "approximate" and len(gallery)
                else None
            )

    def nearest(self, k: int, *, rows: tuple[int, int] | None = None, progress: Progress | None = None) -> Neighbors:
        """The k nearest rows of the gallery's own rows (those of `rows`); see the function `nearest`."""
        start, stop = rows or (0, len(self._gallery))
        found = self._table(self._gallery[start:stop], np.arange(start, stop), k, progress)
        return Neighbors(*found, recall=self._recall(found[0], start, k) if self._index else 1.0)

    def top_k(
        self, query: Feature[ndarray, "queries dim"], k: int, progress: Progress | None = None
    ) -> tuple[Int32[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """The k best gallery rows of each query; see the function `top_k`."""
        _check_finite(query, self.options.threads)
        return self._table(query, np.full(len(query), EMPTY, np.int64), k, progress)

    def _table(
        self,
        query: Feature[ndarray, "queries dim"],
        own: Int64[ndarray, "queries"],
        k: int,
        progress: Progress | None = None,
    ) -> tuple[Int32[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """The lists of queries that are known to be finite; `own` is the gallery row to put first, or -1."""
        if k < 1:
            raise ConfigError(expected("k >= 1", k, "ask for the row itself at least"))
        k = min(k, len(self._gallery))
        indices, similarities = np.empty((len(query), k), np.int32), np.empty((len(query), k), np.float32)
        if not k:
            return indices, similarities
        with _threads(self.options.threads, self._uses_faiss):
            for start in range(0, len(query), self.options.block_rows):
                part = slice(start, min(start + self.options.block_rows, len(query)))
                self._fill(Block(query[part], self._gallery, own[part], indices[part], similarities[part]))
                if progress:
                    progress(part.stop, len(query))
        return indices, similarities

    def _fill(self, block: Block) -> None:
        k, rows = block.indices.shape[1], len(block.gallery)
        if self._index:
            raw, candidates = self._index.propose(block.query, min(k + _SPARE, rows))
            settle(block, raw, candidates, self.options.threads)
            short = np.flatnonzero(block.indices[:, -1] == EMPTY)
            look_through(block, short, self._product)
            return
        spare = _SPARE_HALF if self._product.half else _SPARE
        lowest, error = self._propose(block, min(k + spare, rows))
        if k + spare < rows:
            look_through(block, disputed(block, lowest, max(self._product.error, 2 * error)), self._product)

    def _propose(self, block: Block, count: int) -> tuple[Float32[ndarray, "rows"], float]:
        """Settles the engine's best; the lowest raw similarity of each row, and the largest error."""
        if self._flat:
            raw, candidates = self._flat.propose(block.query, count)
            return raw.min(axis=1), settle(block, raw, candidates, self.options.threads)
        values, indices = self._product.propose(block.query, count)
        lowest = values.amin(dim=1).cpu().numpy()
        if self._product.kept is not None:
            return lowest, settle_on_device(block, values, indices, self._product.kept)
        return lowest, settle(block, values.cpu().numpy(), indices.cpu().numpy(), self.options.threads)

    def _recall(self, found: Int32[ndarray, "queries k"], start: int, k: int) -> float:
        """The share of true neighbours among those found, on rows drawn without regard to them."""
        some = np.sort(rng(0, "recall").permutation(len(found))[:_RECALL_ROWS])
        index, self._index = self._index, None
        try:
            true, _ = self._table(self._gallery[start + some], start + some, k)
        finally:
            self._index = index
        hits = sum(len(np.intersect1d(one, other)) for one, other in zip(true, found[some], strict=True))
        return hits / true.size if true.size else 1.0


@contextmanager
def _threads(threads: int, uses_faiss: bool) -> Iterator[None]:
    """Torch (and faiss) work with this many threads inside (0: with their own), and with as many as before after."""
    if not threads:
        yield
        return
    faiss: Any = None
    if uses_faiss:
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


def _check_finite(table: Feature[ndarray, "rows dim"], threads: int) -> None:
    """Refuses NaN and infinity, which would make every order meaningless."""
    bad = np.flatnonzero(~np.isfinite(squared_lengths(table, threads=threads)))
    if len(bad):
        raise NonFiniteValue(
            expected("finite features", f"NaN or infinity in {len(bad)} rows {bad[:5].tolist()}", "check the loss")
        )

"""Who proposes beside the product of all rows: cells of k-means, faiss's graph, and faiss's exact search.

The first two are approximate, for tables too large to multiply with themselves, and promise no equal table on another
machine or thread count (docs/results.md has what they find and cost). What is proposed is scored exactly all the same.
"""

import math
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray

from gracl.randomness import rng
from gracl.similarity.products import Product
from gracl.types import EMPTY, Feature

_KMEANS_ROUNDS = 10
# Rows that a cell's centre is learnt from.
_ROWS_A_CELL = 50
_LINKS, _BUILD_EFFORT = 32, 80


@runtime_checkable
class Proposer(Protocol):
    """Something that names candidates quickly."""

    def propose(
        self, query: Feature[ndarray, "queries dim"], count: int
    ) -> tuple[Float32[ndarray, "queries count"], Int64[ndarray, "queries count"]]:
        """Raw similarities and indices of up to `count` candidates of each query; -1 fills up."""
        ...


def open_index(
    product: Product,
    gallery: Feature[ndarray, "gallery dim"],
    index: Literal["ivf", "hnsw"],
    effort: int,
) -> Proposer:
    """The index over a gallery. It takes longer to make than to ask."""
    return Cells(product, gallery, effort) if index == "ivf" else Graph(gallery, effort)


class Cells:
    """An inverted file: the square root of N cells around the centres of k-means, the nearest of which are looked into.

    k-means is faiss's. The lists are multiplied by us, a cell with all queries that look into it at a time (why:
    docs/decisions/0011-cells-of-our-own).

    Args:
        product: of the gallery.
        gallery: the rows.
        effort: cells that a query looks into; 0: a tenth of them, 8 at least.
    """

    def __init__(self, product: Product, gallery: Feature[ndarray, "gallery dim"], effort: int) -> None:
        import faiss

        rows, dim = gallery.shape
        cells = max(1, int(math.sqrt(rows)))
        sample = np.sort(rng(0, "cells").permutation(rows)[: cells * _ROWS_A_CELL])
        kmeans = faiss.Kmeans(
            dim, cells, niter=_KMEANS_ROUNDS, seed=1, spherical=True, min_points_per_centroid=1, gpu=_gpu(product)
        )
        kmeans.train(np.ascontiguousarray(gallery[sample], np.float32))
        self.probes = min(cells, effort or max(8, cells // 10))
        self._product = product
        self._centres = Product(np.asarray(kmeans.centroids), product.place)
        home = np.concatenate(
            [
                self._centres.propose(gallery[start : start + 4096], 1)[1][:, 0].cpu().numpy()
                for start in range(0, rows, 4096)
            ]
        )
        self._members = np.argsort(home, kind="stable")
        self._starts = np.searchsorted(home[self._members], np.arange(cells + 1))

    def propose(
        self, query: Feature[ndarray, "queries dim"], count: int
    ) -> tuple[Float32[ndarray, "queries count"], Int64[ndarray, "queries count"]]:
        """The best of the cells whose centres are nearest."""
        rows = self._product.put(query)
        near = self._centres.propose(query, self.probes)[1].flatten().cpu()
        asks = near.argsort(stable=True)
        edges = torch.searchsorted(near[asks], torch.arange(len(self._starts))).tolist()
        values = torch.full((len(query), count), -torch.inf, device=rows.device)
        found = torch.full((len(query), count), EMPTY, dtype=torch.int64, device=rows.device)
        for cell, (first, last) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            members = self._members[self._starts[cell] : self._starts[cell + 1]]
            if first == last or not len(members):
                continue
            who = (asks[first:last] // self.probes).to(rows.device)
            top = self._product.between(rows[who], members).topk(min(count, len(members)), dim=1)
            names = torch.from_numpy(members).to(rows.device)[top.indices]
            best = torch.cat([values[who], top.values], dim=1).topk(count, dim=1)
            found[who] = torch.cat([found[who], names], dim=1).gather(1, best.indices)
            values[who] = best.values
        return values.cpu().numpy(), found.cpu().numpy()


class Graph:
    """faiss's HNSW graph on the CPU; it holds a float32 copy of the table.

    Args:
        gallery: the rows.
        effort: efSearch; 0: four times the candidates asked for.
    """

    def __init__(self, gallery: Feature[ndarray, "gallery dim"], effort: int) -> None:
        import faiss

        self._index = faiss.IndexHNSWFlat(gallery.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = _BUILD_EFFORT
        self._effort = effort
        for start in range(0, len(gallery), 2**16):
            self._index.add(np.ascontiguousarray(gallery[start : start + 2**16], np.float32))

    def propose(
        self, query: Feature[ndarray, "queries dim"], count: int
    ) -> tuple[Float32[ndarray, "queries count"], Int64[ndarray, "queries count"]]:
        """What a walk through the graph meets."""
        self._index.hnsw.efSearch = self._effort or 4 * count
        values, found = self._index.search(np.ascontiguousarray(query, np.float32), count)
        return values, found


class Flat:
    """faiss's exact search; it holds a float32 copy of the table if that is float16.

    Args:
        gallery: the rows.
        place: "cpu", or "cuda" for faiss-gpu.
    """

    def __init__(self, gallery: Feature[ndarray, "gallery dim"], place: str) -> None:
        import faiss

        self._gallery = np.ascontiguousarray(gallery, np.float32)
        self._resources = faiss.StandardGpuResources() if place == "cuda" else None

    def propose(
        self, query: Feature[ndarray, "queries dim"], count: int
    ) -> tuple[Float32[ndarray, "queries count"], Int64[ndarray, "queries count"]]:
        """The best rows of all."""
        import faiss

        asked, product = np.ascontiguousarray(query, np.float32), faiss.METRIC_INNER_PRODUCT
        if self._resources is None:
            return faiss.knn(asked, self._gallery, count, metric=product)
        return faiss.knn_gpu(self._resources, asked, self._gallery, count, metric=product)


def _gpu(product: Product) -> bool:
    """Whether k-means runs on a GPU: the table's product does, and this faiss can."""
    import faiss

    return product.place == "cuda" and faiss.get_num_gpus() > 0

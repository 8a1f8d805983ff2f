"""faiss's indexes, behind what a stored index wants of one: made, added to, asked for candidates, kept in a file.

What an engine proposes is scored exactly by `stored.py`, so an engine may hold the embeddings as coarsely as it likes.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from gracl.errors import ConfigError, expected
from gracl.types import Feature

Kind = Literal["flat", "hnsw", "ivf_pq"]

# Up to here one question of an exact search takes less than a tenth of a second on two cores (docs/use.md).
FLAT_ROWS = 200_000
# A product quantiser of 8 bits learns 256 words and wants more rows than that for each cell, too.
PQ_ROWS = 10_000
_LINKS, _BUILD_EFFORT = 32, 80
_ROWS_A_CELL = 40
_BLOCK = 2**16


def choose(rows: int) -> Kind:
    """The kind for so many rows where nobody says it."""
    return "flat" if rows <= FLAT_ROWS else "ivf_pq"


class Engine:
    """An index of faiss.

    Args:
        kind: "flat" looks at every row; "hnsw" walks a graph over rows of 8 bits a value; "ivf_pq" looks into the
            nearest of 4 sqrt(N) cells, at rows of dim / 8 bytes.
        index: faiss's, filled.
        effort: what a question looks at: efSearch of hnsw, cells of ivf_pq; 0: the least of `efforts`.
    """

    def __init__(self, kind: Kind, index: Any, effort: int = 0) -> None:
        self.kind = kind
        self._index = index
        self.effort = effort or self.efforts()[0]

    def efforts(self) -> list[int]:
        """Efforts to choose from, each twice the one before: up to a quarter of the cells, or 2048.

        There a question still takes a small part of what looking at every row would.
        """
        if self.kind == "flat":
            return [1]
        most = max(1, int(self._index.nlist) // 4) if self.kind == "ivf_pq" else 2048
        least = max(1, most // 16) if self.kind == "ivf_pq" else 64
        doubled = [least * 2**step for step in range(7)]
        return [*(effort for effort in doubled if effort < most), most]

    @classmethod
    def make(cls, kind: Kind, sample: Feature[ndarray, "sample dim"], rows: int, effort: int) -> "Engine":
        """An empty one.

        Args:
            kind: see above.
            sample: unit rows to learn cells and words from; `sample_size` says how many are enough.
            rows: that are expected.
            effort: see above.

        Raises:
            ConfigError: faiss is not installed, or ivf_pq for so few rows or for this number of values.
        """
        faiss, dim = need_faiss(), sample.shape[1]
        if kind == "flat":
            return cls(kind, faiss.IndexFlatIP(dim), effort)
        learn = np.ascontiguousarray(sample, np.float32)
        if kind == "hnsw":
            index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, _LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = _BUILD_EFFORT
        else:
            if rows < PQ_ROWS or dim % 8:
                came = f"{rows} rows of {dim} values"
                what = f"{PQ_ROWS} rows or more, of a multiple of 8 values, for kind=ivf_pq"
                raise ConfigError(expected(what, came, "choose kind=flat or kind=hnsw"))
            cells = int(4 * rows**0.5)
            index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, cells, dim // 8, 8, faiss.METRIC_INNER_PRODUCT)
            index.cp.spherical, index.cp.seed = True, 1
        index.train(learn)
        return cls(kind, index, effort)

    def add(self, features: Feature[ndarray, "rows dim"]) -> None:
        """Appends rows: they get the next numbers."""
        for start in range(0, len(features), _BLOCK):
            self._index.add(np.ascontiguousarray(features[start : start + _BLOCK], np.float32))

    def propose(
        self, query: Float32[ndarray, "queries dim"], count: int, allowed: Bool[ndarray, "rows"] | None = None
    ) -> Int64[ndarray, "queries count"]:
        """Rows that are among the most similar ones, in no order that counts; -1 where there are not so many.

        Args:
            query: unit rows.
            count: of candidates.
            allowed: which rows may be proposed; None: all.
        """
        faiss = need_faiss()
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        chosen: dict[str, Any] = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
        if self.kind == "hnsw":
            asked = faiss.SearchParametersHNSW(efSearch=max(self.effort, count), **chosen)
        elif self.kind == "ivf_pq":
            asked = faiss.SearchParametersIVF(nprobe=self.effort, **chosen)
        else:
            asked = faiss.SearchParameters(**chosen)
        found: ndarray = self._index.search(np.ascontiguousarray(query), count, params=asked)[1]
        return found

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def write(self, path: Path) -> None:
        """Keeps it in a file."""
        need_faiss().write_index(self._index, str(path))

    @classmethod
    def read(cls, path: Path, kind: Kind, effort: int) -> "Engine":
        """The one that was kept."""
        return cls(kind, need_faiss().read_index(str(path)), effort)


def sample_size(kind: Kind, rows: int) -> int:
    """How many rows an engine of a kind learns from."""
    return {"flat": 1, "hnsw": min(rows, 10_000), "ivf_pq": min(rows, _ROWS_A_CELL * int(4 * rows**0.5))}[kind]


def need_faiss() -> Any:
    """faiss.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(expected("faiss", error, "install gracl[cpu], or gracl[gpu] beside CUDA 12")) from error
    return faiss

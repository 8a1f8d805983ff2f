"""Who is near whom: nearest rows by inner product, in blocks, never N x N.

An engine proposes a few more candidates than asked for (`products.py`: the matrix product of torch on CPU or GPU;
`approximate.py`: cells or a graph; or faiss's Flat search), and they are scored again in double precision and
put in order (`settling.py`). So the exact table does not depend on engine, device, block size, threads or the rounding
of the product: equal rows are exactly equal, and stand in order of index.
"""

from gracl.similarity.options import Backend, Device, Index, Options, Search, resolve
from gracl.similarity.searching import Searcher, merged, nearest, shares, top_k

__all__ = [
    "Backend",
    "Device",
    "Index",
    "Options",
    "Search",
    "Searcher",
    "merged",
    "nearest",
    "resolve",
    "shares",
    "top_k",
]

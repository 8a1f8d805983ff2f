"""How to look for neighbours: the options of `nearest`, and what of them exists here."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from gracl.errors import ConfigError, expected
from gracl.kernels import thread_count

Backend = Literal["auto", "faiss", "torch"]
Device = Literal["auto", "cpu", "cuda"]
Search = Literal["exact", "approximate"]
Index = Literal["ivf", "hnsw"]


@dataclass(frozen=True)
class Options:
    """How to search; the keywords of `nearest`. Checked, and the device resolved, by `Searcher`."""

    search: Search = "exact"
    index: Index = "ivf"
    effort: int = 0
    backend: Backend = "auto"
    block_rows: int = 4096
    threads: int = 0
    device: Device = "auto"


def resolve(options: Options) -> tuple[str, str]:
    """The backend ("torch" or "faiss") and the place ("cpu" or "cuda") that are meant.

    Raises:
        ConfigError: what does not exist, is not there, or does not go together.
    """
    for what, holds, came, do in _demands(options):
        if not holds:
            raise ConfigError(expected(what, came, do))
    thread_count(options.threads)
    gpu = torch.cuda.is_available() and options.device != "cpu"
    if options.backend == "faiss":
        return "faiss", "cuda" if gpu and _faiss_gpus() else "cpu"
    # Which is the faster on a CPU depends on the CPU (docs/results.md, section 5); torch is there in any case.
    return "torch", "cuda" if gpu else "cpu"


def _demands(options: Options) -> Iterator[tuple[str, bool, object, str]]:
    """(what is expected, whether it holds, what came, what to do), in the order in which it is worth knowing."""
    one = options
    yield "search exact or approximate", one.search in ("exact", "approximate"), one.search, "choose one of them"
    yield "index ivf or hnsw", one.index in ("ivf", "hnsw"), one.index, "choose one of them"
    yield "backend auto, faiss or torch", one.backend in ("auto", "faiss", "torch"), one.backend, "choose one of them"
    yield "device auto, cpu or cuda", one.device in ("auto", "cpu", "cuda"), one.device, "choose one of them"
    yield "block_rows >= 1 and effort >= 0", one.block_rows >= 1 and one.effort >= 0, one, "raise them"
    cuda = one.device != "cuda" or torch.cuda.is_available()
    yield "a CUDA device", cuda, "none that torch can see", "use device=auto or device=cpu"
    wants_faiss = one.backend == "faiss" or one.search == "approximate"
    there = not wants_faiss or find_spec("faiss") is not None
    yield "the package faiss", there, "no such package", "install gracl[cpu], or use search=exact and backend=torch"
    flat_gpu = not (one.backend == "faiss" and one.device == "cuda" and there) or _faiss_gpus() > 0
    yield "a faiss that knows GPUs", flat_gpu, "faiss-cpu", "use backend=torch, or install gracl[gpu]"
    suits = one.search == "exact" or one.backend != "torch"
    yield "backend auto or faiss for an approximate search", suits, one.backend, "use backend=auto"


def _faiss_gpus() -> int:
    """How many GPUs faiss can use; 0 for faiss-cpu. (Any other GPU call without a driver would abort the process.)"""
    import faiss

    return int(faiss.get_num_gpus())

"""index(config) and search(config): an embedding table made searchable, and pictures looked up in it. No Ray here.

A question is answered within seconds of the command, on one machine; many machines describe pictures, not questions.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from gracl.embedding import Description
from gracl.errors import ConfigError, ImageError, expected
from gracl.images import storage
from gracl.images.embeddings import EmbeddingTable, Rows
from gracl.images.layouts.files import is_image
from gracl.images.sources import Listing, list_source, read_pictures
from gracl.learning.fit import autocast
from gracl.learning.identity import model_digest
from gracl.locks import holding
from gracl.retrieval.calibration import Calibration
from gracl.retrieval.engines import need_faiss
from gracl.retrieval.index_files import Some
from gracl.retrieval.reranking import reranked
from gracl.retrieval.stored import Origin, StoredIndex, add, build, check_model, results
from gracl.runtime.calibrated import calibration_of
from gracl.runtime.checkpoints import load_model
from gracl.runtime.found import Asked, write_results
from gracl.runtime.progress import Progress, say
from gracl.types import EMPTY
from gracl.uses import IndexConfig, SearchConfig

MOST_INLINE = 100
Hits = list[dict[str, Any]]


def index(config: IndexConfig) -> dict[str, Any]:
    """Makes a table searchable, or adds it to an index.

    Returns:
        Folder, kind, rows, recall, bytes on the disk, seconds.

    Raises:
        ConfigError, GraclError: see `retrieval/stored.py`.
        ShardError: no table, an unfinished or a torn one.
    """
    started = time.perf_counter()
    table, out = EmbeddingTable(config.embeddings), _local(config.out)
    asked = table.asked
    origin = Origin(asked.model, table.checkpoint, asked.flip, table.root, asked.source, asked.data_digest)
    progress = Progress("index", len(table))
    use_threads(config.threads)
    with holding(str(out), f"the index in {out}"):
        parts = (_some(rows) for rows in table.parts() if len(rows))
        if config.add:
            facts = add(out, parts, len(table), origin, progress=progress)
        else:
            kind = None if config.kind == "auto" else config.kind
            facts = build(out, parts, len(table), origin, kind=kind, effort=config.effort, progress=progress)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    say(f"{facts.rows} embeddings in {out}, kind {facts.kind}, recall@10 {facts.recall:.3f}")
    return {
        "out": str(out),
        "kind": facts.kind,
        "rows": facts.rows,
        "recall": round(facts.recall, 4),
        "bytes": size,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _local(out: str) -> Path:
    if not storage.is_local(out):
        do = "build it on a disk of the machine that searches"
        raise ConfigError(expected("a folder of this machine for an index", out, do))
    return storage.local_path(storage.absolute(out))


def _some(rows: Rows) -> Some:
    columns = {"path": rows.paths, "index": rows.indices, "camera": rows.cameras, "track": rows.tracks}
    return rows.features, pa.table(columns)


def use_threads(threads: int) -> None:
    """As many for torch and faiss in this process; 0: as many as there are CPUs."""
    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    need_faiss().omp_set_num_threads(count)


def search(config: SearchConfig) -> dict[str, Any]:
    """Looks pictures up.

    Returns:
        Kind and recall of the index, queries, pictures that could not be read, the threshold (None where no rate was
        asked for), seconds of the search itself and of all; and the folder `out` with `results.json`,
        `results.parquet`, `results.png`, or without it the results themselves.

    Raises:
        ConfigError: what does not fit together: another model, no calibration, too many queries to be printed.
        GraclError, ShardError, CheckpointError, ImageError: no index, table, model or picture, or a torn one.
    """
    started = time.perf_counter()
    use_threads(config.threads)
    found = StoredIndex(_local(config.index))
    asked = _asked(config, found)
    if config.out is None and len(asked.paths) > MOST_INLINE:
        raise ConfigError(expected(f"out= for more than {MOST_INLINE} queries", len(asked.paths), "name a folder"))
    threshold, point = _threshold(config, found)
    begun = time.perf_counter()
    lines = look_up(config, found, asked.features, asked.cameras)
    seconds = time.perf_counter() - begun
    answers = [_answer(path, hits, threshold) for path, hits in zip(asked.paths, lines, strict=True)]
    result: dict[str, Any] = {
        "kind": found.facts.kind,
        "recall": round(found.facts.recall, 4),
        "rows": len(found),
        "queries": len(answers),
        "bad_images": [{"path": path, "reason": reason} for path, reason in asked.bad],
        "threshold": point,
    }
    if config.out is None:
        result["results"] = answers
    else:
        out = storage.absolute(config.out)
        with holding(out, f"the results in {out}"):
            root = storage.absolute(config.root) if config.root else None
            write_results(out, asked, answers, result, shown=config.shown, root=root, digests=found.digests())
        result["out"] = out
        say(f"{len(answers)} queries answered in {out}")
    result["search_seconds"] = round(seconds, 4)
    result["seconds"] = round(time.perf_counter() - started, 2)
    return result


def _asked(config: SearchConfig, found: StoredIndex) -> Asked:
    queries = storage.absolute(config.queries)
    if storage.exists(storage.join(queries, "asked.json")):
        return _from_table(config, queries, found)
    checkpoint = config.checkpoint or found.facts.checkpoint
    encoder, view = load_model(storage.absolute(checkpoint))
    check_model(found.facts, model_digest(encoder, view), config.flip, "the checkpoint's")
    listing = _listing(queries)
    paths: list[str] = listing.rows["path"].to_pylist()
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device != "cpu"
    device = torch.device(("cuda" if cuda else "cpu") if config.device == "auto" else config.device)
    threads = config.threads or os.cpu_count() or 1
    describe = Description(encoder.to(device), view, config.batch, threads, autocast(device, "float32"), config.flip)
    table, bad = describe.readable(lambda rows: read_pictures(listing.root, [paths[row] for row in rows]), len(paths))
    if not len(table.indices):
        raise ImageError(next(iter(bad.values())).args[0])
    order = np.argsort(table.indices)
    rows, cameras = table.indices[order], listing.rows["camera"].to_pylist()
    lacking = [(paths[row], str(bad[row])) for row in sorted(bad)]
    return Asked(
        [paths[row] for row in rows],
        rows,
        table.features[order],
        [cameras[row] for row in rows],
        listing.root,
        [*lacking, *((name, "a name that is no UTF-8") for name in listing.unnamed)],
    )


def _listing(queries: str) -> Listing:
    """The pictures of a folder or list, or the one picture that is named."""
    if is_image(queries) and not storage.is_folder(queries):
        name = queries.rpartition("/")[2]
        return Listing.of_paths(storage.parent(queries), [name])
    return list_source(queries)


def _from_table(config: SearchConfig, queries: str, found: StoredIndex) -> Asked:
    known = ("flip", "batch", "device", *(() if config.false_match_rate else ("checkpoint",)))  # it has the calibration
    unused = [name for name in known if not config.left(name)]
    if unused:
        raise ConfigError(
            expected("no settings of a model beside queries that are described", ", ".join(unused), "leave them out")
        )
    table = EmbeddingTable(queries)
    check_model(found.facts, table.asked.model, table.asked.flip, "the queries'")
    rows = table.read()
    features = rows.features.astype(np.float32)
    return Asked(rows.paths.to_pylist(), rows.indices, features, rows.cameras.to_pylist(), table.asked.source)


def look_up(
    config: SearchConfig,
    found: StoredIndex,
    features: Float32[ndarray, "queries dim"],
    cameras: Sequence[str | None],
) -> list[Hits]:
    """What each query finds, most similar first; with `rerank_first` in the order of the re-ranked similarity, which
    stands beside the plain one.

    Raises:
        ConfigError: cameras that the index does not know.
    """
    rows, similarities = find_rows(config, found, features, cameras)
    if not config.rerank_first:
        return results(found, rows, similarities)
    lines = []
    for query, line, scores in zip(features, rows, similarities, strict=True):
        there = line[line != EMPTY]
        best, values = _again(config, found, query, there)
        hits = results(found, there[best][None], scores[: len(there)][best][None])[0]
        lines.append([hit | {"reranked": float(value)} for hit, value in zip(hits, values, strict=True)])
    return lines


def find_rows(
    config: SearchConfig,
    found: StoredIndex,
    features: Float32[ndarray, "queries dim"],
    cameras: Sequence[str | None],
) -> tuple[Int64[ndarray, "queries first"], Float32[ndarray, "queries first"]]:
    """The rows that each query may find and their similarity, as `StoredIndex.search`; before any re-ranking.

    Raises:
        ConfigError: cameras that the index does not know.
    """
    first = max(config.k, config.rerank_first)
    rows = np.full((len(features), first), EMPTY, np.int64)
    similarities = np.full((len(features), first), -np.inf, np.float32)
    for allowed, some in _camera_groups(config, found, cameras):
        rows[some], similarities[some] = found.search(features[some], first, allowed=allowed)
    return rows, similarities


def _again(
    config: SearchConfig, found: StoredIndex, query: Float32[ndarray, "dim"], rows: Int64[ndarray, "rows"]
) -> tuple[Int64[ndarray, "best"], Float32[ndarray, "best"]]:
    """The places of the best of some rows after re-ranking among them, and their similarity then."""
    options = config.reranking.options()
    if len(rows) <= options["k1"]:
        what = f"more than reranking.k1={options['k1']} rows to re-rank"
        raise ConfigError(expected(what, len(rows), "raise rerank_first, or lower reranking.k1"))
    blocks = reranked(query[None], found.features(rows), **options, threads=config.threads)
    values = next(iter(blocks(query[None], found.features(rows))))[1][0]
    best = np.argsort(-values, kind="stable")[: config.k]
    return best, np.asarray(values[best], np.float32)


def _camera_groups(
    config: SearchConfig, found: StoredIndex, cameras: Sequence[str | None]
) -> list[tuple[Bool[ndarray, "rows"] | None, Int64[ndarray, "queries"]]]:
    """Queries that may find the same rows, with these rows; None for all."""
    every = np.arange(len(cameras))
    if not config.cameras and not config.other_cameras:
        return [(None, every)]
    theirs = found.cameras()
    among = np.ones(len(found), bool)
    if config.cameras:
        unknown = sorted(set(config.cameras) - {camera for camera in theirs if camera is not None})
        if unknown:
            known = sorted({camera for camera in theirs if camera is not None})[:20]
            what = f"cameras of the index ({', '.join(known) or 'none known'})"
            raise ConfigError(expected(what, ", ".join(unknown), "see cameras"))
        among = np.isin(theirs.astype(str), config.cameras)
    if not config.other_cameras:
        return [(among, every)]
    if all(camera is None for camera in cameras) or all(camera is None for camera in theirs):
        came = "none of the queries" if all(camera is None for camera in cameras) else "none of the index"
        do = "give a list with camera_id, or leave out other_cameras"
        raise ConfigError(expected("known cameras for other_cameras=true", came, do))
    return [
        (among if own is None else among & (theirs != own), np.flatnonzero([camera == own for camera in cameras]))
        for own in sorted(set(cameras), key=str)
    ]


def _threshold(config: SearchConfig, found: StoredIndex) -> tuple[float | None, dict[str, float] | None]:
    """The similarity from which on a result is taken for the same object, and what is known of it."""
    if config.false_match_rate is None:
        return None, None
    checkpoint = config.checkpoint or found.facts.checkpoint
    calibration = calibration_of(checkpoint, found.facts.model, found.facts.flip)
    return threshold_of(calibration, config.false_match_rate, config.of, len(found))


def threshold_of(
    calibration: Calibration, rate: float, of: Literal["pair", "query"], rows: int
) -> tuple[float, dict[str, float]]:
    """The similarity of a rate of false matches (of a pair, or of a query's best of so many rows), and its bounds.

    Raises:
        ConfigError: a rate beyond what was measured.
    """
    # Of a query's comparisons with all rows one false match is one too many; so many chances at most (Boole).
    of_a_pair = rate / (rows if of == "query" else 1)
    lowest = calibration.points[-1].rate
    if of == "query" and of_a_pair < lowest:
        what = f"a rate of a query of {lowest * rows:.2g} or more, as was measured for {rows} rows"
        raise ConfigError(expected(what, f"{rate:g}", "calibrate on more images, or ask with of=pair"))
    point = calibration.threshold(of_a_pair)
    facts = {"similarity": point.similarity, "low": point.low, "high": point.high, "rate_of_a_pair": of_a_pair}
    return point.similarity, {name: round(value, 9) for name, value in facts.items()}


def _answer(path: str, hits: Hits, threshold: float | None) -> dict[str, Any]:
    """One query's line."""
    return {"query": path} | judged(hits, threshold)


def judged(hits: Hits, threshold: float | None) -> dict[str, Any]:
    """Results; with a threshold also whether each, and whether any of them, is taken for the same object."""
    if threshold is None:
        return {"results": hits}
    lines = [hit | {"same": hit["similarity"] >= threshold} for hit in hits]
    return {"in_gallery": any(hit["same"] for hit in lines), "results": lines}

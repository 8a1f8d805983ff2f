"""index(config) and search(config): an embedding table made searchable, and pictures looked up in it. No Ray here.

A question is answered within seconds of the command, on one machine; many machines describe pictures, not questions.
"""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gracl.embedding import Description
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.embeddings import ASKED, EmbeddingTable, Rows
from gracl.images.layouts.files import is_image
from gracl.images.sources import Listing, list_source, read_pictures
from gracl.learning.identity import model_digest
from gracl.locks import holding
from gracl.retrieval.calibration import Point
from gracl.retrieval.engines import need_faiss
from gracl.retrieval.index_files import Some
from gracl.retrieval.lookup import look_up, threshold_of, told
from gracl.retrieval.stored import Origin, StoredIndex, add, build, check_model
from gracl.runtime.calibrated import calibration_of
from gracl.runtime.checkpoints import load_model
from gracl.runtime.found import Queries, write_results
from gracl.runtime.progress import Progress, say
from gracl.uses import IndexConfig, SearchConfig

MOST_INLINE = 100


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
    if facts.dtype != asked.dtype:
        say(f"note: the index holds {facts.dtype}, so that is what the table's {asked.dtype} became")
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
    queries = _queries(config, found)
    if config.out is None and len(queries.paths) > MOST_INLINE:
        raise ConfigError(expected(f"out= for more than {MOST_INLINE} queries", len(queries.paths), "name a folder"))
    threshold = _threshold(config, found)
    begun = time.perf_counter()
    hits = look_up(
        found,
        queries.features,
        config.k,
        cameras=queries.cameras,
        among=[str(camera) for camera in config.cameras],
        other_cameras=config.other_cameras,
        rerank_first=config.rerank_first,
        **config.reranking.options(),
        threads=config.threads,
    )
    seconds = time.perf_counter() - begun
    answers = [{"query": path} | told(found, one, threshold) for path, one in zip(queries.paths, hits, strict=True)]
    plainly = sum(one.again is None for one in hits) if config.rerank_first else 0
    if plainly:
        say(f"note: {plainly} queries found no more than reranking.k1 pictures, so their order is the plain one")
    result: dict[str, Any] = {
        "kind": found.facts.kind,
        "recall": round(found.facts.recall, 4),
        "rows": len(found),
        "queries": len(answers),
        "bad_images": [{"path": path, "reason": reason} for path, reason in queries.bad],
        "threshold": asdict(threshold) if threshold else None,
    }
    if config.out is None:
        result["results"] = answers
    else:
        out = storage.absolute(config.out)
        with holding(out, f"the results in {out}"):
            root = storage.absolute(config.root) if config.root else None
            write_results(out, queries, answers, result, shown=config.shown, root=root, digests=found.digests())
        result["out"] = out
        say(f"{len(answers)} queries answered in {out}")
    result["search_seconds"] = round(seconds, 4)
    result["seconds"] = round(time.perf_counter() - started, 2)
    return result


def _threshold(config: SearchConfig, found: StoredIndex) -> Point | None:
    """From where on a result is taken for the same object; None where no rate was asked for."""
    if config.false_match_rate is None:
        return None
    checkpoint = config.checkpoint or found.facts.checkpoint
    calibration = calibration_of(checkpoint, found.facts.model, found.facts.flip)
    return threshold_of(calibration, config.false_match_rate, config.of, len(found))


def _queries(config: SearchConfig, found: StoredIndex) -> Queries:
    source = storage.absolute(config.queries)
    if storage.exists(storage.join(source, ASKED)):
        return _from_table(config, source, found)
    checkpoint = config.checkpoint or found.facts.checkpoint
    encoder, view = load_model(storage.absolute(checkpoint))
    check_model(found.facts, model_digest(encoder, view), config.flip, "the checkpoint's")
    listing = _listing(source)
    paths: list[str] = listing.rows["path"].to_pylist()
    describe = Description.of(
        encoder,
        view,
        batch=config.batch,
        threads=config.threads or os.cpu_count() or 1,
        device=config.device,
        flip=config.flip,
    )
    table, bad = describe.readable(lambda rows: read_pictures(listing.root, [paths[row] for row in rows]), len(paths))
    if not len(table.indices):
        raise next(iter(bad.values()))
    order = np.argsort(table.indices)
    rows, cameras = table.indices[order], listing.rows["camera"].to_pylist()
    lacking = [(paths[row], str(bad[row])) for row in sorted(bad)]
    return Queries(
        [paths[row] for row in rows],
        rows,
        table.features[order],
        [cameras[row] for row in rows],
        listing.root,
        [*lacking, *((name, "a name that is no UTF-8") for name in listing.unnamed)],
    )


def _listing(source: str) -> Listing:
    """The pictures of a folder or list, or the one picture that is named."""
    if is_image(source) and not storage.is_folder(source):
        name = source.rpartition("/")[2]
        return Listing.of_paths(storage.parent(source), [name])
    return list_source(source)


def _from_table(config: SearchConfig, source: str, found: StoredIndex) -> Queries:
    known = ("flip", "batch", "device", *(() if config.false_match_rate else ("checkpoint",)))  # it has the calibration
    unused = [name for name in known if not config.left(name)]
    if unused:
        raise ConfigError(
            expected("no settings of a model beside queries that are described", ", ".join(unused), "leave them out")
        )
    table = EmbeddingTable(source)
    check_model(found.facts, table.asked.model, table.asked.flip, "the queries'")
    rows = table.read()
    features = rows.features.astype(np.float32)
    return Queries(rows.paths.to_pylist(), rows.indices, features, rows.cameras.to_pylist(), table.asked.source)

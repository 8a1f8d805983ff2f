"""evaluate(config): mAP and CMC of a checkpoint on query and gallery, with the results of each query."""

import csv
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gracl.config import EvaluateConfig
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.ranking import rank
from gracl.runtime.extract import check, demand, describe_split, near
from gracl.runtime.session import session
from gracl.runtime.sheets import draw_ranked
from gracl.runtime.terminal import say
from gracl.types import EMPTY, FeatureTable, Ranking, RetrievalReport


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Describes query and gallery, ranks, and judges.

    Returns:
        mAP, CMC, counts of queries, seconds; with `config.out` also the paths of what was written: `report.json`,
        `queries.csv` (one line per query) and `ranked.png`.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts.
    """
    started = time.perf_counter()
    names = (config.data.query, config.data.gallery)
    if not all(names):
        raise ConfigError(expected("data.query and data.gallery", repr(names), "name the splits to judge on"))
    check(config, config.data, list(names))
    root = storage.absolute(config.data.root)
    stores = [ShardStore.open(root, name, cache=near(config.data.cache)) for name in names]
    with session(demand(config.scale)):
        query, gallery = (
            FeatureTable.gather(describe_split(config, config.data, name), len(store))
            for name, store in zip(names, stores, strict=True)
        )
    who: dict[str, Any] = {"query_identities": stores[0].identities(), "gallery_identities": stores[1].identities()}
    report = evaluate_retrieval(query, gallery, **who)
    result: dict[str, Any] = {
        **{name.removeprefix("val/"): value for name, value in report.metrics().items()},
        "queries": report.queries,
        "skipped_queries": report.skipped_queries,
        "seconds": round(time.perf_counter() - started, 2),
    }
    say(f"mAP {report.mean_ap:.2%}, " + ", ".join(f"Rank-{k} {share:.2%}" for k, share in report.cmc.items()))
    if config.out:
        result["out"] = write_results(config.out, result, report, rank(query, gallery, **who, k=10), *stores)
    return result


def write_results(
    out: str, result: dict[str, Any], report: RetrievalReport, ranking: Ranking, query: ShardStore, gallery: ShardStore
) -> str:
    """Writes report, per-query results and the ranked sheet into a folder; returns it."""
    folder = storage.absolute(out)
    storage.write_bytes(storage.join(folder, "report.json"), json.dumps(result, indent=1).encode())
    storage.write_bytes(storage.join(folder, "queries.csv"), per_query(report, ranking, query, gallery).encode())
    with tempfile.TemporaryDirectory() as near:
        picture = Path(near, "ranked.png")
        draw_ranked(picture, report, ranking, query=query, gallery=gallery, title=f"mAP {report.mean_ap:.1%}")
        storage.write_bytes(storage.join(folder, picture.name), picture.read_bytes())
    return folder


def per_query(report: RetrievalReport, ranking: Ranking, query: ShardStore, gallery: ShardStore) -> str:
    """A CSV: path of each query, its AP ('' where it was skipped), and the paths of its best gallery images."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["query", "average_precision", *(f"rank{place + 1}" for place in range(ranking.indices.shape[1]))])
    for index, path in enumerate(query.paths(np.arange(len(query)))):
        precision = f"{report.average_precisions[index]:.6f}" if report.counted[index] else ""
        found = ranking.indices[index]
        writer.writerow([path, precision, *gallery.paths(found[found != EMPTY])])
    return text.getvalue()

"""evaluate(config): mAP, mINP and CMC of a checkpoint on query and gallery, with the results of each query.

The plain figures are always there; what flip averaging, query expansion and re-ranking make of them stands beside them
under a name of its own.
"""

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.locks import holding
from gracl.retrieval import expansion, reranking
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.ranking import rank, similarity_blocks
from gracl.runtime.describe import check, demand, describe_split, near
from gracl.runtime.progress import say
from gracl.runtime.session import session
from gracl.runtime.sheets import draw_ranked
from gracl.types import EMPTY, FeatureTable, Ranking, RetrievalReport
from gracl.uses import EvaluateConfig

# Makes the ranking that belongs to a report, its length given.
Ranker = Callable[..., Ranking]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Describes query and gallery, ranks, and judges.

    Returns:
        mAP, mINP, CMC, counts of queries, seconds; `processed`, the same figures after the post-processing named
        there (None where nothing was asked for); with `config.out` also the folder of what was written: `report.json`,
        `queries.csv` (one line per query) and `ranked.png`, the last two also as `*_processed`.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts; a ConfigError also where another process is
            writing to `config.out`.
    """
    if not config.out:
        return _evaluated(config)
    out = storage.absolute(config.out)
    with holding(out, f"the report in {out}"):
        return _evaluated(config)


def _evaluated(config: EvaluateConfig) -> dict[str, Any]:
    started = time.perf_counter()
    names = (config.data.query, config.data.gallery)
    if not all(names):
        raise ConfigError(expected("data.query and data.gallery", repr(names), "name the splits to judge on"))
    check(config, config.data, list(names))
    root = storage.absolute(config.data.root)
    stores = [ShardStore.open(root, name, cache=near(config.data.cache)) for name in names]
    check_processing(config, *(len(store) for store in stores))
    with session(demand(config.scale)):
        query, gallery = (described(config, name, len(store)) for name, store in zip(names, stores, strict=True))
    who: dict[str, Any] = {"query_identities": stores[0].identities(), "gallery_identities": stores[1].identities()}
    judgements = dict(judge(config, query, gallery, who))
    plain, processed = judgements[""][0], judgements.get("_processed")
    result: dict[str, Any] = {
        **figures(plain),
        "queries": plain.queries,
        "skipped_queries": plain.skipped_queries,
        "processed": {"by": config.processing(), **figures(processed[0])} if processed else None,
        "seconds": round(time.perf_counter() - started, 2),
    }
    if config.out:
        result["out"] = write_results(config.out, result, judgements, *stores)
    return result


def check_processing(config: EvaluateConfig, queries: int, gallery: int) -> None:
    """Refuses post-processing that asks for more neighbours than there are images."""
    if config.expand:
        expansion.check_options(**config.expansion.options(), gallery=gallery)
    if config.rerank:
        reranking.check_options(**config.reranking.options(), images=queries + gallery)


def described(config: EvaluateConfig, split: str, images: int) -> list[Float32[ndarray, "images dim"]]:
    """The feature tables of a split in order of index: plain and, with `config.flip`, flip-averaged."""
    parts = zip(*describe_split(config, config.data, split), strict=True)
    return [FeatureTable.gather(some, images) for some in parts]


def judge(
    config: EvaluateConfig,
    query: list[Float32[ndarray, "queries dim"]],
    gallery: list[Float32[ndarray, "gallery dim"]],
    who: dict[str, Any],
) -> Iterator[tuple[str, tuple[RetrievalReport, Ranker]]]:
    """Report and ranking by the end of their files' names: plain ("") and, where asked for, "_processed"."""
    yield "", judged(query[0], gallery[0], **who, blocks=similarity_blocks, words="")
    processing = config.processing()
    if processing:
        sides, blocks = (query[-1], gallery[-1]), similarity_blocks
        if config.expand:
            sides = expansion.expand(*sides, **config.expansion.options())
        if config.rerank:
            blocks = reranking.reranked(*sides, **config.reranking.options())
        yield "_processed", judged(*sides, **who, blocks=blocks, words=f" with {json.dumps(processing)}")


def judged(*sides: Float32[ndarray, "_ _"], words: str, **options: Any) -> tuple[RetrievalReport, Ranker]:
    """The report, told to the terminal, and the maker of its ranking."""
    report = evaluate_retrieval(*sides, **options)
    cmc = ", ".join(f"Rank-{k} {share:.2%}" for k, share in report.cmc.items())
    say(f"mAP {report.mean_ap:.2%}, mINP {report.mean_inp:.2%}, {cmc}{words}")
    return report, partial(rank, *sides, **options)


def figures(report: RetrievalReport) -> dict[str, float]:
    """The report's figures under the names of a result."""
    return {name.removeprefix("val/"): value for name, value in report.metrics().items()}


def write_results(
    out: str,
    result: dict[str, Any],
    judgements: dict[str, tuple[RetrievalReport, Ranker]],
    query: ShardStore,
    gallery: ShardStore,
) -> str:
    """Writes report, per-query results and the ranked sheet of each judgement into a folder; returns it."""
    folder = storage.absolute(out)
    storage.write_bytes(storage.join(folder, "report.json"), json.dumps(result, indent=1).encode())
    for end, (report, ranker) in judgements.items():
        ranking = ranker(k=10)
        lines = per_query(report, ranking, query, gallery)
        storage.write_bytes(storage.join(folder, f"queries{end}.csv"), lines.encode())
        by = f" with {', '.join(result['processed']['by'])}" if end else ""
        title = f"mAP {report.mean_ap:.1%}, mINP {report.mean_inp:.1%}{by}"
        picture = draw_ranked(report, ranking, query=query, gallery=gallery, title=title)
        storage.write_bytes(storage.join(folder, f"ranked{end}.png"), picture)
    return folder


def per_query(report: RetrievalReport, ranking: Ranking, query: ShardStore, gallery: ShardStore) -> str:
    """A CSV: path of each query, its AP and INP ('' where it was skipped), and the paths of its best gallery images."""
    text = io.StringIO()
    writer = csv.writer(text)
    places = [f"rank{place + 1}" for place in range(ranking.indices.shape[1])]
    writer.writerow(["query", "average_precision", "inverse_negative_penalty", *places])
    for index, path in enumerate(query.paths(np.arange(len(query)))):
        shares = report.average_precisions[index], report.inverse_penalties[index]
        cells = [f"{share:.6f}" if report.counted[index] else "" for share in shares]
        found = ranking.indices[index]
        writer.writerow([path, *cells, *gallery.paths(found[found != EMPTY])])
    return text.getvalue()

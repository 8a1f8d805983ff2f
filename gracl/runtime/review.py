"""review(config): one HTML page on a checkpoint, for those who look at what a training has learnt.

The train split is described and clustered once more, since a checkpoint holds no labels: what is shown is what the next
epoch would learn from. Identities of the train split are read only where they are asked for, after all else.
"""

import time
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from mlflow import MlflowClient
from numpy import ndarray

from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import STATE_FILE
from gracl.retrieval.agreement import agreement
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.page import page
from gracl.retrieval.ranking import rank
from gracl.runtime.checkpoints import load_run_state, relations_of
from gracl.runtime.describe import check, near
from gracl.runtime.pages import Seen, judged_lines, parts
from gracl.runtime.progress import say
from gracl.runtime.relating import clustering_demand, described_once, labels_of
from gracl.runtime.runs import Origin, origin
from gracl.runtime.session import session
from gracl.runtime.sheets import draw_ranked
from gracl.runtime.surroundings import check_surroundings
from gracl.runtime.tracking import attempt, without_password
from gracl.runtime.truth import objects_of
from gracl.types import UNKNOWN, RetrievalReport
from gracl.uses import ReviewConfig


def review(config: ReviewConfig) -> dict[str, Any]:
    """Describes, clusters and judges, and writes the page.

    Returns:
        The page, its size in bytes, clusters, share of noise, mAP (None where nothing was judged), the MLflow run that
        has the page (None for none), seconds.

    Raises:
        ConfigError, ShardError, CheckpointError: before Ray starts.
        ClusteringCollapsed: fewer than two clusters.
    """
    started = time.perf_counter()
    splits = [name for name in (config.data.train, config.data.query, config.data.gallery) if name]
    check(config, config.data, splits)
    state = load_run_state(storage.absolute(config.checkpoint))
    place = _place_in_mlflow(config)
    root = storage.absolute(config.data.root)
    stores = {name: ShardStore.open(root, name, cache=near(config.data.cache)) for name in splits}
    relations_of(state)  # these two are refused before Ray starts
    check_surroundings(state, len(stores[config.data.train]))
    with session(clustering_demand(config)):
        tables = {name: described_once(config, config.data, name, len(stores[name])) for name in splits}
        assignment = labels_of(config, state, tables[config.data.train], config.data, config.data.train)
    train = stores[config.data.train]
    objects = np.full(len(train), UNKNOWN, np.int64)
    if config.identities:
        objects = objects_of(root, config.data.train, near(config.data.cache))
        if (objects == UNKNOWN).all():
            say(f"note: the split {config.data.train} has no identities, so none are on the page")
    seen = Seen(train, tables[config.data.train], train.camera_ids(), assignment, objects)
    judged, ranked = _judged(config, stores, tables) if config.data.query else (None, None)
    figures = judged_lines(judged) if judged else []
    figures += [[name, f"{value:.3g}"] for name, value in agreement(assignment.labels, objects).items()]
    name = "/".join(PurePosixPath(config.checkpoint.removesuffix(STATE_FILE)).parts[-2:])
    run: dict[str, Any] = {"recipe": state.recipe, "history": state.history}
    sections = parts(seen, **run, figures=figures, ranked=ranked, clusters=config.clusters)
    text = page(f"gracl review: {name}", sections).encode()
    out = storage.absolute(config.out)
    storage.write_bytes(out, text)
    say(f"page: {out}")
    return {
        "out": out,
        "bytes": len(text),
        "clusters": assignment.clusters,
        "noise": float((assignment.labels < 0).mean()),
        "mAP": judged.mean_ap if judged else None,
        "mlflow_run_id": _keep(place, text),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _judged(
    config: ReviewConfig, stores: Mapping[str, ShardStore], tables: Mapping[str, ndarray]
) -> tuple[RetrievalReport, bytes]:
    """The report and the ranked sheet."""
    query, gallery = stores[config.data.query], stores[config.data.gallery]
    sides = tables[config.data.query], tables[config.data.gallery]
    who: dict[str, Any] = {"query_identities": query.identities(), "gallery_identities": gallery.identities()}
    report = evaluate_retrieval(*sides, **who)
    ranking = rank(*sides, **who, k=10)
    return report, draw_ranked(report, ranking, query=query, gallery=gallery, title="", queries=config.queries)


def _place_in_mlflow(config: ReviewConfig) -> tuple[str, Origin] | None:
    """MLflow's URI and the run that the checkpoint lies in; None where it lies in none or nobody asked."""
    found = origin(config.checkpoint) if config.log else None
    uri = config.tracking_uri or (found.tracking_uri if found else None)
    if uri is not None:
        without_password(uri)
    if found is None or uri is None:
        if found or config.tracking_uri:
            say("note: it is not known which MLflow run the checkpoint is of, so the page stays out of MLflow")
        return None
    return uri, found


def _keep(place: tuple[str, Origin] | None, text: bytes) -> str | None:
    """The id of the MLflow run that has the page now; None for none."""
    if place is None:
        return None
    uri, run = place

    def write(client: MlflowClient) -> None:
        client.get_run(run.mlflow_run_id)  # MLflow remembers where a run's files go, also of another server
        client.log_text(run.mlflow_run_id, text.decode(), f"review-{run.epoch}.html")

    return run.mlflow_run_id if attempt(uri, write, "the review") else None

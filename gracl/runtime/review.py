"""review(config): one HTML page on a checkpoint, for those who look at what a training has learnt.

The train split is described and clustered once more, since a checkpoint holds no labels: what is shown is what the next
epoch would learn from. Identities of the train split are read only where they are asked for, after all else.
"""

import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import ray
from jaxtyping import Float32, Int64
from mlflow import MlflowClient
from numpy import ndarray
from pydantic import ValidationError

from gracl.config import ReviewConfig
from gracl.errors import CheckpointError, expected
from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.images.views import decode
from gracl.learning.checkpoint import STATE_FILE, TrainState
from gracl.relations.relate import relate
from gracl.retrieval.agreement import agreement
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.page import Part, page
from gracl.retrieval.ranking import rank
from gracl.retrieval.review_charts import TERMS, confusion_chart, curves_chart, map_chart, similarity_chart
from gracl.retrieval.sheet import CLUSTER_LEGEND, NOISE_LEGEND, Legend, SheetRow, draw_sheet
from gracl.retrieval.showing import ShownCluster, noise_to_show, notable_clusters, pair_similarities
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.extract import check, demand, describe_split, near
from gracl.runtime.runs import Origin, origin
from gracl.runtime.session import Demand, refusals, session
from gracl.runtime.sheets import draw_ranked
from gracl.runtime.terminal import COLUMNS, epoch_row, say
from gracl.runtime.tracking import attempt
from gracl.runtime.truth import objects_of
from gracl.sections import Relations
from gracl.types import UNKNOWN, Assignment, FeatureTable, RetrievalReport

HEIGHT = 96


@dataclass(frozen=True)
class Seen:
    """The train split as the checkpoint sees it; `objects` are -1 where nobody asked or nobody knows."""

    store: ShardStore
    features: Float32[ndarray, "images dim"]
    cameras: Int64[ndarray, "images"]
    assignment: Assignment
    objects: Int64[ndarray, "images"]


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
    relations, place = relations_of(state), _place_in_mlflow(config)
    root = storage.absolute(config.data.root)
    stores = {name: ShardStore.open(root, name, cache=near(config.data.cache)) for name in splits}
    with session(_demand(config)):
        tables = {name: _described(config, name, len(stores[name])) for name in splits}
        assignment = _related(config, relations, tables[config.data.train], stores[config.data.train])
    train = stores[config.data.train]
    objects = np.full(len(train), UNKNOWN, np.int64)
    if config.identities:
        objects = objects_of(root, config.data.train, near(config.data.cache))
        if (objects == UNKNOWN).all():
            say(f"note: the split {config.data.train} has no identities, so none are on the page")
    seen = Seen(train, tables[config.data.train], train.camera_ids(), assignment, objects)
    judged, ranked = _judged(config, stores, tables) if config.data.query else (None, None)
    name = "/".join(PurePosixPath(config.checkpoint.removesuffix(STATE_FILE)).parts[-2:])
    text = page(f"gracl review: {name}", parts(state, seen, judged, ranked, config.clusters)).encode()
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


def relations_of(state: TrainState) -> Relations:
    """The relations of the run that a checkpoint is of.

    Raises:
        CheckpointError: settings that this version does not know.
    """
    known = {
        name.removeprefix("relations."): value for name, value in state.recipe.items() if name.startswith("relations.")
    }
    try:
        return Relations.model_validate(known)
    except ValidationError as error:
        raise CheckpointError(
            expected("a checkpoint whose relations this version knows", str(error), "train with this version")
        ) from None


def _demand(config: ReviewConfig) -> Demand:
    """Describers and the task that clusters take turns, so the larger counts."""
    crew = demand(config.scale)
    return Demand(max(crew.cpus, config.relation_cpus), crew.gpus, parts=crew.parts, waits=crew.waits)


def _described(config: ReviewConfig, split: str, images: int) -> Float32[ndarray, "images dim"]:
    return FeatureTable.gather((plain for (plain,) in describe_split(config, config.data, split)), images)


def _related(config: ReviewConfig, relations: Relations, features: ndarray, store: ShardStore) -> Assignment:
    """Labels and proxies, made where the cluster has room for it."""
    cameras = store.camera_ids()
    options = relations.options() | {"threads": config.relation_threads, "device": "cpu"}
    known = cameras if (cameras != UNKNOWN).any() else None
    with refusals():
        task = ray.remote(num_cpus=config.relation_cpus)(_relate)
        found: Assignment = ray.get(task.remote(features, known, options))
    return found


def _relate(features: ndarray, cameras: ndarray | None, options: Mapping[str, Any]) -> Assignment:
    return relate(features, cameras=cameras, **options)


def _judged(
    config: ReviewConfig, stores: Mapping[str, ShardStore], tables: Mapping[str, ndarray]
) -> tuple[RetrievalReport, bytes]:
    """The report and the ranked sheet."""
    query, gallery = stores[config.data.query], stores[config.data.gallery]
    sides = tables[config.data.query], tables[config.data.gallery]
    who: dict[str, Any] = {"query_identities": query.identities(), "gallery_identities": gallery.identities()}
    report = evaluate_retrieval(*sides, **who)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "ranked.png")
        ranking = rank(*sides, **who, k=10)
        draw_ranked(picture, report, ranking, query=query, gallery=gallery, title="", queries=config.queries)
        return report, picture.read_bytes()


def parts(
    state: TrainState, seen: Seen, judged: RetrievalReport | None, ranked: bytes | None, clusters: int
) -> list[Part]:
    """The sections of the page."""
    found, labels = seen.assignment, seen.assignment.labels
    known = (seen.objects != UNKNOWN).any()
    sections = [Part("Figures", tables=[_figures(seen, judged)])]
    if state.history:
        epochs = [[title for title, _, _ in COLUMNS], *(epoch_row(row) for row in state.history)]
        curves = {"by epoch": curves_chart(state.history, _terms_of(state))}
        sections.append(Part("Training", pictures=curves, tables=[epochs], folded=True))
    if ranked:
        words = "Queries by average precision: the hardest third, the most ordinary, the easiest."
        sections.append(Part("Ranked results", words, pictures={"queries and what they found": ranked}))
    shown = notable_clusters(seen.features, labels, found.proxies, seen.cameras, each=clusters)
    sheets = {kind: _sheet([_cluster_row(one, seen) for one in some], CLUSTER_LEGEND) for kind, some in shown.items()}
    words = "First the inter-ID proxy; then the intra-ID proxy (1), then members from the farthest from the centre on."
    sections.append(Part("Clusters", words, pictures=sheets))
    noise = noise_to_show(labels)
    if len(noise):
        lines = [_noise_row(int(image), seen) for image in noise]
        words = "Images of no cluster, drawn at random, and the images most similar to each."
        sections.append(Part("Noise", words, pictures={"noise and its nearest": _sheet(lines, NOISE_LEGEND)}))
    intra, inter = pair_similarities(seen.features, labels)
    sections.append(Part("Similarities", pictures={"pairs of clustered images": similarity_chart(intra, inter)}))
    drawn = map_chart(seen.features, labels, found.proxies)
    sections.append(Part("Map", "Distances between groups mean little in such a map.", pictures={"t-SNE": drawn}))
    if known:
        words = "Identities of the train split, which no training has read."
        picture = confusion_chart(labels, seen.objects)
        sections.append(Part("Clusters and identities", words, pictures={"objects and clusters": picture}))
    settings: list[list[object]] = [
        ["setting", "value"],
        *([name, value] for name, value in sorted(state.recipe.items())),
    ]
    sections.append(Part("Settings", tables=[settings], folded=True))
    return sections


def _terms_of(state: TrainState) -> list[str]:
    """The terms of the loss that have a weight; all where the recipe does not say."""
    return [term for term in TERMS if state.recipe.get(f"loss.{term}_weight", 1)]


def _figures(seen: Seen, judged: RetrievalReport | None) -> list[list[object]]:
    """Name and value of what the page is about."""
    rows: list[list[object]] = [["figure", "value"]]
    if judged:
        rows += [[name.removeprefix("val/"), f"{value:.1%}"] for name, value in judged.metrics().items()]
        rows.append(["queries", judged.queries])
    labels = seen.assignment.labels
    rows += [
        ["images clustered", len(labels)],
        ["clusters", seen.assignment.clusters],
        ["noise", f"{(labels < 0).mean():.1%}"],
        ["silhouette", f"{seen.assignment.stats['silhouette']:.3f}"],
    ]
    return rows + [[name, f"{value:.3g}"] for name, value in agreement(labels, seen.objects).items()]


def _cluster_row(one: ShownCluster, seen: Seen) -> SheetRow:
    """The inter-ID proxy, then the intra-ID proxy and other members."""
    centre = seen.assignment.proxies.cluster_sums[one.cluster] / (one.size * max(one.closeness, 1e-12))
    scores = seen.features[one.members] @ centre
    members: list[int] = one.members.tolist()
    objects = seen.objects[seen.assignment.labels == one.cluster]
    names, counts = np.unique(objects[objects != UNKNOWN], return_counts=True)
    usual = int(names[counts.argmax()]) if len(names) else UNKNOWN
    cameras = f"\n{one.cameras} cameras" if one.cameras else ""
    return SheetRow(
        query=_pictures(seen, [one.inter])[0],
        query_caption=_camera(seen, one.inter),
        gallery=_pictures(seen, one.members),
        captions=[f"{score:.2f} {_camera(seen, image)}" for score, image in zip(scores, members, strict=True)],
        correct=[_same(usual, int(seen.objects[image])) for image in members],
        note=f"{one.size} images{cameras}\ncloseness {one.closeness:.2f}",
    )


def _noise_row(image: int, seen: Seen) -> SheetRow:
    """An image of noise and the nine most similar to it."""
    scores = seen.features @ seen.features[image]
    scores[image] = -np.inf
    found = np.argsort(-scores, kind="stable")[:9]
    labels = seen.assignment.labels[found]
    names = ["noise" if label < 0 else f"#{label}" for label in labels]
    return SheetRow(
        query=_pictures(seen, [image])[0],
        query_caption=_camera(seen, image),
        gallery=_pictures(seen, found),
        captions=[f"{scores[one]:.2f} {name}" for one, name in zip(found, names, strict=True)],
        correct=[_same(int(seen.objects[image]), int(seen.objects[one])) for one in found],
        note="",
    )


def _same(one: int, other: int) -> bool | None:
    return None if UNKNOWN in (one, other) else one == other


def _camera(seen: Seen, image: int) -> str:
    camera = int(seen.cameras[image])
    return "" if camera == UNKNOWN else f"c{camera}"


def _pictures(seen: Seen, images: Sequence[int] | ndarray) -> list[ndarray]:
    return [decode(image) for image in seen.store.read(np.asarray(images, np.int64))]


def _sheet(rows: Sequence[SheetRow], legend: Legend) -> bytes:
    picture = io.BytesIO()
    draw_sheet(rows, height=HEIGHT, title="", legend=legend).save(picture, format="PNG")
    return picture.getvalue()


def _place_in_mlflow(config: ReviewConfig) -> tuple[str, Origin] | None:
    """MLflow's URI and the run that the checkpoint lies in; None where it lies in none or nobody asked."""
    found = origin(config.checkpoint) if config.log else None
    uri = config.tracking_uri or (found.tracking_uri if found else None)
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

"""The sections of a page on what a training has learnt: figures, ranked results, clusters, noise, similarities, a map.

Nothing here reads the train split's identities: who may, hands them in (`Seen.objects`).
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from gracl.images.decoding import decode
from gracl.images.shards import ShardStore
from gracl.retrieval.card import card_sections
from gracl.retrieval.page import Part
from gracl.retrieval.review_charts import TERMS, confusion_chart, curves_chart, map_chart, similarity_chart
from gracl.retrieval.sheet import CLUSTER_LEGEND, NOISE_LEGEND, Legend, SheetRow, draw_sheet
from gracl.retrieval.showing import ShownCluster, noise_to_show, notable_clusters, pair_similarities
from gracl.runtime.terminal import COLUMNS, epoch_row
from gracl.types import UNKNOWN, Assignment, RetrievalReport

HEIGHT = 96


@dataclass(frozen=True)
class Seen:
    """The train split as the checkpoint sees it; `objects` are -1 where nobody asked or nobody knows."""

    store: ShardStore
    features: Float32[ndarray, "images dim"]
    cameras: Int64[ndarray, "images"]
    assignment: Assignment
    objects: Int64[ndarray, "images"]


def parts(
    seen: Seen,
    *,
    recipe: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    figures: Sequence[Sequence[object]],
    ranked: bytes | None,
    clusters: int,
) -> list[Part]:
    """The sections of the page.

    Args:
        recipe, history: of the run; a history without epochs has no section.
        figures: lines of name and value that stand above the others.
        ranked: the ranked sheet as PNG; None for none.
        clusters: of each kind on the sheets.
    """
    found, labels = seen.assignment, seen.assignment.labels
    known = (seen.objects != UNKNOWN).any()
    sections = [Part("Figures", tables=[[["figure", "value"], *map(list, figures), *_figures(seen)]])]
    if history:
        epochs = [[title for title, _, _ in COLUMNS], *(epoch_row(row) for row in history)]
        curves = {"by epoch": curves_chart(history, _terms_of(recipe))}
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
    sections += [Part(title, words) for title, words in card_sections().items()]
    settings: list[list[object]] = [
        ["setting", "value"],
        *([name, value] for name, value in sorted(recipe.items())),
    ]
    sections.append(Part("Settings", tables=[settings], folded=True))
    return sections


def judged_lines(judged: RetrievalReport) -> list[list[object]]:
    """Name and value of a report, for `figures`."""
    lines: list[list[object]] = [
        [name.removeprefix("val/"), f"{value:.1%}"] for name, value in judged.metrics().items()
    ]
    return [*lines, ["queries", judged.queries]]


def _terms_of(recipe: Mapping[str, Any]) -> list[str]:
    """The terms of the loss that have a weight; all where the recipe does not say."""
    return [term for term in TERMS if recipe.get(f"loss.{term}_weight", 1)]


def _figures(seen: Seen) -> list[list[object]]:
    """Name and value of what the page is about."""
    labels = seen.assignment.labels
    return [
        ["images clustered", len(labels)],
        ["clusters", seen.assignment.clusters],
        ["noise", f"{(labels < 0).mean():.1%}"],
        ["silhouette", f"{seen.assignment.stats['silhouette']:.3f}"],
    ]


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

"""Pictures of a training and its clusters: curves, similarities, a map of the features, clusters against objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import ndarray
from threadpoolctl import threadpool_limits

from gracl.randomness import rng
from gracl.retrieval.charts import ACROSS, FAINT, INK, MEAN, png
from gracl.types import NOISE, UNKNOWN, Proxies

# Panels of the curves: title, figures with their names, and whether they are shares.
CURVES: tuple[tuple[str, tuple[tuple[str, str], ...], bool], ...] = (
    ("loss", (), False),
    ("clusters", (("cluster/number", "clusters"),), False),
    ("noise", (("cluster/noise_fraction", "noise"),), True),
    ("retrieval", (("val/mAP", "mAP"), ("val/rank1", "Rank-1")), True),
)
TERMS = ("inter", "intra", "instance", "camera")
COLOURS = (INK, MEAN, ACROSS, "#15803d", "#7e22ce")


def curves_chart(history: Sequence[Mapping[str, float]], terms: Sequence[str] = TERMS) -> bytes:
    """A PNG: losses, clusters, noise and retrieval over the epochs; a panel without any figure is left out.

    Args:
        history: the figures of each epoch.
        terms: of the loss that are shown beside it: those that were learnt.
    """
    losses = (("train/loss", "loss"), *((f"train/{term}_loss", term) for term in terms))
    panels = [(title, lines or losses, share) for title, lines, share in CURVES]
    panels = [panel for panel in panels if any(name in row for name, _ in panel[1] for row in history)]
    figure, drawn = _figure(4.0 * len(panels), 3.0, len(panels))
    for panel, (title, lines, share) in zip(drawn, panels, strict=True):
        for colour, (name, words) in zip(COLOURS, lines, strict=False):
            rows = [(row["epoch"], row[name] * (100 if share else 1)) for row in history if name in row]
            if rows:
                panel.plot(*zip(*rows, strict=True), "-o", color=colour, label=words, markersize=3)
        panel.set_title(f"{title} in %" if share else title, fontsize=10, loc="left")
        panel.set_xlabel("epoch", fontsize=8)
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=8, frameon=False)
    return png(figure)


def similarity_chart(intra: Float32[ndarray, "intra"], inter: Float32[ndarray, "inter"]) -> bytes:
    """A PNG: how alike two images of one cluster are, and two of different ones."""
    figure, (panel,) = _figure(6.0, 3.0, 1)
    edges = np.linspace(min(float(inter.min()), -0.2), 1, 61)
    for values, colour, words in ((inter, FAINT, "two clusters"), (intra, MEAN, "one cluster")):
        if not len(values):
            continue
        values = np.clip(values, edges[0], 1)  # rounding may make equal rows more than 1
        panel.hist(values, edges, density=True, color=colour, alpha=0.7, label=f"{words} ({len(values):,} pairs)")
    panel.set_xlabel("cosine similarity", fontsize=8)
    panel.set_yticks([])
    panel.legend(fontsize=8, frameon=False)
    return png(figure)


def map_chart(
    features: Float32[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    proxies: Proxies,
    *,
    most: int = 1500,
) -> bytes:
    """A PNG: the features in two dimensions (t-SNE of van der Maaten and Hinton 2008, from their principal components).

    Colours go round: neighbours of one colour may be two clusters. Noise is grey; a star is an inter-ID proxy, a
    triangle an intra-ID proxy. Of more than `most` images some are drawn, always the same.
    """
    # scikit-learn costs two seconds of the start of every process that could draw this, which all of a training could.
    from sklearn.manifold import TSNE

    some = np.sort(rng(0, "map").permutation(len(features))[:most])
    perplexity = min(30.0, max(2.0, (len(some) - 1) / 4))
    with threadpool_limits(1):  # its threads wait for each other: on a busy machine they take minutes, and one seconds
        places = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(features[some])
    figure, (panel,) = _figure(8.0, 7.0, 1)
    palette = colormaps["tab20"](np.arange(20))
    ours = labels[some]
    noise = ours == NOISE
    panel.scatter(*places[noise].T, 8, color=FAINT, label="noise")
    panel.scatter(*places[~noise].T, 12, c=palette[ours[~noise] % len(palette)])
    for images, marker, words in (
        (proxies.inter_image, "*", "inter-ID proxy"),
        (proxies.intra_image, "^", "intra-ID proxy"),
    ):
        shown = np.isin(some, images)
        panel.scatter(
            *places[shown].T, 45, marker=marker, facecolors="none", edgecolors=INK, linewidths=0.7, label=words
        )
    panel.legend(fontsize=8, loc="upper right")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_title(f"{len(some)} of {len(features)} images", fontsize=10, loc="left")
    return png(figure)


def confusion_chart(labels: Int64[ndarray, "images"], objects: Int64[ndarray, "images"]) -> bytes:
    """A PNG: clusters against the objects on their images; of a perfect clustering, one dark square to each line.

    Rows are objects by size, columns clusters in the order of their most frequent object; the last column is noise.
    An image of an unknown object is left out.
    """
    known = objects != UNKNOWN
    labels, objects = labels[known], objects[known]
    table = _table(labels, objects)
    rows = np.argsort(-table.sum(1), kind="stable")
    table = table[rows]
    order = np.argsort(table[:, 1:].argmax(0), kind="stable")
    table = np.concatenate([table[:, 1:][:, order], table[:, :1]], axis=1)
    figure, (panel,) = _figure(9.0, 7.0, 1)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    image = panel.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=panel, label="share of the object's images")
    panel.set_xlabel(f"{table.shape[1] - 1} clusters with images of them, and noise in the last column", fontsize=8)
    panel.set_ylabel(f"{table.shape[0]} known objects", fontsize=8)
    return png(figure)


def _table(labels: ndarray, objects: ndarray) -> ndarray:
    """Images of each object (row) in each cluster (column); noise is column 0."""
    names, numbers = np.unique(objects, return_inverse=True)
    table = np.zeros((len(names), int(labels.max(initial=NOISE)) + 2), np.int64)
    np.add.at(table, (numbers, labels + 1), 1)
    return table


def _figure(width: float, height: float, panels: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False)[0]

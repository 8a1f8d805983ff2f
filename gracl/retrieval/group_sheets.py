"""What of a grouping is worth a look: which groups, which of their images, and how large groups are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from gracl.retrieval.charts import INK, MEAN, png
from gracl.retrieval.sheet import QUERY, UNJUDGED, Legend
from gracl.types import NOISE, UNKNOWN

GROUP_LEGEND: Legend = ((QUERY, "the image that stands for the group"), (UNJUDGED, "others of the group"))
ALONE_LEGEND: Legend = ((QUERY, "in no group"), (UNJUDGED, "the images most similar to it"))
_BARS = 24


@dataclass(frozen=True)
class ShownGroup:
    """A group on a sheet.

    Attributes:
        group: its number.
        centre: the image that stands for it.
        members: others to show, the least sure first.
        size, cameras: images, and cameras that took them (0: not known of all).
        confidence: mean of its images'.
    """

    group: int
    centre: int
    members: Int64[ndarray, "shown"]
    size: int
    cameras: int
    confidence: float


def mean_confidences(
    labels: Int64[ndarray, "images"], confidence: Float32[ndarray, "images"]
) -> Float64[ndarray, "groups"]:
    """The confidence of each group: the mean of its images'."""
    known = labels != NOISE
    sizes = np.bincount(labels[known])
    return np.asarray(np.bincount(labels[known], confidence[known].astype(np.float64), minlength=len(sizes)) / sizes)


def groups_to_show(
    labels: Int64[ndarray, "images"],
    confidence: Float32[ndarray, "images"],
    centres: Int64[ndarray, "groups"],
    cameras: Int64[ndarray, "images"],
    *,
    each: int = 8,
    members: int = 9,
) -> dict[str, list[ShownGroup]]:
    """The largest groups, the least sure and the surest; of equal ones those with the lowest number.

    With no more groups than one sheet holds, there is one sheet, of all.

    Args:
        labels: 0..G-1, each at least once; -1 is no group.
        confidence: of each image.
        centres: the image that stands for each group.
        cameras: who took each image, -1 where unknown; with an unknown one in a group none are counted.
        each: groups of each kind.
        members: images of each beside the centre, spread evenly from the least sure to the surest.
    """
    sizes, sure = np.bincount(labels[labels != NOISE]), mean_confidences(labels, confidence)
    kinds = {"largest": -sizes, "least sure": sure, "surest": -sure}
    if len(sizes) <= each:
        kinds = {"all": -sizes}

    def shown(group: int) -> ShownGroup:
        mine = np.flatnonzero(labels == group)
        rest = mine[mine != centres[group]]
        rest = rest[np.argsort(confidence[rest], kind="stable")]
        places = np.unique(np.linspace(0, len(rest) - 1, members).round().astype(np.int64)) if len(rest) else rest
        seen = np.unique(cameras[mine])
        return ShownGroup(
            group=group,
            centre=int(centres[group]),
            members=rest[places].astype(np.int64),
            size=int(sizes[group]),
            cameras=0 if UNKNOWN in seen else len(seen),
            confidence=float(sure[group]),
        )

    return {kind: [shown(int(one)) for one in np.argsort(order, kind="stable")[:each]] for kind, order in kinds.items()}


def sizes_chart(sizes: Int64[ndarray, "groups"]) -> bytes:
    """A PNG: how many groups there are of each size; sizes in steps of a factor where they go far."""
    figure = Figure(figsize=(6.0, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    largest = int(sizes.max())
    far = largest > 4 * _BARS
    edges = np.unique(np.geomspace(1, largest + 1, _BARS + 1).round()) if far else np.arange(1, largest + 2)
    panel.hist(sizes, (edges - 0.5).tolist(), color=MEAN, edgecolor="white", linewidth=0.5)
    if far:
        panel.set_xscale("log")
    else:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("images of a group", fontsize=8, color=INK)
    panel.set_ylabel("groups", fontsize=8, color=INK)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    return png(figure)

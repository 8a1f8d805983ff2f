"""'Is this the same one?': the similarity from which on to say yes, for a rate of false matches that is asked for.

Nobody gave identities, so clusters stand for them: two images of different clusters are taken for two objects. Where an
object lies in two clusters, its pairs raise the threshold. Where two objects lie in one cluster, their pairs, the most
similar ones of all, are missing, which lowers it: at low rates there are more false matches than asked for
(docs/use.md has how many were measured). With a few hundred known identities it can be done right: `by="identities"`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from gracl.errors import ClusteringCollapsed, ConfigError, GraclError, StoredIndexError, expected
from gracl.randomness import rng
from gracl.types import NOISE

SCHEMA_VERSION = 1
RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001, 0.000003, 0.000001)
# A rate is read off the pairs above it: below so many of them its uncertainty cannot be told.
FEWEST_PAIRS = 20
ROUNDS = 200
CONFIDENCE = 0.95
_MOST_ROWS = 8192
_BLOCK = 1024


@dataclass(frozen=True)
class Point:
    """Where a share `rate` of the pairs of two clusters is at least as similar as `similarity`.

    `low` and `high` bound it in 95 of 100 draws of the clusters; `found` is the share of pairs of one cluster that are
    at least as similar (0 where clusters are single images), a bound from above for pairs of one object, since clusters
    were made by similarity.
    """

    rate: float
    similarity: float
    low: float
    high: float
    found: float


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a model; `pairs` of different clusters, drawn from `images` in `clusters`, make them.

    `by` says whether clusters were found or are "identities".
    """

    schema_version: int
    model: str
    flip: bool
    by: str
    images: int
    clusters: int
    pairs: int
    points: tuple[Point, ...]

    def to_json(self) -> bytes:
        """As it stands beside a checkpoint."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @staticmethod
    def from_json(content: bytes, place: str) -> "Calibration":
        """What was kept at a place.

        Raises:
            StoredIndexError: it is torn or of another schema.
        """
        try:
            values = json.loads(content)
            if values["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {values['schema_version']}")
            points = tuple(Point(**{name: float(value) for name, value in one.items()}) for one in values["points"])
            found = Calibration(**{**{one.name: values[one.name] for one in fields(Calibration)}, "points": points})
            rates = [point.rate for point in points]
            if not points or rates != sorted(rates, reverse=True) or not all(map(math.isfinite, rates)):
                raise ValueError("rates that do not fall")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoredIndexError(expected(f"a calibration in {place}", repr(error), "calibrate again")) from error
        return found

    def threshold(self, rate: float) -> Point:
        """The point of a rate; between two that were measured on the straight line over the logarithm of the rate.

        Raises:
            ConfigError: a rate beyond what was measured.
        """
        lowest, highest = self.points[-1].rate, self.points[0].rate
        if not lowest <= rate <= highest:
            do = "calibrate on more images, or ask for one of these"
            raise ConfigError(expected(f"a rate from {lowest:g} to {highest:g}, as was measured", f"{rate:g}", do))
        logs = [math.log(point.rate) for point in reversed(self.points)]

        def at(name: str) -> float:
            return float(np.interp(math.log(rate), logs, [getattr(point, name) for point in reversed(self.points)]))

        return Point(rate, *(at(name) for name in ("similarity", "low", "high", "found")))


def calibrate(
    features: Float32[ndarray, "images dim"],
    labels: Int64[ndarray, "images"],
    *,
    model: str,
    flip: bool = False,
    by: Literal["clusters", "identities"] = "clusters",
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> Calibration:
    """Thresholds by the pairs of images of different clusters.

    All pairs of up to 8192 images (drawn where there are more) count alike. The uncertainty is that of the choice of
    clusters, whose pairs hang together: they are drawn again with replacement, whole, 200 times (bootstrap).

    Args:
        features: unit rows.
        labels: the cluster of each image, -1 for noise (or an unknown identity), which takes no part.
        model: digest of the encoder.
        flip: whether the features are averaged with mirror images.
        by: what the labels are.
        rates: of false matches, in falling order; those that the pairs are too few for are left out.
        seed: of the draws.

    Raises:
        ClusteringCollapsed: fewer than two clusters.
        GraclError: so few images that not even the highest rate can be told.
    """
    rows = np.flatnonzero(labels != NOISE)
    rows = np.sort(rng(seed, "calibrate").permutation(rows)[:_MOST_ROWS])
    names, cluster = np.unique(labels[rows], return_inverse=True)
    if len(names) < 2:
        raise ClusteringCollapsed(expected("two clusters or more to calibrate on", len(names), "see relations.eps"))
    sizes = np.bincount(cluster)
    pairs = _pairs(np.ones((1, len(names))), sizes)[0]
    reachable = [rate for rate in rates if rate * pairs >= FEWEST_PAIRS]
    if not reachable:
        what = f"{FEWEST_PAIRS / max(rates):.0f} pairs of different clusters or more"
        raise GraclError(expected(what, f"{pairs:.0f}", "calibrate on more images"))
    most = math.ceil(min(pairs, 4 * max(reachable) * pairs + 1000))
    values, ones, others = _highest(features[rows], cluster, most)
    weights = _draws(len(names), seed)
    drawn = np.array([_quantiles(values, ones, others, row, sizes, reachable) for row in weights])
    found = _quantiles(values, ones, others, np.ones(len(names)), sizes, reachable)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    same = _same(features[rows], cluster)
    points = tuple(
        Point(rate, float(value), float(min(one, value)), float(max(other, value)), _share(same, float(value)))
        for rate, value, one, other in zip(reachable, found, low, high, strict=True)
    )
    return Calibration(SCHEMA_VERSION, model, flip, by, len(rows), len(names), int(pairs), points)


def _pairs(weights: Float64[ndarray, "draws clusters"], sizes: Int64[ndarray, "clusters"]) -> Float64[ndarray, "draws"]:
    """How many pairs of different clusters there are where each cluster is there `weights` times."""
    counts = weights * sizes
    # A cluster that was drawn twice makes no pairs with itself: they would be of one object.
    return np.asarray((counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)) / 2)


def _highest(
    features: Float32[ndarray, "images dim"], cluster: Int64[ndarray, "images"], most: int
) -> tuple[Float32[ndarray, "pairs"], Int64[ndarray, "pairs"], Int64[ndarray, "pairs"]]:
    """The most similar pairs of different clusters, most similar first, and the two clusters of each."""
    values, ones, others = np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start in range(0, len(features), _BLOCK):
        stop = min(start + _BLOCK, len(features))
        scores = features[start:stop] @ features.T
        wanted = np.arange(len(features)) > np.arange(start, stop)[:, None]
        wanted &= cluster[start:stop, None] != cluster
        if len(values) == most:
            wanted &= scores > values[-1]
        row, column = np.nonzero(wanted)
        values = np.concatenate([values, scores[row, column]])
        ones, others = np.concatenate([ones, cluster[start + row]]), np.concatenate([others, cluster[column]])
        best = np.argsort(-values, kind="stable")[:most]
        values, ones, others = values[best], ones[best], others[best]
    return values, ones, others


def _draws(clusters: int, seed: int) -> Float64[ndarray, "draws clusters"]:
    """How often each cluster is there in each draw; in each draw two at least."""
    dice = rng(seed, "calibrate", "bootstrap")
    drawn = dice.multinomial(clusters, np.full(clusters, 1 / clusters), ROUNDS)
    return np.asarray(drawn[(drawn > 0).sum(axis=1) >= 2], np.float64)


def _quantiles(
    values: Float32[ndarray, "pairs"],
    ones: Int64[ndarray, "pairs"],
    others: Int64[ndarray, "pairs"],
    weights: Float64[ndarray, "clusters"],
    sizes: Int64[ndarray, "clusters"],
    rates: Sequence[float],
) -> Float64[ndarray, "rates"]:
    """The similarity that a share of the weighted pairs reaches, for each rate."""
    heights = np.cumsum(weights[ones] * weights[others])
    wanted = np.asarray(rates) * _pairs(weights[None], sizes)[0]
    places = np.minimum(np.searchsorted(heights, wanted), len(values) - 1)
    return np.asarray(values[places], np.float64)


def _share(similarities: Float32[ndarray, "pairs"], at_least: float) -> float:
    return float((similarities >= at_least).mean()) if len(similarities) else 0.0


def _same(features: Float32[ndarray, "images dim"], cluster: Int64[ndarray, "images"]) -> Float32[ndarray, "pairs"]:
    """Similarities of the pairs of one cluster."""
    order = np.argsort(cluster, kind="stable")
    edges = np.cumsum(np.bincount(cluster))[:-1]
    found: list[Any] = [np.zeros(0, np.float32)]
    for mine in np.split(order, edges):
        scores = features[mine] @ features[mine].T
        found.append(scores[np.triu_indices(len(mine), 1)])
    return np.concatenate(found)

"""What becomes of an epoch with too few clusters: it stops the run, or falls back on older labels or a larger eps.

A clustering *collapses* when it finds fewer clusters than `least_clusters`: none, one, or fewer than a batch has places
for. What was done is told three times: in the log, in the epoch's figures, and at the terminal, which reads these.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Int64
from numpy import ndarray

from gracl.errors import ConfigError, GraclError, expected
from gracl.types import NOISE

OnCollapse = Literal["stop", "keep_previous", "relax_eps"]
LOG = logging.getLogger("gracl.relations")


@dataclass(frozen=True)
class Fallback:
    """What is done where clusters are too few.

    Attributes:
        on_collapse: "stop" refuses the epoch; "keep_previous" takes the labels of the epoch before; "relax_eps" raises
            eps until there are enough.
        least_clusters: clusters that are enough, 2 or more.
        relax_factor: eps is multiplied by this at each try, above 1.
        relax_tries: at most so many, 1 or more.
    """

    on_collapse: OnCollapse = "stop"
    least_clusters: int = 2
    relax_factor: float = 1.1
    relax_tries: int = 5

    def check(self, clustering: str) -> None:
        """Refuses what no epoch could be told by.

        Raises:
            ConfigError: a word that there is not, a number out of range, or relax_eps where eps is not what decides.
        """
        if self.on_collapse not in get_args(OnCollapse):
            words = ", ".join(get_args(OnCollapse))
            raise ConfigError(expected(f"on_collapse of {words}", repr(self.on_collapse), "set it to stop"))
        if self.least_clusters < 2 or self.relax_factor <= 1 or self.relax_tries < 1:
            came = f"{self.least_clusters}, {self.relax_factor:g} and {self.relax_tries}"
            what = "least_clusters of 2 or more, relax_factor above 1 and relax_tries of 1 or more"
            raise ConfigError(expected(what, came, "leave them as they are: 2, 1.1 and 5"))
        if self.on_collapse == "relax_eps" and clustering != "dbscan":
            what = "relations.clustering=dbscan with on_collapse=relax_eps"
            advice = "set relations.on_collapse=keep_previous, or stop"
            raise ConfigError(expected(what, f"clustering={clustering}", advice))


@dataclass(frozen=True)
class Settled:
    """Labels that are enough, and how they came about; or those that are not, and what was tried.

    `figures` are for the epoch's: `collapsed` (0 or 1), and in a collapse `found` (clusters at first) with
    `kept_previous` (1) or `relax_tries` and, for each try, `relax_1_eps`, `relax_1_clusters` and so on. There are none
    with "stop".
    """

    labels: Int64[ndarray, "images"]
    eps: float
    figures: dict[str, float]
    tried: str = ""


def settle(
    labels: Int64[ndarray, "images"],
    fallback: Fallback,
    *,
    eps: float,
    largest: float,
    again: Callable[[float], Int64[ndarray, "images"]],
    previous: Int64[ndarray, "images_before"] | None = None,
    epoch: int = 0,
) -> Settled:
    """Does what the fallback says where clusters are too few; whether they are enough then is for the caller to check.

    Args:
        labels: -1 is noise, else 0..C-1.
        fallback: what to do.
        eps: at which they were made.
        largest: eps stays below this.
        again: labels at another eps.
        previous: labels of the epoch before, where there was one.
        epoch: for the log.

    Raises:
        GraclError: previous labels of other images.
    """
    found = _count(labels)
    if found >= fallback.least_clusters or fallback.on_collapse == "stop":
        return Settled(labels, eps, {} if fallback.on_collapse == "stop" else {"collapsed": 0.0})
    settled = (
        _kept(labels, previous, eps)
        if fallback.on_collapse == "keep_previous"
        else _relaxed(labels, fallback, eps, largest, again)
    )
    figures = {"collapsed": 1.0, "found": float(found)} | settled.figures
    LOG.warning("epoch %d: %s", epoch + 1, words(figures))
    return Settled(settled.labels, settled.eps, figures, settled.tried)


def words(figures: Mapping[str, float]) -> str:
    """A collapse in a sentence, from its figures; "" where there was none."""
    if not figures.get("collapsed"):
        return ""
    begun = f"the clustering collapsed to {figures['found']:.0f} clusters"
    if figures.get("kept_previous"):
        return f"{begun}; the labels of the epoch before were kept, with proxies mined anew"
    tries = int(figures.get("relax_tries", 0))
    told = [f"eps={figures[f'relax_{n}_eps']:.3g} gave {figures[f'relax_{n}_clusters']:.0f}" for n in _upto(tries)]
    return f"{begun}; {', '.join(told) or 'nothing could be tried'}"


def _kept(labels: Int64[ndarray, "images"], previous: Int64[ndarray, "images_before"] | None, eps: float) -> Settled:
    if previous is None:
        return Settled(labels, eps, {}, "and there are no labels of an epoch before it that could be kept")
    if len(previous) != len(labels):
        raise GraclError(
            expected(f"previous labels of {len(labels)} images", len(previous), "take those of the same split")
        )
    return Settled(previous, eps, {"kept_previous": 1.0})


def _relaxed(
    labels: Int64[ndarray, "images"],
    fallback: Fallback,
    eps: float,
    largest: float,
    again: Callable[[float], Int64[ndarray, "images"]],
) -> Settled:
    """Tries larger eps while they can help: where nobody is noise a larger eps only joins what there is."""
    figures, told = dict[str, float](), list[str]()
    for number in _upto(fallback.relax_tries):
        wider = eps * fallback.relax_factor
        if wider >= largest or (labels != NOISE).all():
            break
        eps, labels = wider, again(wider)
        clusters = _count(labels)
        figures |= {f"relax_{number}_eps": eps, f"relax_{number}_clusters": float(clusters)}
        told.append(f"{clusters} at {eps:.3g}")
        if clusters >= fallback.least_clusters:
            break
    figures["relax_tries"] = float(len(told))
    why = f"and a larger eps gave {', '.join(told)}" if told else "and a larger eps could not help"
    return Settled(labels, eps, figures, why)


def _upto(tries: int) -> range:
    return range(1, tries + 1)


def _count(labels: Int64[ndarray, "images"]) -> int:
    return int(labels.max(initial=NOISE)) + 1

"""Runs set side by side: what each arm reached on each data set, and how it differs from the baseline seed by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gracl.errors import GraclError, expected

METRICS = {"val/mAP": "mAP", "val/rank1": "Rank-1"}


@dataclass(frozen=True)
class RunRecord:
    """What is kept of one finished run. Shares are between 0 and 1; None where it was not judged or is not known.

    Attributes:
        arm, data, seed: which run of the comparison it is.
        run: its name in the runs folder.
        epochs: completed.
        fingerprint: of its recipe.
        cameras: what of the training used the train split's cameras, in words; "" for nothing.
        mean_ap, rank1: at the last epoch.
        best: the highest figure of `best_by` over the judged epochs: a choice on the splits that are judged.
        best_epoch: epochs completed then.
        untrained: `best_by` before the first epoch.
        epoch_seconds: median over the epochs, the evaluation not counted.
        clusters, noise: of the labels that the final weights give.
        ari, nmi, purity, ari_all, objects: how these agree with the true objects, see `agreement`.
        note: why there are no such labels.
    """

    arm: str
    data: str
    seed: int
    run: str
    epochs: int
    fingerprint: str
    cameras: str
    mean_ap: float
    rank1: float
    best_by: str
    best: float
    best_epoch: int
    untrained: float | None
    epoch_seconds: float
    clusters: float | None = None
    noise: float | None = None
    ari: float | None = None
    nmi: float | None = None
    purity: float | None = None
    ari_all: float | None = None
    objects: float | None = None
    note: str = ""

    def reached(self, metric: str) -> float:
        """One of `METRICS` at the last epoch."""
        return {"val/mAP": self.mean_ap, "val/rank1": self.rank1}[metric]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of the values that are known; None where there are too few."""

    mean: float | None
    deviation: float | None
    count: int

    @staticmethod
    def of(values: Sequence[float | None]) -> "Spread":
        """The spread of values; None among them is not counted."""
        known = [value for value in values if value is not None]
        return Spread(
            math.fsum(known) / len(known) if known else None,
            statistics.stdev(known) if len(known) > 1 else None,
            len(known),
        )


@dataclass(frozen=True)
class ArmSummary:
    """One arm on one data set, over its seeds.

    Attributes:
        records: of its finished runs, in order of seeds.
        figures: the spread of each of `SPREAD` over them.
        pairs: metric less that of the baseline, for each seed that both have; none for the baseline itself.
    """

    data: str
    arm: str
    records: tuple[RunRecord, ...]
    figures: Mapping[str, Spread]
    pairs: tuple[float, ...]

    def reached(self, metric: str) -> Spread:
        """The spread of one of `METRICS` at the last epoch."""
        return Spread.of([record.reached(metric) for record in self.records])

    @property
    def difference(self) -> Spread:
        """The spread of the pairs."""
        return Spread.of(self.pairs)

    @property
    def better(self) -> int:
        """Pairs in which the arm is above the baseline."""
        return sum(pair > 0 for pair in self.pairs)

    @property
    def cameras(self) -> str:
        """What of the training used cameras, in words."""
        return self.records[0].cameras or "no"


SPREAD = (
    *("mean_ap", "rank1", "best", "untrained", "epoch_seconds", "clusters", "noise"),
    *("ari", "nmi", "purity", "ari_all", "objects"),
)


def summarise(records: Sequence[RunRecord], *, baseline: str, metric: str) -> list[ArmSummary]:
    """Arms by data set, both in the order in which they first come; each data set has the baseline's runs beside it.

    Args:
        records: of finished runs, each (arm, data, seed) once.
        baseline: the arm that the others are compared with, by pairs of the same seed.
        metric: one of `METRICS`.

    Raises:
        GraclError: the same arm, data and seed twice.
    """
    keys = [(one.data, one.arm, one.seed) for one in records]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise GraclError(expected("each run once", f"{twice} more than once", "give the comparison each record once"))
    values = {key: one.reached(metric) for key, one in zip(keys, records, strict=True)}
    return [
        _arm(data, arm, [one for one in records if (one.data, one.arm) == (data, arm)], values, baseline)
        for data in dict.fromkeys(one.data for one in records)
        for arm in dict.fromkeys(one.arm for one in records if one.data == data)
    ]


def _arm(
    data: str, arm: str, records: list[RunRecord], values: Mapping[tuple[str, str, int], float], baseline: str
) -> ArmSummary:
    records = sorted(records, key=lambda one: one.seed)
    pairs = tuple(
        values[data, arm, one.seed] - values[data, baseline, one.seed]
        for one in records
        if arm != baseline and (data, baseline, one.seed) in values
    )
    return ArmSummary(
        data=data,
        arm=arm,
        records=tuple(records),
        figures={name: Spread.of([getattr(one, name) for one in records]) for name in SPREAD},
        pairs=pairs,
    )

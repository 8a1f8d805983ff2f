"""The slow twin of gracl.retrieval.comparison: one arm on one data set, by loops over all records."""

import math

from gracl.retrieval.comparison import RunRecord


def mean_and_deviation(values: list[float]) -> tuple[float | None, float | None]:
    """The mean, and the root of the squared distances to it over n - 1."""
    if not values:
        return None, None
    total = 0.0
    for value in values:
        total += value
    mean = total / len(values)
    if len(values) == 1:
        return mean, None
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    return mean, math.sqrt(squares / (len(values) - 1))


def differences(records: list[RunRecord], arm: str, data: str, baseline: str) -> list[float]:
    """mAP of the arm less that of the baseline for every pair of runs of one seed, by seed."""
    found = []
    for mine in records:
        for other in records:
            paired = (mine.arm, other.arm, mine.data, other.data) == (arm, baseline, data, data)
            if paired and arm != baseline and mine.seed == other.seed:
                found.append((mine.seed, mine.mean_ap - other.mean_ap))
    return [gap for _, gap in sorted(found)]

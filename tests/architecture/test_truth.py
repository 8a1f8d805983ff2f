"""The train split's identities are judged by after a training; no file that trains knows of those that read them."""

import pytest

from tests.architecture.imports import imports, sources

FILES = sources("gracl", "pipelines", "benchmarks")
ARROWS = {module: {name for name, _ in imports(path) if name in FILES} for module, path in FILES.items()}
JUDGES = {"gracl.runtime.truth", "gracl.retrieval.agreement"}
TRAINING = (
    "gracl.runtime.train",
    "gracl.runtime.worker",
    "gracl.runtime.relation_actor",
    "gracl.local",
    "pipelines.train",
)


def known_to(module: str) -> set[str]:
    """Every file of ours that is imported with a module."""
    found, new = set(), {module}
    while new:
        found |= new
        new = {other for one in new for other in ARROWS[one]} - found
    return found


@pytest.mark.parametrize("module", TRAINING)
def test_who_trains_does_not_know_who_judges_labels(module):
    assert known_to(module) & JUDGES == set()


def test_only_a_comparison_a_review_and_a_calibration_ask_for_the_truth():
    asking = [module for module, names in ARROWS.items() if "gracl.runtime.truth" in names]
    assert asking == ["gracl.runtime.calibrate", "gracl.runtime.review", "gracl.runtime.trial"]
    asking = [module for module, names in ARROWS.items() if "gracl.retrieval.agreement" in names]
    # These two benchmarks learn nothing: they have labels or groups and say how good they are.
    judging = ["benchmarks.bench_clusterings", "benchmarks.bench_surroundings"]
    assert asking == ["gracl.runtime.review", "gracl.runtime.truth", *judging]

"""The rate that extract says, by when parts were done. Extracting itself: tests/ray/test_extract.py."""

import pytest

from gracl.runtime.extract import rate_of


@pytest.mark.parametrize(("workers", "parts"), [(1, 8), (2, 6), (4, 8), (8, 64)])
def test_the_rate_is_that_of_all_workers_whoever_is_first(workers, parts):
    # Each does 100 images a second and begins after a start of 7 s; none is quite as quick as the next.
    done = [(7 + one * (1 + 0.01 * worker), 100) for worker in range(workers) for one in range(1, parts // workers + 1)]
    assert rate_of(done[::-1], workers) == pytest.approx(100 * workers, rel=0.35)


def test_by_hand():
    assert rate_of([(3.0, 10), (1.0, 10), (2.0, 10), (5.0, 4)], 1) == pytest.approx(24 / 4)
    assert rate_of([(3.0, 10), (1.0, 10), (2.0, 10), (5.0, 4)], 2) == pytest.approx(14 / 3)


def test_who_has_but_one_part_has_no_rate():
    assert rate_of([(3.0, 10)], 1) is None
    assert rate_of([(3.0, 10), (3.01, 10)], 2) is None

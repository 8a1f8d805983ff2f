import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracl.errors import ConfigError
from gracl.randomness import rng
from gracl.retrieval import expansion
from gracl.retrieval.expansion import expand
from tests.naive import retrieval as naive


def unit_rows(seed, rows, dim=4):
    drawn = rng(seed, "expansion", rows).standard_normal((rows, dim))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(2, 12),
    st.integers(1, 11),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_equals_its_naive_twin(seed, queries, images, k, alpha):
    k = min(k, images - 1)
    query, gallery = unit_rows(seed, queries), unit_rows(seed + 1, images)
    mine, theirs = expand(query, gallery, k=k, alpha=alpha, database=True)
    np.testing.assert_allclose(mine, naive.expand(query, gallery, k, alpha, itself=False), atol=1e-6)
    np.testing.assert_allclose(theirs, naive.expand(gallery, gallery, k, alpha, itself=True), atol=1e-6)
    alone, untouched = expand(query, gallery, k=k, alpha=alpha)
    assert np.array_equal(alone, mine)
    assert untouched is gallery


def test_copies_join_in_order_of_index():
    query, ones = unit_rows(1, 3), unit_rows(2, 2)
    gallery = np.concatenate([ones, ones, ones])
    for k in range(1, 6):
        mine, theirs = expand(query, gallery, k=k, alpha=1.0, database=True)
        np.testing.assert_allclose(mine, naive.expand(query, gallery, k, 1.0, itself=False), atol=1e-6)
        np.testing.assert_allclose(theirs, naive.expand(gallery, gallery, k, 1.0, itself=True), atol=1e-6)


def test_a_case_one_can_check_in_the_head():
    # Similarities 0.8, 0 and -1: the average is that of the query and the first row.
    query = np.array([[1.0, 0.0]], np.float32)
    gallery = np.array([[0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    mine, _ = expand(query, gallery, k=3, alpha=0.0)
    np.testing.assert_allclose(mine, np.array([[1.8, 0.6]]) / np.sqrt(1.8**2 + 0.6**2), atol=1e-7)
    mine, _ = expand(query, gallery, k=3, alpha=2.0)
    sums = np.array([[1 + 0.64 * 0.8, 0.64 * 0.6]])
    np.testing.assert_allclose(mine, sums / np.linalg.norm(sums), atol=1e-7)


def test_rows_at_a_time_change_no_bit(monkeypatch):
    query, gallery = unit_rows(3, 20), unit_rows(4, 30)
    made = expand(query, gallery, k=4, database=True)
    monkeypatch.setattr(expansion, "_ROWS", 7)
    for one, other in zip(expand(query, gallery, k=4, database=True), made, strict=True):
        assert np.array_equal(one, other)


def test_wrong_input_is_refused():
    query, gallery = unit_rows(5, 2), unit_rows(6, 4)
    for options in ({"k": 0}, {"alpha": -1.0}, {"alpha": np.inf}, {"alpha": np.nan}):
        with pytest.raises(ConfigError, match="k >= 1 and a finite alpha >= 0"):
            expand(query, gallery, **options)
    with pytest.raises(ConfigError, match="expansion.k of at most 4 other gallery images; came 5"):
        expand(query, gallery, k=5)
    with pytest.raises(ConfigError, match="expansion.k of at most 3 other gallery images; came 4"):
        expand(query, gallery, k=4, database=True)

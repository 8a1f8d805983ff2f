import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.cluster import DBSCAN

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.clusters import dbscan
from tests.naive import relations as naive


def sparse(matrix):
    """Stores what is below 1, zeros included."""
    rows, columns = np.nonzero(matrix < 1)
    starts = np.concatenate([[0], np.cumsum((matrix < 1).sum(axis=1))])
    return csr_array((matrix[rows, columns].astype(np.float32), columns, starts), shape=matrix.shape)


def random_distance(seed, rows, reach):
    """Symmetric, with ties, with distances exactly at 0.6, and with zeros off the diagonal."""
    dice = rng(seed, "distance")
    upper = np.triu(np.where(dice.random((rows, rows)) < reach, dice.integers(0, 10, (rows, rows)) / 10, 1), 1)
    matrix = upper + upper.T
    return matrix.astype(np.float32)


@pytest.mark.parametrize("seed", range(60))
def test_is_dbscan_by_graph_search_and_scikit_learns(seed):
    dice = rng(seed, "case")
    rows, min_samples = int(dice.integers(1, 60)), int(dice.integers(1, 6))
    matrix = random_distance(seed, rows, reach=float(dice.uniform(0.02, 0.3)))
    found = dbscan(sparse(matrix), eps=0.6, min_samples=min_samples)
    np.testing.assert_array_equal(found, naive.dbscan(matrix, np.float32(0.6), min_samples))
    theirs = DBSCAN(eps=0.6, min_samples=min_samples, metric="precomputed").fit_predict(matrix)
    np.testing.assert_array_equal(found, naive.by_first_member(theirs))


def line(*edges, rows):
    """A distance matrix with these pairs at 0.1."""
    matrix = np.ones((rows, rows), np.float32)
    np.fill_diagonal(matrix, 0)
    for i, j in edges:
        matrix[i, j] = matrix[j, i] = 0.1
    return sparse(matrix)


def test_a_border_row_joins_the_cluster_with_the_lowest_core_row():
    # Row 0 touches row 5 of the triangle {1, 3, 5} and row 2 of {2, 4, 6}: at 4 samples these two alone are core.
    edges = [(1, 3), (3, 5), (1, 5), (2, 4), (4, 6), (2, 6), (0, 5), (0, 2)]
    assert dbscan(line(*edges, rows=7), min_samples=4).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert dbscan(line(*edges, rows=7), min_samples=3).tolist() == [0] * 7  # row 0 is core, too, and a bridge


def test_numbers_go_by_first_member_even_if_that_is_no_core_row():
    # Cluster of core 2 has member 1; cluster of core 3 has border member 0.
    edges = [(3, 0), (3, 4), (3, 5), (2, 1), (2, 6), (2, 7)]
    assert dbscan(line(*edges, rows=8), min_samples=4).tolist() == [0, 1, 1, 0, 0, 0, 1, 1]


def test_the_edges():
    assert dbscan(line(rows=5)).tolist() == [-1] * 5
    assert dbscan(line(rows=3), min_samples=1).tolist() == [0, 1, 2]
    assert dbscan(line(rows=1)).tolist() == [-1]
    assert dbscan(sparse(np.zeros((6, 6)))).tolist() == [0] * 6
    assert dbscan(csr_array((0, 0), dtype=np.float32)).tolist() == []


def test_the_diagonal_need_not_be_stored():
    without = csr_array(
        (np.full(2, 0.2, np.float32), np.array([1, 0], np.int32), np.array([0, 1, 2], np.int32)), shape=(2, 2)
    )
    assert dbscan(without, min_samples=2).tolist() == [0, 0]
    assert dbscan(without, min_samples=3).tolist() == [-1, -1]


def test_eps_is_taken_in_the_precision_of_the_matrix():
    # As a double, float32(0.6) is above 0.6; the dense algorithm compares in float32.
    assert dbscan(sparse(np.array([[0, 0.6], [0.6, 0]])), eps=0.6, min_samples=2).tolist() == [0, 0]


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"eps": 1.0}, {"eps": float("nan")}, {"min_samples": 0}])
def test_refuses_options(options):
    with pytest.raises(ConfigError, match="0 < eps < 1"):
        dbscan(line(rows=3), **options)


def test_refuses_a_matrix_that_is_not_square():
    with pytest.raises(GraclError, match="square"):
        dbscan(csr_array((2, 3), dtype=np.float32))

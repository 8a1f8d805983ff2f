import numpy as np
import pytest

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.jaccard import jaccard_distance
from gracl.similarity import nearest
from gracl.types import Neighbors
from tests.naive import relations as naive


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(seed, rows, dim=6, centres=4, spread=0.35, copies=0):
    """Rows around a few centres, some of them exact copies of others."""
    dice = rng(seed, "blobs")
    features = unit(
        dice.standard_normal((centres, dim))[dice.integers(0, centres, rows)]
        + spread * dice.standard_normal((rows, dim))
    )
    if copies:
        features[dice.integers(0, rows, copies)] = features[dice.integers(0, rows, copies)]
    return features


def distance(features, *, k1, k2, **options):
    return jaccard_distance(nearest(features, k1, threads=1), features, k1=k1, k2=k2, **options)


def dense(matrix):
    """The matrix with 1 where nothing is stored."""
    full = np.ones(matrix.shape)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    full[rows, matrix.indices] = matrix.data
    return full


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (2, 1), (3, 2), (5, 3), (8, 1), (9, 4), (12, 6), (13, 13), (30, 6)])
@pytest.mark.parametrize(("seed", "rows", "copies"), [(0, 35, 0), (1, 36, 12), (2, 9, 3)])
def test_is_the_dense_distance_by_definition(seed, rows, copies, k1, k2):
    features = blobs(seed, rows, copies=copies)
    table = nearest(features, k1, threads=1)
    found = jaccard_distance(table, features, k1=k1, k2=k2, threads=1)
    np.testing.assert_allclose(dense(found), naive.jaccard(table.indices, features, k1, k2), atol=2e-6)


@pytest.mark.parametrize("seed", range(40))
def test_random_small_cases(seed):
    dice = rng(seed, "case")
    rows, k1 = int(dice.integers(1, 24)), int(dice.integers(1, 14))
    k2 = int(dice.integers(1, k1 + 1))
    features = blobs(seed, rows, dim=3, copies=rows // 3)
    table = nearest(features, k1, threads=1)
    found = jaccard_distance(table, features, k1=k1, k2=k2)
    np.testing.assert_allclose(dense(found), naive.jaccard(table.indices, features, k1, k2), atol=2e-6)


def test_stores_what_is_below_one_and_the_diagonal():
    features = blobs(3, 80)
    found = distance(features, k1=6, k2=3)
    assert found.dtype == np.float32
    assert (found.data < 1).all()
    assert (found.data >= 0).all()
    assert (found.diagonal() == 0).all()
    assert all(row in found.indices[found.indptr[row] : found.indptr[row + 1]] for row in range(80))
    assert found.nnz < 80 * 80
    assert (dense(found) < 1).sum() == found.nnz


def test_is_exactly_symmetric_and_sorted():
    full = distance(blobs(4, 200), k1=10, k2=4)
    np.testing.assert_array_equal(dense(full), dense(full).T)
    for row in range(200):
        assert (np.diff(full.indices[full.indptr[row] : full.indptr[row + 1]]) > 0).all()


def test_does_not_depend_on_threads():
    features = blobs(5, 700, copies=100)
    reference = distance(features, k1=12, k2=4, threads=1)
    for threads in (0, 2, 3):
        found = distance(features, k1=12, k2=4, threads=threads)
        for name in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(found, name), getattr(reference, name))


def test_limit_leaves_out_only_what_is_above():
    features = blobs(6, 150)
    full, near = dense(distance(features, k1=10, k2=4)), distance(features, k1=10, k2=4, limit=0.6)
    assert ((full > 0.6) & (full < 1)).any()
    np.testing.assert_array_equal(dense(near), np.where(full <= np.float32(0.6), full, 1))


def test_a_longer_table_is_cut_to_k1():
    features = blobs(7, 60)
    found = jaccard_distance(nearest(features, 40), features, k1=8, k2=3)
    np.testing.assert_array_equal(dense(found), dense(distance(features, k1=8, k2=3)))


def test_copies_are_at_distance_zero_and_strangers_out_of_reach():
    features = unit([[1, 0]] * 3 + [[0, 1]] * 3)
    found = distance(features, k1=3, k2=3)
    np.testing.assert_allclose(dense(found), np.kron(1 - np.eye(2), np.ones((3, 3))), atol=1e-6)
    assert found.nnz == 18


def test_one_row_and_no_row():
    one = distance(unit([[3, 4]]), k1=30, k2=6)
    assert (one.shape, one.nnz, one.data.tolist()) == ((1, 1), 1, [0.0])
    none = distance(np.empty((0, 4), np.float32), k1=30, k2=6)
    assert (none.shape, none.nnz) == ((0, 0), 0)


def test_tells_how_far_it_is():
    told = []
    distance(blobs(8, 300), k1=5, k2=2, threads=1, progress=lambda *at: told.append(at))
    assert told[-1] == (300, 300)
    assert told == sorted(told)


@pytest.mark.parametrize("options", [{"k1": 0, "k2": 0}, {"k1": 3, "k2": 4}, {"limit": 0.0}, {"limit": 1.5}])
def test_refuses_options(options):
    features = blobs(9, 20)
    with pytest.raises(ConfigError, match="k2 <= k1|limit <= 1"):
        jaccard_distance(nearest(features, 10), features, **{"k1": 5, "k2": 2, **options})


def test_refuses_tables_that_do_not_belong():
    features = blobs(9, 20)
    table = nearest(features, 10)
    swapped = Neighbors(indices=table.indices[::-1].copy(), similarities=table.similarities)
    outside = table.indices.copy()
    outside[3, 4] = 20
    long = Neighbors(indices=table.indices, similarities=table.similarities * 2)
    cases = [
        (table, features[:10], "table of 20 x 10"),
        (nearest(features, 4), features, "5 neighbours"),
        (swapped, features, "first in its own list"),
        (Neighbors(indices=outside, similarities=table.similarities), features, "rows 0..19"),
        (long, features, "unit rows"),
    ]
    for neighbors, rows, says in cases:
        with pytest.raises(GraclError, match=says):
            jaccard_distance(neighbors, rows, k1=5, k2=2)

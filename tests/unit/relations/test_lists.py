import numpy as np
import pytest

from gracl.randomness import rng
from gracl.relations.lists import averaged, grown, invert, join, mirror, nearby


def random_dense(seed, rows):
    dice = rng(seed, "dense")
    return np.where(dice.random((rows, rows)) < 0.3, dice.random((rows, rows)), 0).astype(np.float32)


def lists_of(matrix, keep, dice):
    """The kept entries of a dense matrix as lists, each in random order."""
    parts = []
    for i, row in enumerate(matrix):
        ids = dice.permutation([j for j in range(len(row)) if keep(i, j) and (row[j] or i == j)]).astype(np.int32)
        parts.append((np.array([len(ids)]), ids, row[ids]))
    return join(parts)


def test_join_of_nothing_and_of_parts():
    assert [part.tolist() for part in join([])] == [[0], [], [], []]
    part = (np.array([2, 0]), np.array([4, 1], np.int32), np.array([0.5, 0.25], np.float32))
    starts, ids, values, names = (part.tolist() for part in join([part, part]))
    assert (starts, ids, values) == ([0, 2, 2, 4, 4], [4, 1, 4, 1], [0.5, 0.25, 0.5, 0.25])
    assert names == [0, 1, 2, 3]
    assert join([part], np.array([1, 0])).names.tolist() == [1, 0]


def test_grown_keeps_what_was_and_makes_room():
    ids, values = np.arange(4, dtype=np.int32), np.ones(4, np.float32)
    assert grown(ids, values, 4)[0].size == 4
    more = grown(ids, values, 5)
    assert (more[0].size, more[0][:4].tolist(), more[1][:4].tolist()) == (8, [0, 1, 2, 3], [1.0] * 4)
    assert grown(ids, values, 100)[0].size == 100


@pytest.mark.parametrize(("seed", "rows"), [(0, 1), (1, 2), (2, 13)])
def test_invert_lists_the_holders_of_every_id(seed, rows):
    matrix = random_dense(seed, rows)
    lists = lists_of(matrix, lambda i, j: matrix[i, j] > 0, rng(seed, "order"))
    heads, holders, weights, places = invert(lists)
    for j in range(rows):
        expect = [(i, matrix[i, j]) for i in range(rows) if matrix[i, j]]
        part = slice(heads[j], heads[j + 1])
        assert list(zip(holders[part].tolist(), weights[part], strict=True)) == expect
    assert (weights[heads[lists.ids] + places] == lists.values).all()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rows", [1, 2, 3, 17])
def test_mirror_makes_the_symmetric_matrix_of_the_images(seed, rows):
    dice = rng(seed, "mirror", rows)
    matrix = random_dense(seed, rows)
    np.fill_diagonal(matrix, 0)
    symmetric = np.triu(matrix) + np.triu(matrix).T
    names = dice.permutation(rows)
    here = symmetric[np.ix_(names, names)]
    one_way = dice.random((rows, rows)) < 0.5  # each pair is held by either of its rows
    one_way = np.where(np.tri(rows, k=-1, dtype=bool), ~one_way.T, one_way) | np.eye(rows, dtype=bool)
    half = lists_of(here, lambda i, j: one_way[i, j], dice)._replace(names=names)
    starts, ids, values = mirror(half)
    for i in range(rows):
        part = slice(starts[i], starts[i + 1])
        assert ids[part].tolist() == [j for j in range(rows) if symmetric[i, j] or i == j]
        assert values[part].tolist() == symmetric[i, ids[part]].tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_averaged_is_the_mean_of_the_leaders_that_there_are(threads):
    matrix = random_dense(5, 150)
    lists = lists_of(matrix, lambda i, j: matrix[i, j] > 0, rng(5, "order"))
    leaders = np.stack([rng(5, "leaders", row).permutation(150)[:4] for row in range(150)]).astype(np.int32)
    leaders[::3, 1] = -1
    found = averaged(lists, leaders, threads=threads)
    for row in range(150):
        expect = matrix[[j for j in leaders[row] if j >= 0]].mean(axis=0, dtype=np.float64)
        part = slice(found.starts[row], found.starts[row + 1])
        assert sorted(found.ids[part].tolist()) == np.flatnonzero(expect).tolist()
        np.testing.assert_allclose(found.values[part], expect[found.ids[part]], rtol=1e-6)


def test_nearby_brings_rows_of_one_group_together():
    groups = rng(6, "groups").integers(0, 40, 2000)
    table = np.stack([rng(6, row).choice(np.flatnonzero(groups == groups[row]), 6) for row in range(2000)])
    table[:, 5] = -1
    order = nearby(table.astype(np.int32))
    assert sorted(order.tolist()) == list(range(2000))
    changes = (np.diff(groups[order]) != 0).sum()
    assert changes < 100  # in random order it would be some 1950
    assert nearby(np.empty((0, 3), np.int32)).tolist() == []

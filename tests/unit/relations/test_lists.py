import numpy as np
import pytest

from gracl.randomness import rng
from gracl.relations.lists import grown, invert, join, mirror


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
    assert [part.tolist() for part in join([])] == [[0], [], []]
    part = (np.array([2, 0]), np.array([4, 1], np.int32), np.array([0.5, 0.25], np.float32))
    assert [a.tolist() for a in join([part, part])] == [[0, 2, 2, 4, 4], [4, 1, 4, 1], [0.5, 0.25, 0.5, 0.25]]


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


@pytest.mark.parametrize(("seed", "rows"), [(0, 1), (1, 2), (2, 3), (3, 17)])
def test_mirror_makes_the_symmetric_matrix(seed, rows):
    matrix = random_dense(seed, rows)
    np.fill_diagonal(matrix, 0)
    starts, ids, values = mirror(*lists_of(matrix, lambda i, j: j >= i, rng(seed, "order")))
    upper = np.triu(matrix)
    for i in range(rows):
        part = slice(starts[i], starts[i + 1])
        symmetric = (upper + upper.T)[i]
        assert ids[part].tolist() == [j for j in range(rows) if symmetric[j] or i == j]
        assert values[part].tolist() == symmetric[ids[part]].tolist()

import math
import subprocess
import sys
import tracemalloc
import warnings

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.cluster import HDBSCAN

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.clustering import cluster
from gracl.relations.clusters import dbscan
from gracl.relations.hdbscan import hdbscan
from gracl.relations.infomap import infomap
from tests.naive import clusterings as naive
from tests.naive.relations import by_first_member

KINDS = ["smooth", "ties", "copies"]


@pytest.fixture
def package():
    return pytest.importorskip("infomap", reason="the package infomap is not installed")


def sparse(matrix, diagonal=True):
    """Stores what is below 1, zeros included."""
    kept = (np.asarray(matrix) < 1) & (diagonal | ~np.eye(len(matrix), dtype=bool))
    rows, columns = np.nonzero(kept)
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return csr_array((np.asarray(matrix, np.float32)[rows, columns], columns, starts), shape=kept.shape)


def groups(*sizes, within, between=1.0):
    """A distance matrix of groups of rows."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    matrix = np.where(group[:, None] == group, within, between).astype(np.float32)
    np.fill_diagonal(matrix, 0)
    return matrix


def random_case(seed, kind):
    """Distances, up to 1, of crowds in the plane, many of them in several parts; and options."""
    dice = rng(seed, "case")
    rows, crowds = int(dice.integers(2, 60)), int(dice.integers(1, 8))
    centres = dice.uniform(0, dice.uniform(0.5, 3), (crowds, 2))
    points = centres[dice.integers(0, crowds, rows)] + dice.normal(0, 0.12, (rows, 2)) * dice.uniform(
        0.3, 1.5, (rows, 1)
    )
    if kind == "copies":
        points = points[dice.integers(0, rows, rows)]
    matrix = np.minimum(1, np.sqrt(((points[:, None] - points) ** 2).sum(axis=2)))
    if kind == "ties":
        matrix = np.round(12 * matrix) / 12
    np.fill_diagonal(matrix, 0)
    return matrix.astype(np.float32), {
        "min_samples": int(dice.integers(1, 6)),
        "min_cluster_size": int(dice.integers(2, 7)),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(30))
def test_hdbscan_is_the_definition_ties_and_copies_included(seed, kind):
    matrix, options = random_case(seed, kind)
    by_definition = naive.Hdbscan(matrix, **options)
    assert by_definition.margin > 1e-9  # no choice hangs on rounding
    np.testing.assert_array_equal(hdbscan(sparse(matrix), **options), by_definition.labels)


def dense(matrix, min_samples, min_cluster_size):
    """The labels of scikit-learn with nothing missing."""
    options = {"min_samples": min_samples, "min_cluster_size": min_cluster_size, "metric": "precomputed", "copy": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # infinity minus infinity, of copies
        return HDBSCAN(**options).fit_predict(matrix.astype(np.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_hdbscan_is_scikit_learns_on_the_dense_matrix_where_that_is_sure(kind):
    # Among equal levels scikit-learn has no certain order, and the partition may hang on it: where the definition says
    # so for a whole case it is left out, where it says so for some rows these are.
    compared = several = parts = 0
    for seed in range(250):
        matrix, options = random_case(seed, kind)
        by_definition = naive.Hdbscan(matrix, **options)
        if by_definition.ambiguous or options["min_samples"] > len(matrix):
            continue
        sure = [i for i in range(len(matrix)) if i not in by_definition.unsure]
        found, theirs = hdbscan(sparse(matrix), **options), dense(matrix, **options)
        np.testing.assert_array_equal(by_first_member(found[sure]), by_first_member(theirs[sure]), err_msg=f"{seed}")
        compared += 1
        several += found.max() > 0
        parts += len(naive.components(matrix, range(len(matrix)), 1)) > 1
    assert compared > 60
    assert several > 30
    assert parts > 20


@pytest.mark.parametrize("kind", KINDS)
def test_hdbscan_does_not_depend_on_the_order_of_rows(kind):
    for seed in range(20):
        matrix, options = random_case(seed, kind)
        order = rng(seed, "order").permutation(len(matrix))
        found = hdbscan(sparse(matrix[np.ix_(order, order)]), **options)
        np.testing.assert_array_equal(by_first_member(found[np.argsort(order)]), hdbscan(sparse(matrix), **options))


def test_hdbscan_takes_the_sets_that_last():
    # 1 / level goes from 1 to 10. Parted at 0.5: each half has 3 * (10 - 2), the whole had 6 * (2 - 1).
    apart = groups(3, 3, 3, within=0.1)
    apart[:3, 3:6] = apart[3:6, :3] = 0.5
    options = {"min_samples": 1, "min_cluster_size": 3}
    assert hdbscan(sparse(apart), **options).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # Parted at 0.125: each half has 3 * (10 - 8), the whole had 6 * (8 - 1).
    close = np.where(apart == np.float32(0.5), np.float32(0.125), apart)
    assert hdbscan(sparse(close), **options).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert hdbscan(sparse(close), min_samples=1, min_cluster_size=4).tolist() == [-1] * 9  # the rest is all there is


def test_hdbscan_finds_levels_of_different_density():
    # No eps parts the first two groups and keeps the third together.
    matrix = groups(6, 6, 6, within=0.05)
    matrix[:6, 6:12] = matrix[6:12, :6] = 0.3
    matrix[12:, 12:] = np.where(np.eye(6, dtype=bool), 0, np.float32(0.7))
    assert hdbscan(sparse(matrix), min_cluster_size=4).tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert dbscan(sparse(matrix), eps=0.6).tolist() == [0] * 12 + [-1] * 6


def test_hdbscan_leaves_a_row_between_clusters_out():
    # Row 0 is 0.5 from one row of each group, so at 3 samples its core distance is 0.5, where the groups part, too.
    matrix = groups(1, 4, 4, within=0.1)
    for i in (1, 5):
        matrix[0, i] = matrix[i, 0] = 0.5
    assert hdbscan(sparse(matrix), min_samples=3, min_cluster_size=4).tolist() == [-1] + [0] * 4 + [1] * 4


def test_hdbscan_takes_rows_at_distance_1_for_noise():
    matrix = groups(5, 1, 5, 2, 1, 1, 1, 1, within=0.1)
    assert hdbscan(sparse(matrix), min_cluster_size=4).tolist() == [0] * 5 + [-1] + [1] * 5 + [-1] * 6
    nothing = csr_array((40, 40), dtype=np.float32)
    assert hdbscan(nothing).tolist() == [-1] * 40
    assert hdbscan(nothing, min_samples=1, min_cluster_size=2).tolist() == [-1] * 40
    assert hdbscan(sparse(groups(*[1] * 40, within=0))).tolist() == [-1] * 40


def test_hdbscan_never_chooses_all_rows():
    assert hdbscan(sparse(np.zeros((6, 6)))).tolist() == [-1] * 6
    assert hdbscan(sparse(groups(20, within=0.2))).tolist() == [-1] * 20
    assert hdbscan(sparse(groups(20, 1, within=0.2))).tolist() == [-1] * 21


def test_hdbscan_parts_copies_from_others():
    # Stored zeros: copies may be as many as they like, and close to others.
    matrix = groups(4, 12, 4, within=0.0, between=0.01)
    assert hdbscan(sparse(matrix), min_cluster_size=4).tolist() == [0] * 4 + [1] * 12 + [2] * 4
    assert hdbscan(sparse(matrix), min_samples=1, min_cluster_size=2).tolist() == [0] * 4 + [1] * 12 + [2] * 4


def test_hdbscan_of_few_rows():
    assert hdbscan(csr_array((0, 0), dtype=np.float32)).tolist() == []
    assert hdbscan(sparse(np.zeros((1, 1))), min_samples=1).tolist() == [-1]
    assert hdbscan(sparse(np.zeros((3, 3)))).tolist() == [-1] * 3
    assert hdbscan(sparse(groups(3, 3, within=0.1)), min_samples=7, min_cluster_size=2).tolist() == [-1] * 6
    assert hdbscan(sparse(groups(2, 2, within=0.1)), min_samples=2, min_cluster_size=2).tolist() == [0, 0, 1, 1]


def test_hdbscan_memory_goes_with_the_entries():
    matrix, rows = sparse(groups(5, within=0.1)), 5 * 1600
    starts = np.arange(0, 5 * rows + 1, 5)
    columns = (matrix.indices + 5 * np.arange(rows // 5)[:, None]).ravel()
    large = csr_array((np.tile(matrix.data, rows // 5), columns, starts), shape=(rows, rows))
    hdbscan(matrix)  # compiled
    tracemalloc.start()
    try:
        found = hdbscan(large, min_cluster_size=4)
        assert tracemalloc.get_traced_memory()[1] < 30e6  # a table of all pairs has 256 MB as float32
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, np.arange(rows) // 5)


def by_hand(*edges, rows):
    """A distance matrix with these pairs (row, row, distance)."""
    matrix = np.ones((rows, rows), np.float32)
    np.fill_diagonal(matrix, 0)
    for i, j, distance in edges:
        matrix[i, j] = matrix[j, i] = distance
    return matrix


@pytest.mark.parametrize("seed", range(40))
def test_infomap_finds_the_shortest_description_of_all(package, seed):
    dice = rng(seed, "graph")
    rows = int(dice.integers(2, 8))
    upper = np.triu(
        np.where(dice.random((rows, rows)) < dice.uniform(0.3, 0.9), dice.uniform(0, 0.9, (rows, rows)), 1), 1
    )
    matrix = (upper + upper.T + np.eye(rows) * 0.3).astype(np.float32)
    weights = np.where((matrix <= np.float32(0.7)) & ~np.eye(rows, dtype=bool), 1 - matrix.astype(np.float64), 0)
    found = infomap(sparse(matrix), eps=0.7, min_samples=1)
    np.testing.assert_array_equal(found == -1, weights.sum(axis=1) == 0)
    linked = found != -1
    if linked.any():
        weights = weights[np.ix_(linked, linked)].tolist()
        best = min(naive.codelength(weights, modules) for modules in naive.partitions(len(weights)))
        assert naive.codelength(weights, found[linked]) == pytest.approx(best, abs=1e-9)
    np.testing.assert_array_equal(found, by_first_member(found))


def test_the_naive_map_equation_by_hand():
    # Two pairs: rows are visited a quarter of the time each. Together 2 bits; apart nothing is ever left: 1 bit.
    pairs = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert naive.codelength(pairs, [0, 0, 0, 0]) == pytest.approx(2)
    assert naive.codelength(pairs, [0, 0, 1, 1]) == pytest.approx(1)
    # A path of three, the last row apart: both modules are left a quarter of the time.
    leave, stay = 0.5, 0.75 + 0.25
    codes = naive.entropy([0.25, 0.25, 0.5]) * stay + naive.entropy([0.25, 0.25]) * 0.5
    assert naive.codelength([[0, 1, 0], [1, 0, 1], [0, 1, 0]], [0, 0, 1]) == pytest.approx(leave * 1 + codes)
    assert len(list(naive.partitions(7))) == 877  # Bell's number
    assert math.isclose(naive.entropy([3, 3]), 1)


def test_infomap_parts_cliques_joined_by_a_weak_link(package):
    matrix = groups(5, 5, within=0.2)
    matrix[0, 5] = matrix[5, 0] = 0.59
    assert infomap(sparse(matrix)).tolist() == [0] * 5 + [1] * 5
    assert dbscan(sparse(matrix)).tolist() == [0] * 10


def test_infomap_takes_rows_without_a_link_and_small_modules_for_noise(package):
    matrix = groups(1, 4, 3, 1, 4, within=0.3)
    assert infomap(sparse(matrix)).tolist() == [-1] + [0] * 4 + [-1] * 4 + [1] * 4
    assert infomap(sparse(matrix), min_samples=3).tolist() == [-1] + [0] * 4 + [1] * 3 + [-1] + [2] * 4
    assert infomap(sparse(matrix), min_samples=1).tolist() == [-1] + [0] * 4 + [1] * 3 + [-1] + [2] * 4
    assert infomap(sparse(matrix), min_samples=5).tolist() == [-1] * 13


def test_infomap_weighs_links_by_nearness(package):
    # A ring of four pairs: what is near belongs together.
    ring = [(i, (i + 1) % 8, 0.05 if i % 2 == 0 else 0.55) for i in range(8)]
    assert infomap(sparse(by_hand(*ring, rows=8)), min_samples=2).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_infomap_links_up_to_eps_and_never_at_1(package):
    pair = csr_array(np.array([[0, 0.6], [0.6, 0]], np.float32))
    assert infomap(pair, eps=0.6, min_samples=2).tolist() == [0, 0]
    assert infomap(pair, eps=0.59, min_samples=2).tolist() == [-1, -1]
    far = csr_array(np.array([[0, 1], [1, 0]], np.float32))
    assert infomap(far, eps=1 - 1e-12, min_samples=1).tolist() == [-1, -1]
    assert infomap(sparse(np.zeros((5, 5)))).tolist() == [0] * 5  # copies


def test_infomap_of_few_rows(package):
    assert infomap(csr_array((0, 0), dtype=np.float32)).tolist() == []
    assert infomap(sparse(np.zeros((1, 1))), min_samples=1).tolist() == [-1]
    assert infomap(csr_array((9, 9), dtype=np.float32), min_samples=1).tolist() == [-1] * 9


def test_infomap_gives_the_same_labels_again_and_is_silent(package, capfd):
    dice = rng(3, "points")
    points = dice.random((400, 2))
    matrix = np.minimum(1, 6 * np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))).astype(np.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(infomap(sparse(matrix)))
    finally:
        torch.set_num_threads(threads)
    assert found[0].max() > 5  # no two of them need be alike: the graph has no evident clusters
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert capfd.readouterr() == ("", "")


def test_missing_packages_name_what_to_install(monkeypatch):
    matrix = sparse(groups(5, 5, within=0.1))
    monkeypatch.setitem(sys.modules, "infomap", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(
        ConfigError, match=r"expected the package infomap; came no such package; .*gracl\[infomap\].*dbscan"
    ):
        infomap(matrix)
    with pytest.raises(ConfigError, match="expected the package scikit-learn; came no such package; .*dbscan"):
        hdbscan(matrix)
    assert cluster(matrix).tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize("name", ["dbscan", "hdbscan", "infomap"])
@pytest.mark.parametrize("diagonal", [True, False])
def test_cluster_numbers_by_first_member_and_leaves_the_matrix_as_it_is(name, diagonal, request):
    if name == "infomap":
        request.getfixturevalue("package")
    for kind in KINDS:
        matrix = random_case(1, kind)[0]
        given, before = sparse(matrix, diagonal), sparse(matrix, diagonal)
        labels = cluster(given, clustering=name, min_cluster_size=4)
        assert labels.dtype == np.int64
        assert labels.max() > 0
        np.testing.assert_array_equal(labels, by_first_member(labels))
        np.testing.assert_array_equal(labels, cluster(sparse(matrix), clustering=name, min_cluster_size=4))
        for mine, theirs in [(given.data, before.data), (given.indices, before.indices), (given.indptr, before.indptr)]:
            np.testing.assert_array_equal(mine, theirs)


def test_cluster_calls_what_it_is_asked_for(package):
    options = {"eps": 0.3, "min_samples": 3, "min_cluster_size": 5}
    told = set()
    for seed in range(5):
        matrix = sparse(random_case(seed, "smooth")[0])
        found = [cluster(matrix, clustering=name, **options) for name in ("dbscan", "hdbscan", "infomap")]
        np.testing.assert_array_equal(found[0], dbscan(matrix, eps=0.3, min_samples=3))
        np.testing.assert_array_equal(found[1], hdbscan(matrix, min_samples=3, min_cluster_size=5))
        np.testing.assert_array_equal(found[2], infomap(matrix, eps=0.3, min_samples=3))
        told.add(len({labels.tobytes() for labels in found}))
        np.testing.assert_array_equal(cluster(matrix), dbscan(matrix, eps=0.6, min_samples=4))
    assert max(told) == 3


@pytest.fixture
def unchecked():
    """As in production, where what is no such name gets through."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_refuses_a_clustering_that_there_is_not(unchecked):
    with pytest.raises(ConfigError, match="came 'kmeans'; take one of dbscan, hdbscan, infomap"):
        cluster(sparse(groups(5, within=0.1)), clustering="kmeans")


@pytest.mark.parametrize("name", ["dbscan", "hdbscan", "infomap"])
@pytest.mark.parametrize(
    "options", [{"eps": 0.0}, {"eps": 1.0}, {"eps": float("nan")}, {"min_samples": 0}, {"min_cluster_size": 1}]
)
def test_refuses_options_even_where_they_are_of_no_use(name, options):
    with pytest.raises(ConfigError, match="the usual values are"):
        cluster(sparse(groups(5, within=0.1)), clustering=name, **options)


@pytest.mark.parametrize("refused", [lambda m: hdbscan(m, min_samples=0), lambda m: hdbscan(m, min_cluster_size=1)])
def test_hdbscan_refuses_options_by_itself(refused):
    with pytest.raises(ConfigError, match="min_samples >= 1 and min_cluster_size >= 2"):
        refused(sparse(groups(5, within=0.1)))


@pytest.mark.parametrize("refused", [lambda m: infomap(m, eps=1.0), lambda m: infomap(m, min_samples=0)])
def test_infomap_refuses_options_by_itself(refused):
    with pytest.raises(ConfigError, match="0 < eps < 1 and min_samples >= 1"):
        refused(sparse(groups(5, within=0.1)))


@pytest.mark.parametrize("function", [cluster, hdbscan, infomap])
def test_refuses_a_matrix_that_is_not_square(function):
    with pytest.raises(GraclError, match="square"):
        function(csr_array((2, 3), dtype=np.float32))


def test_infomap_lives_beside_faiss_whichever_came_first():
    pytest.importorskip("infomap", reason="the package infomap is not installed")
    code = (
        "import {0}, {1}, numpy as np; from scipy.sparse import csr_array;"
        "from gracl.relations.infomap import infomap;"
        "d = np.ones((6, 6), np.float32); d[:3, :3] = d[3:, 3:] = 0.2; d[d == 1] = 0;"
        "print(infomap(csr_array(d), min_samples=2).tolist())"
    )
    for order in (("faiss", "infomap"), ("infomap", "faiss")):
        done = subprocess.run([sys.executable, "-c", code.format(*order)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[0, 0, 0, 1, 1, 1]"

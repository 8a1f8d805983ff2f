import numpy as np
import pytest
import torch

from gracl import similarity
from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.similarity import nearest, top_k
from tests.naive import relations as naive

BACKENDS = ["faiss", "torch"]


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_rows(seed, rows, dim):
    return unit(rng(seed, "rows").standard_normal((rows, dim)))


def grid_rows(seed, rows):
    """Many exact copies and many exactly equal similarities: small whole numbers, made unit."""
    dice = rng(seed, "grid")
    return unit(dice.integers(-1, 2, (rows, 3)) + np.array([0, 0, 3]) * dice.integers(1, 3, (rows, 1)))


def equal(one, other):
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.similarities, other.similarities)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 2, 7, 30])
@pytest.mark.parametrize("make", [lambda: random_rows(0, 60, 8), lambda: grid_rows(1, 60), lambda: grid_rows(2, 61)])
def test_nearest_is_the_table_by_definition(make, k, backend):
    features = make()
    indices, similarities = naive.nearest(features, k)
    found = nearest(features, k, backend=backend, threads=1)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.similarities, similarities)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_rows_and_many_of_them(backend):
    features = random_rows(3, 700, 300)
    exact = features.astype(np.float64) @ features.T.astype(np.float64)
    found = nearest(features, 20, backend=backend, threads=1)
    np.testing.assert_array_equal(found.indices, np.argsort(-exact, axis=1)[:, :20])
    np.testing.assert_allclose(found.similarities, -np.sort(-exact, axis=1)[:, :20], atol=1e-7)


def test_table_is_the_same_whatever_computes_it():
    features = np.concatenate([random_rows(4, 300, 64), random_rows(4, 300, 64)[:50]])
    reference = nearest(features, 12, backend="torch", threads=1)
    for options in ({"backend": "faiss", "threads": 1}, {"block_rows": 7}, {"threads": 2}, {"block_rows": 349}, {}):
        equal(nearest(features, 12, **options), reference)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("copies", [3, 40, 1400])
def test_copies_stand_in_order_of_index(copies, backend):
    features = unit(np.concatenate([np.tile([[0.3, 0.5, 0.2]], (copies, 1)), [[1, 0, 0], [0, 1, 0]]]))
    found = nearest(features, 3, backend=backend, threads=1)
    for row in (0, 1, 2, copies - 1):
        others = [j for j in range(3) if j != row]
        assert found.indices[row].tolist() == [row, *others[:2]]
    assert len(set(found.similarities[:copies].ravel().tolist())) == 1


def test_many_equals_still_yield_to_what_is_surely_nearer():
    # 1400 copies at the k-th place of the last row, and two rows that are nearer.
    features = unit(np.concatenate([np.tile([[1.0, 0.0]], (1400, 1)), [[1.0, 0.9], [1.0, 0.95], [1.0, 1.0]]]))
    found = nearest(features, 6, backend="torch", threads=1)
    assert found.indices[-1].tolist() == [1402, 1401, 1400, 0, 1, 2]


def test_a_product_of_low_precision_changes_nothing(monkeypatch):
    features = random_rows(5, 400, 32)
    reference = nearest(features, 10, backend="torch", threads=1)

    def half(gallery, place):
        columns = torch.from_numpy(gallery).bfloat16().T
        return lambda block: (torch.from_numpy(block).bfloat16() @ columns).float()

    monkeypatch.setattr(similarity, "_product", half)
    equal(nearest(features, 10, backend="torch", threads=1), reference)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_tables(backend):
    one = random_rows(6, 1, 5)
    assert nearest(one, 30, backend=backend).indices.tolist() == [[0]]
    three = nearest(random_rows(6, 3, 5), 30, backend=backend)
    assert three.indices.shape == (3, 3)
    assert three.indices[:, 0].tolist() == [0, 1, 2]
    assert nearest(np.empty((0, 5), np.float32), 4, backend=backend).indices.shape == (0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_top_k_between_two_sets(backend):
    query, gallery = grid_rows(7, 20), grid_rows(8, 90)
    exact = np.array([[np.float32(naive.cosine(q, g)) for g in gallery] for q in query])
    order = np.argsort(-exact, axis=1, kind="stable")
    for k in (1, 5, 90, 200):
        indices, similarities = top_k(query, gallery, k, backend=backend, block_rows=6, threads=1)
        np.testing.assert_array_equal(indices, order[:, :k])
        np.testing.assert_array_equal(similarities, np.take_along_axis(exact, order[:, :k], axis=1))


def test_top_k_without_queries_or_gallery():
    rows, none = random_rows(9, 4, 3), np.empty((0, 3), np.float32)
    assert top_k(none, rows, 2)[0].shape == (0, 2)
    assert top_k(rows, none, 2)[0].shape == (4, 0)


def test_progress_is_told_block_by_block():
    told = []
    nearest(random_rows(10, 10, 4), 3, block_rows=4, progress=lambda done, rows: told.append((done, rows)))
    assert told == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_read_only_and_strided_features(backend):
    wide = random_rows(11, 40, 6)
    wide.setflags(write=False)
    equal(nearest(wide[::2], 5, backend=backend), nearest(wide[::2].copy(), 5, backend=backend))


def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    nearest(random_rows(12, 20, 4), 3, backend="torch", threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k >= 1"),
        ({"block_rows": 0}, "block_rows >= 1"),
        ({"threads": -1}, "threads >= 0"),
        ({"backend": "faiss", "device": "cuda"}, "came"),
    ],
)
def test_refuses_options(options, says):
    with pytest.raises(ConfigError, match=says):
        nearest(random_rows(13, 5, 4), **{"k": 2, **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_refuses_a_gpu_that_is_not_there():
    with pytest.raises(ConfigError, match="CUDA"):
        nearest(random_rows(13, 5, 4), 2, device="cuda")


def test_says_so_when_faiss_is_missing_and_does_without(monkeypatch):
    features = random_rows(14, 30, 4)
    reference = nearest(features, 5, backend="torch", device="cpu")
    monkeypatch.setattr(similarity, "find_spec", lambda name: None)
    equal(nearest(features, 5, device="cpu"), reference)
    with pytest.raises(ConfigError, match="faiss"):
        nearest(features, 5, backend="faiss")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_features_that_are_not_finite(bad):
    features = random_rows(15, 5, 4)
    features[3, 1] = bad
    with pytest.raises(GraclError, match=r"1 rows \[3\]"):
        nearest(features, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_gives_the_table_of_the_cpu():
    features = np.concatenate([random_rows(16, 3000, 128), random_rows(16, 40, 128)])
    equal(nearest(features, 30, device="cuda"), nearest(features, 30, device="cpu"))

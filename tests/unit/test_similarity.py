import numpy as np
import pytest
import torch

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.similarity import Options, Searcher, nearest, products, resolve, shares, top_k
from gracl.similarity import options as options_
from gracl.similarity.products import Product
from gracl.similarity.settling import Block, settle, settle_on_device
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

    monkeypatch.setattr(Product, "_multiply", lambda self, query, rows: (query.bfloat16() @ rows.bfloat16().T).float())
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
        ({"effort": -1}, "effort >= 0"),
        ({"search": "approximate", "backend": "torch"}, "backend auto or faiss"),
    ],
)
def test_refuses_options(options, says):
    with pytest.raises(ConfigError, match=says):
        nearest(random_rows(13, 5, 4), **{"k": 2, **options})


@pytest.mark.parametrize(
    ("name", "says"),
    [("search", "exact or app"), ("index", "ivf or"), ("backend", "auto, fa"), ("device", "auto, cpu")],
)
def test_refuses_words_it_does_not_know(name, says):
    options = Options()
    object.__setattr__(options, name, "some")  # as without the type checks of the tests
    with pytest.raises(ConfigError, match=says):
        resolve(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_refuses_a_gpu_that_is_not_there():
    with pytest.raises(ConfigError, match="CUDA"):
        nearest(random_rows(13, 5, 4), 2, device="cuda")


def test_says_so_when_faiss_is_missing_and_does_without(monkeypatch):
    features = random_rows(14, 30, 4)
    reference = nearest(features, 5, backend="torch", device="cpu")
    monkeypatch.setattr(options_, "find_spec", lambda name: None)
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


def lookup(seed, rows=400, dim=24):
    """Rows around some centres, with copies: what an approximate search is meant for."""
    dice = rng(seed, "lookup")
    found = dice.standard_normal((20, dim))[dice.integers(0, 20, rows)] + 0.5 * dice.standard_normal((rows, dim))
    found[::17] = found[0]
    return unit(found)


@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("seed", range(4))
def test_half_rows_give_the_table_of_the_same_numbers(k, seed):
    half = lookup(seed).astype(np.float16)
    equal(nearest(half, k), nearest(half.astype(np.float32), k))


def test_rows_of_a_file_are_read_where_they_are(tmp_path):
    half = lookup(5).astype(np.float16)
    np.save(tmp_path / "rows.npy", half)
    equal(nearest(np.load(tmp_path / "rows.npy", mmap_mode="r"), 9, block_rows=64), nearest(half, 9))


@pytest.mark.parametrize("most", [50, 1000, 10**6])
def test_columns_in_blocks_give_the_same_table(monkeypatch, most):
    features = np.concatenate([lookup(6), grid_rows(6, 90) @ np.eye(3, 24, dtype=np.float32)])
    reference = nearest(features, 12)
    monkeypatch.setitem(products.MOST_VALUES, "cpu", most)
    equal(nearest(features, 12, block_rows=37), reference)


@pytest.mark.parametrize("seed", range(3))
def test_a_half_product_changes_nothing(monkeypatch, seed):
    features = np.concatenate([lookup(seed), grid_rows(seed, 90) @ np.eye(3, 24, dtype=np.float32)])
    reference = nearest(features, 12, device="cpu")
    equal(halved(monkeypatch, features).nearest(12), reference)


def halved(monkeypatch, features):
    """A searcher whose product rounds the rows to float16, as on a GPU."""
    whole = Product.__init__
    monkeypatch.setattr(
        Product, "__init__", lambda self, rows, place, half, resident: whole(self, rows, place, half=True)
    )
    found = Searcher(features, device="cpu")
    assert found._product.half
    return found


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("dim", "spread"), [(64, 1e-3), (64, 3e-2), (512, 3e-3)])
def test_thousands_that_are_nearly_equal_are_told_apart(monkeypatch, half, dim, spread):
    # A burst of one parked car: more than 1,054 rows within the rounding of the product, and no two the same.
    dice = rng(17, "burst", dim)
    features = unit(dice.standard_normal(dim) + spread * dice.standard_normal((2500, dim)))
    exact = (features[:60].astype(np.float64) @ features.T.astype(np.float64)).astype(np.float32)
    searcher = halved(monkeypatch, features) if half else Searcher(features, device="cpu")
    found = searcher.nearest(30, rows=(0, 60))
    for row in range(60):
        order = np.lexsort((np.arange(2500), -exact[row], np.arange(2500) != row))[:30]
        np.testing.assert_array_equal(found.indices[row], order)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_settling_by_torch_is_settling_by_the_kernel(own, dtype):
    features = np.concatenate([lookup(7), grid_rows(7, 90) @ np.eye(3, 24, dtype=np.float32)]).astype(dtype)
    names = np.arange(50, 120) if own else np.full(70, -1)
    raw, candidates = Product(features, "cpu").propose(features[50:120], 20)
    made = []
    for by_torch in (False, True):
        shape = (70, 12)
        block = Block(features[50:120], features, names, np.empty(shape, np.int32), np.empty(shape, np.float32))
        kept = torch.from_numpy(features)
        error = (
            settle_on_device(block, raw, candidates, kept)
            if by_torch
            else settle(block, raw.numpy(), candidates.numpy(), 1)
        )
        made.append((block.indices, block.similarities, error))
    np.testing.assert_array_equal(made[0][0], made[1][0])
    np.testing.assert_array_equal(made[0][1], made[1][1])
    assert made[0][2] == pytest.approx(made[1][2], abs=1e-7)
    assert 0 < made[0][2] < 1e-5


def test_settling_by_torch_puts_a_row_first_that_was_not_proposed():
    features = np.tile(unit([[1.0, 2.0, 3.0]]), (9, 1))
    block = Block(features[8:], features, np.array([8]), np.empty((1, 3), np.int32), np.empty((1, 3), np.float32))
    settle_on_device(block, torch.ones(1, 4), torch.arange(4)[None], torch.from_numpy(features))
    assert block.indices.tolist() == [[8, 0, 1]]


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 500])
def test_shares_of_the_rows_make_up_the_table(parts):
    features = lookup(8)
    whole, searcher = nearest(features, 11), Searcher(features)
    found = [searcher.nearest(11, rows=share) for share in shares(len(features), parts)]
    np.testing.assert_array_equal(np.concatenate([part.indices for part in found]), whole.indices)
    np.testing.assert_array_equal(np.concatenate([part.similarities for part in found]), whole.similarities)
    assert len(found) == min(parts, 400)


def test_shares_of_nothing():
    assert shares(0, 3) == [(0, 0)]


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_search_finds_most_and_says_how_much(index):
    features = lookup(9, rows=3000)
    exact, found = nearest(features, 10), nearest(features, 10, search="approximate", index=index, threads=1)
    same = np.mean([len(np.intersect1d(*rows)) / 10 for rows in zip(exact.indices, found.indices, strict=True)])
    assert exact.recall == 1
    assert 0.7 < same <= 1
    assert found.recall == pytest.approx(same, abs=0.03)  # measured on a third of the rows
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(3000))
    exactly = np.float32(
        [[naive.cosine(features[i], features[j]) for j in found.indices[i]] for i in range(0, 3000, 99)]
    )
    np.testing.assert_array_equal(found.similarities[::99], exactly)
    assert (np.diff(found.similarities[:, 1:], axis=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in found.indices.tolist())


def test_looking_into_every_cell_is_exact():
    features = random_rows(10, 500, 24)  # no copies: among equals it takes any
    found = nearest(features, 9, search="approximate", effort=10**6)
    equal(found, nearest(features, 9))
    assert found.recall == 1


def test_more_effort_finds_more():
    features = random_rows(11, 4000, 48)
    few, many = (nearest(features, 10, search="approximate", effort=effort).recall for effort in (2, 30))
    assert few < many


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_rows_whose_cells_hold_too_few_are_looked_through(index):
    features = random_rows(12, 120, 40)
    found = nearest(features, 100, search="approximate", index=index, effort=1)
    assert found.indices.min() == 0
    assert all(len(set(row)) == 100 for row in found.indices.tolist())


def test_top_k_is_exact():
    rows = random_rows(12, 30, 4)
    with pytest.raises(ConfigError, match="search=exact between two sets"):
        top_k(rows, rows, 3, search="approximate")


def test_approximate_search_of_halves_and_of_one_row():
    half = lookup(13, rows=900).astype(np.float16)
    assert nearest(half, 8, search="approximate").recall > 0.7
    for index in ("ivf", "hnsw"):
        assert nearest(half[:1], 8, search="approximate", index=index).indices.tolist() == [[0]]
        assert nearest(half[:0], 8, search="approximate", index=index).indices.shape == (0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_halves_that_are_not_finite(bad):
    features = lookup(14).astype(np.float16)
    features[3, 1] = bad
    with pytest.raises(GraclError, match=r"1 rows \[3\]"):
        nearest(features, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("resident", [True, False])
def test_gpu_table_of_resident_and_of_passing_rows(monkeypatch, dtype, resident):
    features = lookup(15, rows=5000, dim=256).astype(dtype)
    monkeypatch.setattr(Product, "_fits", lambda self: resident)
    monkeypatch.setitem(products.MOST_VALUES, "cuda", 2**20)
    equal(nearest(features, 30, device="cuda"), nearest(features, 30, device="cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_approximate_search():
    pytest.importorskip("faiss")
    features = lookup(16, rows=5000)
    assert nearest(features, 10, search="approximate", device="cuda").recall > 0.7

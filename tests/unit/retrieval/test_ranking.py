import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gracl.errors import GraclError
from gracl.randomness import rng
from gracl.retrieval.ranking import STRIP, check_sides, judged, rank, similarity_blocks
from gracl.types import EMPTY, Identities
from tests.naive import retrieval as naive


def identities(objects, cameras):
    return Identities(object_ids=np.array(objects, np.int64), camera_ids=np.array(cameras, np.int64))


@st.composite
def worlds(draw):
    """Small features of whole numbers, so that products are exact and often tie; ids with junk and unknown cameras."""
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, gallery, dim = draw(st.integers(1, 5)), draw(st.integers(0, 12)), draw(st.integers(1, 3))
    sides = [dice.integers(-2, 3, (images, dim)).astype(np.float32) for images in (queries, gallery)]
    who = [identities(dice.integers(-1, 3, images), dice.integers(-1, 2, images)) for images in (queries, gallery)]
    return *sides, *who


@settings(deadline=None, max_examples=150)
@given(worlds(), st.integers(1, 15), st.integers(1, 6), st.booleans())
def test_rank_equals_its_naive_twin_ties_included(world, k, block_rows, search):
    query, gallery, who, seen = world
    who, seen = (None, None) if search else (who, seen)
    ranking = rank(query, gallery, query_identities=who, gallery_identities=seen, k=k, block_rows=block_rows)
    for number in range(len(query)):
        wanted = naive.ranked_rows(query, gallery, who, seen, number)[:k]
        wanted += [(-np.inf, EMPTY)] * (k - len(wanted))
        assert ranking.indices[number].tolist() == [row for _, row in wanted]
        assert ranking.similarities[number].tolist() == [similarity for similarity, _ in wanted]


@pytest.mark.parametrize("queries", [1, 2, 5, 40])
@pytest.mark.parametrize("dim", [3, 64, 129])
def test_copies_are_equal_and_stand_in_order_of_index(queries, dim):
    dice = rng(0, "copies", queries, dim)
    query, ones = (dice.standard_normal((rows, dim)).astype(np.float32) for rows in (queries, 7))
    ranking = rank(query, np.tile(ones, (31, 1)), k=7 * 31)
    for number in range(queries):
        groups = np.argsort(-(ones.astype(float) @ query[number].astype(float)))
        assert ranking.indices[number].tolist() == [copy * 7 + group for group in groups for copy in range(31)]


def test_block_size_and_threads_change_no_bit():
    dice = rng(0, "bits")
    query, gallery = (dice.standard_normal((rows, 200)).astype(np.float32) for rows in (37, 5000))
    whole = rank(query, gallery, k=5000)
    for block_rows, threads in ((1, 1), (5, 2), (16, 0), (36, 1)):
        other = rank(query, gallery, k=5000, block_rows=block_rows, threads=threads)
        assert np.array_equal(whole.indices, other.indices)
        assert np.array_equal(whole.similarities, other.similarities)


def test_judged_leaves_out_same_object_same_camera_and_junk():
    gallery = identities([7, 7, 8, -1, 0, 7], [1, 2, 1, 1, 1, -1])
    assert judged(7, 1, gallery).tolist() == [False, True, True, False, True, True]
    assert gallery.object_ids.tolist() == [7, 7, 8, -1, 0, 7]


def test_an_unknown_camera_is_never_the_same():
    gallery = identities([7, 7, -1], [-1, 3, -1])
    assert judged(7, -1, gallery).tolist() == [True, True, False]
    assert judged(7, 3, gallery).tolist() == [True, False, False]


def test_a_search_without_identities_shows_everything():
    query = np.eye(2, dtype=np.float32)
    ranking = rank(query, query, k=3)
    assert ranking.indices.tolist() == [[0, 1, EMPTY], [1, 0, EMPTY]]


def test_no_queries_and_no_gallery():
    some, none = np.ones((2, 4), np.float32), np.empty((0, 4), np.float32)
    assert rank(none, some, k=3).indices.shape == (0, 3)
    assert (rank(some, none, k=3).indices == EMPTY).all()


def test_blocks_cover_all_pairs_and_strips():
    dice = rng(1, "blocks")
    query, gallery = (dice.standard_normal((rows, 16)).astype(np.float32) for rows in (11, STRIP + 9))
    blocks = [(start, block.copy()) for start, block in similarity_blocks(query, gallery, block_rows=4)]
    assert [start for start, _ in blocks] == [0, 4, 8]
    wanted = (query.astype(float) @ gallery.astype(float).T).astype(np.float32)
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), wanted, rtol=1e-6)


def test_the_product_runs_with_the_threads_asked_for_and_leaves_torch_as_it_was(monkeypatch):
    seen, multiply = [], torch.Tensor.__matmul__

    def spy(*args):
        seen.append(torch.get_num_threads())
        return multiply(*args)

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    some, before = np.ones((2, 4), np.float32), torch.get_num_threads()
    for threads in (1, 2, 0):
        rank(some, some, threads=threads)
        assert torch.get_num_threads() == before
    assert seen == [1, 2, before]


@pytest.mark.filterwarnings("error")
def test_read_only_and_reversed_arrays_are_read_without_a_warning():
    features = rng(2, "frozen").standard_normal((6, 5)).astype(np.float32)
    frozen = features.copy()
    frozen.flags.writeable = False
    assert rank(frozen, frozen, k=6).indices.tolist() == rank(features, features, k=6).indices.tolist()
    assert rank(features[::-1], features, k=1).indices.shape == (6, 1)


def test_wrong_input_is_refused():
    some = np.ones((2, 4), np.float32)
    two, three = identities([1, 2], [0, 0]), identities([1, 2, 3], [0, 0, 0])
    bad = some.copy()
    bad[1, 2] = np.nan
    with pytest.raises(GraclError, match="of both sides or of neither"):
        rank(some, some, query_identities=two)
    with pytest.raises(GraclError, match="k >= 1; came 0"):
        rank(some, some, k=0)
    with pytest.raises(GraclError, match="2 object and camera ids for the gallery features; came 3 and 3"):
        rank(some, some, query_identities=two, gallery_identities=three)
    with pytest.raises(GraclError, match="finite query features"):
        rank(bad, some)
    with pytest.raises(GraclError, match="finite gallery features"):
        rank(some, np.full_like(some, -np.inf))
    with pytest.raises(GraclError, match="of width 4, as the query's; came 3"):
        check_sides(some, some[:, :3], two, two)
    with pytest.raises(GraclError, match="block_rows >= 1"):
        rank(some, some, block_rows=0)
    with pytest.raises(GraclError, match="threads >= 0"):
        rank(some, some, threads=-1)

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.ranking import rank, similarity_blocks
from gracl.retrieval.reranking import reranked
from gracl.types import Identities
from tests.naive import retrieval as naive


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def tables(seed, queries, images, dim=8, objects=6):
    """Unit rows around a few objects, so that there are neighbours to agree; (query, gallery, their objects)."""
    dice = rng(seed, "reranking")
    centres = dice.standard_normal((objects, dim))
    seen = [dice.integers(0, objects, rows) for rows in (queries, images)]
    return *(unit(centres[some] + 0.6 * dice.standard_normal((len(some), dim))) for some in seen), *seen


def whole(query, gallery, block_rows=512, threads=0, **options):
    """All blocks of a re-ranking as one matrix."""
    blocks = reranked(query, gallery, **options, threads=threads)
    return np.concatenate([block.copy() for _, block in blocks(query, gallery, block_rows=block_rows, threads=threads)])


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 24), st.integers(1, 9), st.integers(1, 4), st.data()
)
def test_equals_its_naive_twin(seed, queries, images, k1, k2, data):
    k1 = min(k1, queries + images - 1)
    options = k1, min(k2, k1), data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    query, gallery, *_ = tables(seed, queries, images)
    distance = naive.rerank(query, gallery, *options)
    made = whole(query, gallery, k1=options[0], k2=options[1], original_weight=options[2], block_rows=4)
    np.testing.assert_allclose(made, 1 - distance, atol=2e-6)


def test_copies_are_told_apart_as_the_naive_twin_tells_them():
    query, gallery, *_ = tables(3, 3, 5)
    gallery = np.tile(gallery, (3, 1))
    for k1, k2 in ((2, 1), (4, 2), (7, 6)):
        made = whole(query, gallery, k1=k1, k2=k2)
        np.testing.assert_allclose(made, 1 - naive.rerank(query, gallery, k1, k2, 0.3), atol=2e-6)


def test_the_original_distance_alone_keeps_the_plain_order():
    query, gallery, *_ = tables(4, 10, 60)
    blocks = reranked(query, gallery, original_weight=1.0)
    assert np.array_equal(rank(query, gallery, k=60, blocks=blocks).indices, rank(query, gallery, k=60).indices)


def test_block_size_and_threads_change_no_bit():
    query, gallery, *_ = tables(5, 150, 400, dim=16, objects=40)
    made = whole(query, gallery, threads=1)
    for block_rows, threads in ((1, 1), (7, 2), (149, 3)):
        assert np.array_equal(whole(query, gallery, block_rows=block_rows, threads=threads), made)


def test_neighbours_that_agree_come_before_one_that_is_only_near():
    # Four of the query's object on one side of it; on the other side two strangers are nearer than the last of them.
    angles = np.radians([0, 9, 17, 25, 33, -28, -31, -34, -37, -40])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    objects = np.array([1] * 5 + [2] * 5)
    query, gallery = rows[:1], rows[1:]
    who, seen = (Identities(some, np.full(len(some), camera)) for camera, some in enumerate((objects[:1], objects[1:])))
    judge = {"query_identities": who, "gallery_identities": seen}
    plain = evaluate_retrieval(query, gallery, **judge)
    better = evaluate_retrieval(query, gallery, **judge, blocks=reranked(query, gallery, k1=4, k2=2))
    assert plain.mean_ap < better.mean_ap == better.mean_inp == 1.0


def test_the_rule_of_market_comes_after_it():
    query, gallery, mine, theirs = tables(6, 30, 120)
    dice = rng(6, "cameras")
    who, seen = (Identities(some, dice.integers(0, 3, len(some))) for some in (mine, theirs))
    judge = {"query_identities": who, "gallery_identities": seen}
    report = evaluate_retrieval(query, gallery, **judge, blocks=reranked(query, gallery), block_rows=11)
    scores = 1 - naive.rerank(query, gallery, 20, 6, 0.3)
    # A gallery of one-hot rows and queries of scores: their products are the scores.
    wanted = naive.evaluate(scores, np.eye(120), who, seen, (1, 5, 10, 20))
    assert (report.mean_ap, report.mean_inp) == pytest.approx(wanted[:2], abs=1e-6)
    assert report.cmc == pytest.approx(wanted[2])


def test_a_collapsed_encoder_is_ranked_by_index():
    rows = np.tile(unit(np.ones((1, 5))), (40, 1))
    made = whole(rows[:10], rows[10:], k1=5, k2=2)
    assert np.isfinite(made).all()


def test_the_square_matrix_does_not_exist():
    query, gallery, *_ = tables(7, 300, 2700, dim=4, objects=200)
    tracemalloc.start()
    blocks = reranked(query, gallery)
    for _ in blocks(query, gallery, block_rows=16):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 3000**2 / 2  # half a matrix of float32; the authors' code holds several


def test_wrong_input_is_refused():
    query, gallery, *_ = tables(8, 2, 5)
    for options in ({"k1": 2, "k2": 3}, {"k2": 0}, {"original_weight": 1.5}):
        with pytest.raises(ConfigError, match="1 <= k2 <= k1 and 0 <= original_weight <= 1"):
            reranked(query, gallery, **options)
    with pytest.raises(ConfigError, match=r"reranking.k1 below the 7 images of query and gallery; came 20"):
        reranked(query, gallery)
    blocks = reranked(query, gallery, k1=3, k2=2)
    with pytest.raises(GraclError, match="the tables that re-ranking was made of; came 2 and 4 rows"):
        list(blocks(query, gallery[:4]))
    assert len(list(similarity_blocks(query, gallery[:4]))) == 1

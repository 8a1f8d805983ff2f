import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from gracl.errors import GraclError
from gracl.randomness import rng
from gracl.retrieval.metrics import average_precision, evaluate_retrieval
from gracl.retrieval.ranking import judged, rank
from gracl.types import Identities
from tests.naive import retrieval as naive

RANKS = (1, 2, 5, 20)


def identities(objects, cameras):
    return Identities(object_ids=np.array(objects, np.int64), camera_ids=np.array(cameras, np.int64))


def on_a_line(similarities):
    """Gallery features whose inner product with the query [1.0] is given."""
    return np.array(similarities, np.float32)[:, None]


def evaluate(query, gallery, who, seen, **options):
    return evaluate_retrieval(query, gallery, query_identities=who, gallery_identities=seen, **options)


@st.composite
def worlds(draw, whole=True):
    """Features of whole numbers (products exact, ties everywhere) or of real ones; ids with junk, unknown cameras."""
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, gallery, dim = draw(st.integers(1, 6)), draw(st.integers(1, 25)), draw(st.integers(1, 3))
    draw_side = (lambda shape: dice.integers(-2, 3, shape)) if whole else dice.standard_normal
    sides = [np.asarray(draw_side((images, dim)), np.float32) for images in (queries, gallery)]
    who = [identities(dice.integers(-1, 3, images), dice.integers(-1, 2, images)) for images in (queries, gallery)]
    return *sides, *who


def compare_with_naive_twin(world, block_rows):
    query, gallery, who, seen = world
    if not any(naive.judge_one(*world, number) for number in range(len(query))):
        with pytest.raises(GraclError, match="whose object another camera saw"):
            evaluate(*world, ranks=RANKS, block_rows=block_rows)
        return
    mean_ap, mean_inp, cmc, each = naive.evaluate(query, gallery, who, seen, RANKS)
    report = evaluate(*world, ranks=RANKS, block_rows=block_rows)
    assert (report.mean_ap, report.mean_inp) == pytest.approx((mean_ap, mean_inp), abs=1e-12)
    assert report.cmc == pytest.approx(cmc, abs=1e-12)
    assert report.counted.tolist() == [one is not None for one in each]
    assert report.average_precisions.tolist() == pytest.approx([one[0] if one else 0.0 for one in each], abs=1e-6)
    assert report.inverse_penalties.tolist() == pytest.approx([one[1] if one else 0.0 for one in each], abs=1e-6)
    assert (report.queries, report.skipped_queries) == (len(query), sum(one is None for one in each))


@settings(deadline=None, max_examples=200)
@given(worlds(), st.integers(1, 7))
def test_equals_the_naive_twin_with_ties(world, block_rows):
    compare_with_naive_twin(world, block_rows)


def similarity_matrix_without_ties(world):
    """The products of a world; assumes that no two of a query are so near that rounding could order them."""
    similarities = world[0].astype(np.float64) @ world[1].astype(np.float64).T
    assume((np.diff(np.sort(similarities, axis=1), axis=1) > 1e-5).all())
    return similarities


@settings(deadline=None, max_examples=150)
@given(worlds(whole=False), st.integers(1, 7))
def test_equals_the_naive_twin_without_ties(world, block_rows):
    similarity_matrix_without_ties(world)
    compare_with_naive_twin(world, block_rows)


@settings(deadline=None, max_examples=150)
@given(worlds(whole=False))
def test_equals_what_published_code_computes_without_ties(world):
    # As the family's evaluation does it: one query at a time, the rule of Market-1501, scikit-learn's average
    # precision; the others from the running count of matches along the sorted row.
    similarities = similarity_matrix_without_ties(world)
    _, _, who, seen = world
    wanted = {}
    for number in range(len(similarities)):
        counts = judged(int(who.object_ids[number]), int(who.camera_ids[number]), seen)
        correct, row = seen.object_ids[counts] == who.object_ids[number], similarities[number, counts]
        if correct.any():
            found = np.cumsum(correct[np.argsort(-row)])
            last = np.argmax(found == found[-1])
            wanted[number] = average_precision_score(correct, row), found[last] / (last + 1), found >= 1
    assume(wanted)
    report = evaluate(*world, ranks=RANKS)
    precisions, penalties, finds = zip(*wanted.values(), strict=True)
    assert np.flatnonzero(report.counted).tolist() == list(wanted)
    assert report.average_precisions[report.counted].tolist() == pytest.approx(precisions, abs=1e-6)
    assert report.inverse_penalties[report.counted].tolist() == pytest.approx(penalties, abs=1e-6)
    assert (report.mean_ap, report.mean_inp) == pytest.approx((np.mean(precisions), np.mean(penalties)), abs=1e-9)
    assert report.cmc == pytest.approx({r: np.mean([found[:r].any() for found in finds]) for r in RANKS}, abs=1e-12)


def test_agrees_with_the_ranking_it_judges():
    dice = rng(0, "agreement")
    query, gallery = (dice.standard_normal((rows, 8)).astype(np.float32) for rows in (20, 60))
    who, seen = (identities(dice.integers(0, 5, rows), dice.integers(0, 3, rows)) for rows in (20, 60))
    report = evaluate(query, gallery, who, seen, block_rows=7)
    ranking = rank(query, gallery, query_identities=who, gallery_identities=seen, k=60, block_rows=7)
    for number in np.flatnonzero(report.counted):
        rows = ranking.indices[number][ranking.indices[number] >= 0]
        hits = np.flatnonzero(seen.object_ids[rows] == who.object_ids[number]) + 1
        assert report.average_precisions[number] == np.float32(average_precision(hits))


def test_a_case_one_can_check_in_the_head():
    # In order: wrong, right, (same camera: out), wrong, right -> ranks 2 and 4 -> (1/2 + 2/4) / 2, and 2 of 4.
    gallery = on_a_line([0.9, 0.8, 0.7, 0.6, 0.5])
    report = evaluate(
        on_a_line([1.0]), gallery, identities([3], [0]), identities([4, 3, 3, 5, 3], [0, 1, 0, 1, 2]), ranks=(1, 2, 3)
    )
    assert report.mean_ap == 0.5
    assert report.cmc == {1: 0.0, 2: 1.0, 3: 1.0}
    assert report.metrics() == {"val/mAP": 0.5, "val/mINP": 0.5, "val/rank1": 0.0, "val/rank2": 1.0, "val/rank3": 1.0}


def test_the_names_of_the_usual_figures():
    one = on_a_line([1.0])
    report = evaluate(one, one, identities([1], [0]), identities([1], [1]))
    names = ["val/mAP", "val/mINP", "val/rank1", "val/rank5", "val/rank10", "val/rank20"]
    assert report.metrics() == dict.fromkeys(names, 1)


def test_the_hardest_match_alone_decides_the_penalty():
    who, gallery = identities([1], [0]), on_a_line([0.9, 0.8, 0.7, 0.6, 0.5])
    for objects, wanted in (([1, 1, 2, 2, 2], 1.0), ([1, 2, 2, 2, 1], 2 / 5), ([2, 2, 2, 1, 1], 2 / 5)):
        report = evaluate(on_a_line([1.0]), gallery, who, identities(objects, [1] * 5))
        assert report.mean_inp == pytest.approx(wanted)
        assert report.inverse_penalties.tolist() == pytest.approx([wanted])


def test_equal_similarities_stand_in_order_of_gallery_index():
    query, gallery, who = on_a_line([1.0]), on_a_line([0.5, 0.5, 0.5]), identities([1], [0])
    for objects, wanted in (([1, 2, 2], 1.0), ([2, 1, 2], 1 / 2), ([2, 2, 1], 1 / 3), ([2, 1, 1], (1 / 2 + 2 / 3) / 2)):
        assert evaluate(query, gallery, who, identities(objects, [1, 1, 1])).mean_ap == pytest.approx(wanted)


def test_skipped_queries_are_in_neither_mean():
    # The second query has no match at all, the third only one from its own camera, the fourth is of unknown object.
    query = on_a_line([1.0, 1.0, 1.0, 1.0])
    report = evaluate(
        query,
        on_a_line([0.9, 0.8, 0.7]),
        identities([1, 9, 2, -1], [0, 0, 0, 0]),
        identities([2, 1, -1], [0, 1, 1]),
        ranks=(1, 2),
    )
    assert report.counted.tolist() == [True, False, False, False]
    assert report.average_precisions.tolist() == report.inverse_penalties.tolist() == [0.5, 0, 0, 0]
    assert (report.queries, report.skipped_queries) == (4, 3)
    assert (report.mean_ap, report.cmc) == (0.5, {1: 0.0, 2: 1.0})


@pytest.mark.parametrize(
    ("who", "seen"),
    [
        (identities([1], [0]), identities([2, 3], [1, 1])),  # no match
        (identities([1], [0]), identities([1, 1], [0, 0])),  # all left out: same camera
        (identities([-1], [0]), identities([-1, -1], [1, 1])),  # all unknown
    ],
    ids=["no match", "all same camera", "all unknown"],
)
def test_no_query_to_judge_is_refused_with_advice(who, seen):
    with pytest.raises(GraclError, match=r"expected .* another camera saw .*; came none among 1 queries; check"):
        evaluate(on_a_line([1.0]), on_a_line([0.9, 0.8]), who, seen)


def test_no_queries_or_no_gallery_is_refused():
    one, none = on_a_line([1.0]), np.empty((0, 1), np.float32)
    some, nobody = identities([1], [0]), identities([], [])
    for sides in ((none, one, nobody, some), (one, none, some, nobody), (none, none, nobody, nobody)):
        with pytest.raises(GraclError, match="another camera saw"):
            evaluate(*sides)


def test_unknown_cameras_leave_nothing_out():
    query, gallery, seen = on_a_line([1.0]), on_a_line([0.9, 0.8]), identities([1, 2], [-1, -1])
    assert evaluate(query, gallery, identities([1], [-1]), seen).mean_ap == 1.0
    assert evaluate(query, gallery, identities([1], [0]), seen).mean_ap == 1.0


def test_distractors_are_wrong_answers_and_junk_is_no_answer():
    query, who = on_a_line([1.0]), identities([1], [0])
    gallery, cameras = on_a_line([0.9, 0.8, 0.7]), [1, 1, 1]
    assert evaluate(query, gallery, who, identities([0, 0, 1], cameras)).mean_ap == pytest.approx(1 / 3)
    assert evaluate(query, gallery, who, identities([-1, 0, 1], cameras)).mean_ap == pytest.approx(1 / 2)
    assert evaluate(query, gallery, who, identities([-1, -1, 1], cameras)).mean_ap == 1.0
    # A distractor from the query's own camera is no same object: it stays.
    assert evaluate(query, gallery, who, identities([0, 1, 1], [0, 1, 1])).cmc[1] == 0.0


def test_a_collapsed_encoder_is_judged_by_the_order_of_the_gallery():
    gallery = np.ones((300, 4), np.float32)
    objects = rng(3, "collapse").integers(0, 10, 300)
    report = evaluate(np.ones((1, 4), np.float32), gallery, identities([3], [0]), identities(objects, np.ones(300)))
    hits = np.flatnonzero(objects == 3) + 1
    assert report.mean_ap == pytest.approx(average_precision(hits))


def test_memory_is_that_of_a_block_not_of_the_matrix():
    queries, images = 400, 3000
    dice = rng(4, "memory")
    query, gallery = (dice.standard_normal((rows, 4)).astype(np.float32) for rows in (queries, images))
    who, seen = (
        identities(np.arange(queries) % 50, np.zeros(queries)),
        identities(np.arange(images) % 50, np.ones(images)),
    )
    tracemalloc.start()
    evaluate(query, gallery, who, seen, block_rows=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Torch's one block (here 96 kB) is not traced; everything else is rows. A matrix of booleans would be 1.2 MB.
    assert peak < queries * images / 4


def test_wrong_input_is_refused():
    one, who = on_a_line([1.0]), identities([1], [0])
    with pytest.raises(GraclError, match=r"CMC ranks >= 1; came \[0, 5\]"):
        evaluate(one, one, who, identities([1], [1]), ranks=(0, 5))
    with pytest.raises(GraclError, match="1 object and camera ids for the query features; came 2 and 2"):
        evaluate(one, one, identities([1, 2], [0, 0]), who)
    with pytest.raises(GraclError, match="finite gallery features"):
        evaluate(one, one * np.inf, who, who)

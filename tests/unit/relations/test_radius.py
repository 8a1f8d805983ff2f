import inspect

import numpy as np
import pytest

from gracl.errors import ConfigError
from gracl.randomness import rng
from gracl.relations.jaccard import reciprocal_weights, shared_distance
from gracl.relations.lists import invert
from gracl.relations.radius import CANDIDATES, choose_eps, covered_silhouette, largest_eps, middle_of_best
from gracl.relations.relate import relate
from gracl.similarity import nearest
from tests.naive import cameras as dense
from tests.naive import radius as naive
from tests.unit.relations.test_diagnostics import lists_of, random_weights
from tests.unit.relations.test_relate import objects


def graph_of(weights, limit=CANDIDATES[-1]):
    """Distances, weights and their inverse, as `choose_eps` takes them."""
    inverted = invert(weights)
    return shared_distance(weights, inverted, limit=limit, threads=1), weights, inverted


def graph_of_features(features, k1=10, k2=3):
    return graph_of(reciprocal_weights(nearest(features, k1), features, k1=k1, k2=k2))


@pytest.mark.parametrize("seed", range(60))
def test_is_the_choice_of_the_double_loop(seed):
    dice = rng(seed, "case")
    rows, min_samples = int(dice.integers(1, 30)), int(dice.integers(1, 5))
    full = random_weights(seed, rows, copies=rows // 2 if seed % 2 else 0)
    graph = graph_of(lists_of(full))
    distance, stored = dense.distance(full), graph_of(lists_of(full), limit=1.0)[0].toarray()
    stored[stored == 0] = 1  # what is not stored; zeros that are stored come back next
    stored[distance == 0] = 0
    expect = [naive.score(distance, stored, eps, min_samples) for eps in CANDIDATES]
    found = [covered_silhouette(*graph, eps=eps, min_samples=min_samples) for eps in CANDIDATES]
    assert found == pytest.approx(expect, abs=2e-5)
    # From its own scores, because where one is as good as on the border of "close", single precision decides.
    assert choose_eps(*graph, min_samples=min_samples) == pytest.approx(naive.middle(CANDIDATES, found), abs=1e-12)


@pytest.mark.parametrize("seed", range(100))
def test_the_middle_of_the_best_is_that_of_the_walk(seed):
    dice = rng(seed, "scores")
    count = int(dice.integers(1, 18))
    # Whole numbers tie often; of the others many are close to the best, in several runs.
    scores = dice.integers(-2, 3, count) / 1.0 if seed % 2 else 0.5 + 0.02 * dice.random(count)
    candidates = np.sort(dice.random(count))
    assert middle_of_best(candidates, scores) == pytest.approx(naive.middle(candidates, scores), abs=1e-12)


def test_the_middle_is_never_in_a_valley():
    candidates = np.array([0.3, 0.4, 0.5, 0.6, 0.7])
    assert middle_of_best(candidates, np.array([0.9, 0.1, 0.1, 0.895, 0.1])) == 0.3
    assert middle_of_best(candidates, np.array([0.1, 0.895, 0.9, 0.1, 0.9])) == pytest.approx(0.45)


def test_without_two_clusters_anywhere_all_are_alike():
    graph = graph_of_features(np.eye(20, dtype=np.float32), k1=1, k2=1)
    assert choose_eps(*graph) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(4))
def test_finds_objects_between_too_much_noise_and_running_together(seed):
    features, truth = objects(seed, count=16, each=20, spread=0.75, noise=40)
    chosen, narrow, wide = (relate(features, k1=30, k2=4, eps=eps) for eps in ("auto", 0.3, 0.6))
    assert 0.3 < chosen.stats["eps"] < 0.6 == wide.stats["eps"]
    for other in (narrow, wide):
        assert pairwise_f(truth, chosen.labels) > pairwise_f(truth, other.labels) + 0.1


def pairwise_f(truth, labels):
    """Of all pairs of rows of real objects: how well "together" agrees; noise is with nobody."""
    real = truth >= 0
    same = truth[real][:, None] == truth[real][None]
    together = (labels[real][:, None] == labels[real][None]) & (labels[real] >= 0)[:, None]
    hits = (same & together).sum() - (labels[real] >= 0).sum()
    return 2 * hits / (same.sum() + together.sum() - real.sum() - (labels[real] >= 0).sum())


def test_labels_are_those_of_the_chosen_eps_given_as_a_number():
    features, _ = objects(2, count=10, each=20, spread=0.8, noise=30)
    options = {"k1": 15, "k2": 4}
    chosen = relate(features, eps="auto", **options)
    given = relate(features, eps=chosen.stats["eps"], **options)
    np.testing.assert_array_equal(chosen.labels, given.labels)
    np.testing.assert_array_equal(chosen.proxies.inter, given.proxies.inter)
    assert chosen.stats["silhouette"] == given.stats["silhouette"]


def test_does_not_depend_on_threads_or_the_reach_of_the_graph():
    features, _ = objects(3, count=16, each=25, spread=0.7, noise=60)
    weights = reciprocal_weights(nearest(features, 15), features, k1=15, k2=4)
    inverted = invert(weights)
    near, whole = (shared_distance(weights, inverted, limit=limit) for limit in (CANDIDATES[-1], 1.0))
    before = near.data.copy()
    found = {choose_eps(graph, weights, inverted, threads=threads) for graph in (near, whole) for threads in (1, 3)}
    assert len(found) == 1
    np.testing.assert_array_equal(near.data, before)


@pytest.mark.parametrize("seed", range(5))
def test_nearly_equal_features_have_nearly_the_same_eps(seed):
    features, _ = objects(seed, count=16, each=25, spread=0.7, noise=60)
    chosen = []
    for draw in range(4):
        noise = rng(draw, "shaken").standard_normal(features.shape, np.float32)
        rows = features + 0.05 * draw / 3 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        chosen.append(choose_eps(*graph_of_features(rows, k1=20, k2=6)))
    assert max(chosen) - min(chosen) < 0.1


def test_how_far_the_graph_reaches():
    assert largest_eps(0.85, "dbscan") == 0.85
    assert largest_eps(0.85, "hdbscan") == 0.85
    assert largest_eps("auto", "dbscan") == CANDIDATES[-1] == 0.7
    assert CANDIDATES[0] == 0.3


@pytest.mark.parametrize("clustering", ["hdbscan", "infomap"])
def test_only_dbscan_has_an_eps_to_choose(clustering):
    with pytest.raises(ConfigError, match=f"auto with clustering=dbscan; came eps=auto, clustering={clustering}"):
        relate(objects()[0], k1=10, k2=3, clustering=clustering, eps="auto")
    with pytest.raises(ConfigError, match="came eps=knee"):
        inspect.unwrap(largest_eps)("knee", "dbscan")  # without the shape checks of the tests, as in production


def test_hdbscan_has_no_eps_to_tell():
    assert "eps" not in relate(objects()[0], k1=10, k2=3, clustering="hdbscan", min_samples=3).stats


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.7), (1, 0.775), (3, 0.925), (4, 1.0), (9, 1.0)])
@pytest.mark.parametrize("clustering", ["dbscan", "infomap"])
def test_a_rising_eps_is_the_number_that_it_comes_to(epoch, share, clustering):
    if clustering == "infomap":
        pytest.importorskip("infomap")
    features, options = objects(3, noise=20)[0], {"k1": 10, "k2": 3, "clustering": clustering, "min_samples": 2}
    risen = relate(features, eps=0.6, eps_first=0.7, eps_rise=4, epoch=epoch, **options)
    plain = relate(features, eps=0.6 * share, **options)
    assert risen.stats["eps"] == pytest.approx(0.6 * share)
    assert risen.labels.tolist() == plain.labels.tolist()


def test_an_eps_that_chooses_itself_rises_too():
    features, options = objects(5, noise=20)[0], {"k1": 10, "k2": 3, "eps": "auto"}
    chosen = relate(features, epoch=1, **options).stats["eps"]
    assert relate(features, epoch=1, eps_first=0.8, eps_rise=2, **options).stats["eps"] == pytest.approx(0.9 * chosen)
    assert relate(features, epoch=2, eps_first=0.8, eps_rise=2, **options).stats["eps"] == chosen


@pytest.mark.parametrize("wrong", [{"eps_first": 0.0}, {"eps_first": 1.1}, {"eps_first": 0.9, "eps_rise": 0}])
def test_a_rise_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="eps_first above 0 and at most 1, eps_rise of 1 or more"):
        relate(objects()[0], k1=10, k2=3, **wrong)
    with pytest.raises(ConfigError, match="an eps between 0.02"):  # the eps of this epoch less the gap would be below 0
        relate(objects()[0], k1=10, k2=3, eps=0.06, eps_first=0.3, reliability=0.5)

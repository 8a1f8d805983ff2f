import logging

import numpy as np
import pytest

from gracl.errors import ClusteringCollapsed, ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.checks import check_clusters
from gracl.relations.clusters import numbered
from gracl.relations.collapse import Fallback, settle, words
from gracl.relations.proxies import mine_proxies
from gracl.relations.relate import relate
from tests.naive import collapse as naive

POLICIES = ("stop", "keep_previous", "relax_eps")
OPTIONS = {"k1": 10, "k2": 3, "min_samples": 4, "threads": 1}


def objects(seed=0, count=6, each=12, dim=16, spread=0.5):
    """Unit rows of well-separated objects, one object after the other."""
    dice = rng(seed, "collapse")
    centres = 3 * np.linalg.qr(dice.standard_normal((dim, dim)))[0][:count]
    rows = np.repeat(centres, each, axis=0) + spread * dice.standard_normal((count * each, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def labels_by_eps(seed, rows=12):
    """A clustering that is other at each eps: few or many clusters, some noise or none."""

    def at(eps):
        dice = rng(seed, "labels", round(eps * 1e6))
        return np.asarray(numbered(dice.integers(-1, int(dice.integers(0, 5)), rows)))

    return at


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(60))
def test_is_the_naive_twin(policy, seed):
    dice, again = rng(seed, "settle"), labels_by_eps(seed)
    least, factor, tries = int(dice.integers(2, 5)), float(dice.choice([1.1, 1.3, 2.0])), int(dice.integers(1, 6))
    eps, largest = float(dice.choice([0.1, 0.5, 0.9])), float(dice.choice([1.0, 0.98]))
    previous = np.arange(12) % 6 if dice.random() < 0.7 else None
    wanted = naive.settled(again(eps), policy, least, factor, tries, eps, largest, again, previous)
    found = settle(
        again(eps),
        Fallback(policy, least, factor, tries),
        eps=eps,
        largest=largest,
        again=again,
        previous=previous,
    )
    if wanted is None:
        assert naive.count(found.labels) < least
        with pytest.raises(ClusteringCollapsed):
            check_clusters(found.labels, "dbscan", eps, least=least, tried=found.tried)
        return
    np.testing.assert_array_equal(found.labels, wanted[0])
    assert (found.eps, found.figures) == wanted[1:]


def test_relaxed_labels_are_those_of_the_eps_that_was_reached():
    features = objects(spread=0.8)
    with pytest.raises(ClusteringCollapsed, match="raise eps"):
        relate(features, eps=0.08, **OPTIONS)
    found = relate(features, eps=0.08, on_collapse="relax_eps", relax_factor=1.4, **OPTIONS)
    tries = int(found.stats["relax_tries"])
    assert tries >= 2, "the case is meant to need more than one try"
    assert found.stats["eps"] == pytest.approx(0.08 * 1.4**tries)
    wanted = relate(features, eps=found.stats["eps"], **OPTIONS)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_array_equal(found.proxies.inter_image, wanted.proxies.inter_image)
    assert (found.stats["collapsed"], found.stats["found"]) == (1, 0)
    told = [found.stats[f"relax_{number}_clusters"] for number in range(1, tries + 1)]
    assert told[-1] == found.clusters >= 2
    assert max(told[:-1]) < 2
    assert set(found.stats) - set(wanted.stats) == {
        "collapsed",
        "found",
        "relax_tries",
        *(f"relax_{number}_{what}" for number in range(1, tries + 1) for what in ("eps", "clusters")),
    }


def test_reliability_is_asked_at_each_try():
    features = objects(spread=0.8)
    found = relate(features, eps=0.08, on_collapse="relax_eps", relax_factor=1.4, reliability=0.3, **OPTIONS)
    wanted = relate(features, eps=found.stats["eps"], reliability=0.3, **OPTIONS)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.stats["unreliable"] == wanted.stats["unreliable"]


def test_tries_are_bounded_and_told():
    with pytest.raises(
        ClusteringCollapsed, match=r"0 among 72 images.*and a larger eps gave 0 at 0\.0101, 0 at 0\.0102; raise"
    ):
        relate(objects(), eps=0.01, on_collapse="relax_eps", relax_factor=1.01, relax_tries=2, **OPTIONS)


def test_one_cluster_of_all_is_not_helped_by_a_larger_eps():
    copies = np.repeat(objects(count=1, each=1), 20, axis=0)
    with pytest.raises(ClusteringCollapsed, match="1 among 20 images.*a larger eps could not help; lower eps"):
        relate(copies, eps=0.5, on_collapse="relax_eps", **OPTIONS)


@pytest.mark.parametrize("noise", ["left_out", "own_clusters"])
@pytest.mark.parametrize("bad", [{"eps": 0.01}, {"clustering": "hdbscan", "min_cluster_size": 60}])
def test_kept_labels_get_proxies_of_the_new_features(noise, bad, caplog):
    old = relate(objects(0), eps=0.6, noise=noise, **OPTIONS)
    features = objects(1, spread=0.3)
    with caplog.at_level(logging.WARNING, "gracl.relations"):
        found = relate(
            features, epoch=4, previous=old.labels, on_collapse="keep_previous", noise=noise, **bad | OPTIONS
        )
    np.testing.assert_array_equal(found.labels, old.labels)
    wanted = mine_proxies(features, old.labels, threads=1)
    np.testing.assert_array_equal(found.proxies.inter_image, wanted.inter_image)
    np.testing.assert_array_equal(found.proxies.intra, wanted.intra)
    np.testing.assert_array_equal(found.proxies.cluster_sums, wanted.cluster_sums)
    assert (found.stats["collapsed"], found.stats["kept_previous"]) == (1, 1)
    assert found.stats["found"] < 2
    assert "epoch 5: the clustering collapsed to" in caplog.text


def test_without_labels_of_an_epoch_before_nothing_can_be_kept():
    with pytest.raises(ClusteringCollapsed, match="no labels of an epoch before it that could be kept; raise eps"):
        relate(objects(), eps=0.01, on_collapse="keep_previous", **OPTIONS)


def test_labels_of_other_images_are_refused():
    with pytest.raises(GraclError, match="previous labels of 72 images; came 3"):
        relate(objects(), eps=0.01, on_collapse="keep_previous", previous=np.arange(3), **OPTIONS)


def test_fewer_than_the_least_is_a_collapse_under_every_policy():
    features, previous = objects(), np.repeat(np.arange(8), 9)
    assert relate(features, eps=0.6, **OPTIONS).clusters == 6
    with pytest.raises(ClusteringCollapsed, match="at least 7 clusters; came 6 among 72 images"):
        relate(features, eps=0.6, least_clusters=7, **OPTIONS)
    kept = relate(features, eps=0.6, least_clusters=7, on_collapse="keep_previous", previous=previous, **OPTIONS)
    assert (kept.clusters, kept.stats["found"]) == (8, 6)
    enough = relate(features, eps=0.6, least_clusters=6, on_collapse="keep_previous", previous=previous, **OPTIONS)
    assert (enough.clusters, enough.stats["collapsed"]) == (6, 0)
    assert "found" not in enough.stats


def test_stop_tells_no_figures():
    assert not {"collapsed", "found"} & set(relate(objects(), eps=0.6, **OPTIONS).stats)


@pytest.mark.parametrize("clustering", ["hdbscan", "infomap"])
def test_relaxing_is_refused_where_eps_is_not_what_decides(clustering):
    with pytest.raises(ConfigError, match="relations.clustering=dbscan with on_collapse=relax_eps"):
        relate(objects(), clustering=clustering, on_collapse="relax_eps", **OPTIONS)


@pytest.mark.parametrize("changes", [{"least_clusters": 1}, {"relax_factor": 1.0}, {"relax_tries": 0}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match="expected"):
        relate(objects(), **changes, **OPTIONS)


def test_a_word_that_there_is_not_is_refused():
    fallback = Fallback()
    object.__setattr__(fallback, "on_collapse", "hope")
    with pytest.raises(ConfigError, match="on_collapse of stop, keep_previous, relax_eps; came 'hope'"):
        fallback.check("dbscan")


def test_what_was_done_is_said_in_words():
    assert words({"number": 5.0}) == words({"collapsed": 0.0}) == ""
    begun = {"collapsed": 1.0, "found": 1.0}
    assert words(begun | {"kept_previous": 1.0}).endswith(
        "collapsed to 1 clusters; the labels of the epoch before were kept, with proxies mined anew"
    )
    tried = {
        "relax_tries": 2.0,
        "relax_1_eps": 0.66,
        "relax_1_clusters": 1.0,
        "relax_2_eps": 0.726,
        "relax_2_clusters": 9.0,
    }
    assert words(begun | tried).endswith("eps=0.66 gave 1, eps=0.726 gave 9")
    assert words(begun | {"relax_tries": 0.0}).endswith("nothing could be tried")

"""What of a clustering is shown."""

import itertools

import numpy as np
import pytest

from gracl.relations.proxies import mine_proxies
from gracl.retrieval.showing import noise_to_show, notable_clusters, pair_similarities
from tests.clustered import case


def shown(seed=0, rows=120, clusters=9, **options):
    features, labels = case(seed, rows, clusters, spread=0.6)
    proxies = mine_proxies(features, labels)
    cameras = np.random.default_rng(seed).integers(0, 4, rows)
    return features, labels, proxies, cameras, notable_clusters(features, labels, proxies, cameras, **options)


@pytest.mark.parametrize("seed", range(8))
def test_the_clusters_shown_are_the_extreme_ones(seed):
    features, labels, _, cameras, found = shown(seed, each=3)
    sizes = {cluster: int((labels == cluster).sum()) for cluster in range(9)}
    seen = {cluster: len(set(cameras[labels == cluster])) for cluster in range(9)}
    close = {
        cluster: float(np.linalg.norm(features[labels == cluster].astype(np.float64).mean(0))) for cluster in range(9)
    }
    for kind, measure in (
        ("largest", {cluster: -size for cluster, size in sizes.items()}),
        ("most cameras", {cluster: -count for cluster, count in seen.items()}),
        ("loosest", close),
    ):
        assert [one.cluster for one in found[kind]] == sorted(range(9), key=lambda c: (round(measure[c], 9), c))[:3]
    for one in itertools.chain(*found.values()):
        assert (one.size, one.cameras) == (sizes[one.cluster], seen[one.cluster])
        assert one.closeness == pytest.approx(close[one.cluster], abs=1e-5)


@pytest.mark.parametrize("members", [1, 2, 5, 200])
def test_members_are_of_the_cluster_the_intra_proxy_first_and_each_once(members):
    _, labels, proxies, _, found = shown(members=members)
    for one in found["largest"]:
        assert one.members[0] == proxies.intra_image[one.cluster]
        assert one.inter == proxies.inter_image[one.cluster]
        assert (labels[one.members] == one.cluster).all()
        assert len(set(one.members)) == len(one.members) == min(members, one.size)


def test_cameras_that_are_not_known_are_not_counted():
    features, labels, proxies, cameras, _ = shown()
    cameras[3] = -1
    found = notable_clusters(features, labels, proxies, cameras)
    assert set(found) == {"largest", "loosest"}
    assert found["largest"][0].cameras == 0


def test_noise_is_noise_and_no_more_than_there_is():
    labels = np.array([0, -1, 1, -1, -1])
    assert noise_to_show(labels, 9).tolist() == [1, 3, 4]
    assert len(noise_to_show(labels, 2)) == 2
    assert len(noise_to_show(np.array([0, 1]))) == 0


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_of_their_kind_and_their_means_are_those_of_all_pairs(seed):
    features, labels = case(seed, 60, 6, spread=0.5, noise=0.3)
    intra, inter = pair_similarities(features, labels, most=40_000)
    every = {True: {}, False: {}}
    for one in np.flatnonzero(labels >= 0):
        others = np.flatnonzero((labels >= 0) & (np.arange(60) != one))
        for same in (True, False):
            some = others[(labels[others] == labels[one]) == same]
            if len(some):
                every[same][one] = features[some] @ features[one]
    for drawn, same in ((intra, True), (inter, False)):
        known = np.concatenate(list(every[same].values()))
        assert np.abs(drawn[:500, None] - known[None]).min(1).max() < 1e-5
        # An image evenly, then one of its partners evenly.
        assert drawn.mean() == pytest.approx(np.mean([row.mean() for row in every[same].values()]), abs=0.02)


def test_clusters_of_one_have_no_pair_inside():
    features, _ = case(0, 6, 2)
    intra, inter = pair_similarities(features, np.arange(6), most=100)
    assert len(intra) == 0
    assert len(inter) == 100

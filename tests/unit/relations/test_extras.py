"""Instances, consensus and centring: what the loss may be told beside labels, and what is taken from features."""

import numpy as np
import pytest

from gracl.errors import ConfigError
from gracl.relations.camera_proxies import mine_camera_proxies
from gracl.relations.centring import centre_by_camera, centre_by_neighbours
from gracl.relations.checks import check_extras
from gracl.relations.consensus import neighbour_consensus
from gracl.relations.instances import pick_instances
from gracl.relations.proxies import mine_proxies
from gracl.relations.relate import relate
from gracl.similarity import nearest
from tests.clustered import case, lists_of, mixed, random_weights
from tests.naive import extras as naive


def in_another_order(full, seed):
    """The lists of dense weights by image, in rows that do not stand in order of index."""
    names = np.random.default_rng(seed).permutation(len(full))
    return lists_of(full[np.ix_(names, names)])._replace(names=names)


@pytest.mark.parametrize("seed", range(30))
def test_consensus_is_the_sum_by_cluster(seed):
    _, labels = mixed(seed)
    full = random_weights(seed, len(labels), copies=seed % 3)
    kept = 1 + seed % 4
    found = neighbour_consensus(in_another_order(full, seed), labels, kept, threads=1 + seed % 2)
    for image in range(len(labels)):
        wanted = naive.consensus(full, labels, image, kept)
        assert found.clusters[image].tolist() == [cluster for cluster, _ in wanted] + [-1] * (kept - len(wanted))
        np.testing.assert_allclose(found.shares[image][: len(wanted)], [share for _, share in wanted], rtol=1e-6)
        assert (found.shares[image][len(wanted) :] == 0).all()


@pytest.mark.parametrize("seed", range(12))
def test_instances_are_members_and_as_many_different_ones_as_there_are(seed):
    features, labels = mixed(seed)
    each = 1 + seed % 5
    found = pick_instances(features, labels, each, epoch=seed)
    np.testing.assert_array_equal(found.rows, features[np.unique(found.images)])
    for cluster, images in enumerate(found.images):
        members = np.flatnonzero(labels == cluster)
        assert set(images) <= set(members)
        times = np.unique(images, return_counts=True)[1]
        assert len(times) == min(each, len(members))
        assert times.max() - times.min() <= 1


def test_other_epochs_draw_other_instances_and_the_same_epoch_the_same():
    features, labels = case(1, 200, 4)
    one, same, other = (pick_instances(features, labels, 8, epoch=epoch).images for epoch in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("seed", range(6))
def test_centring_takes_away_the_mean_of_the_camera(seed):
    features, _ = case(seed, 40, 3, spread=0.5)
    cameras = np.random.default_rng(seed).integers(-1, 3, 40)
    found = centre_by_camera(features, cameras, block_rows=7, threads=1)
    np.testing.assert_allclose(found, naive.centred(features, cameras), atol=1e-5)
    np.testing.assert_array_equal(found, centre_by_camera(features, cameras, threads=2))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(40), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_local_centring_takes_away_the_mean_of_the_nearest(seed):
    features, _ = case(seed, 40, 3, spread=0.5)
    nearby = nearest(features, 9)
    found = centre_by_neighbours(features, nearby, block_rows=7)
    np.testing.assert_allclose(found, naive.less_the_nearest(features, 9), atol=1e-5)
    np.testing.assert_array_equal(found, centre_by_neighbours(features, nearby))
    half = centre_by_neighbours(features.astype(np.float16), nearby)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, found, atol=5e-3)


@pytest.mark.parametrize("seed", range(12))
def test_camera_proxies_are_the_means_by_camera(seed):
    features, labels = mixed(seed)
    cameras = np.random.default_rng(seed).integers(-1, 4, len(labels))
    found, wanted = (
        mine_camera_proxies(features, labels, cameras, threads=1, block_rows=7),
        naive.camera_proxies(features, labels, cameras),
    )
    assert list(zip(found.clusters, found.cameras, strict=True)) == list(wanted)
    np.testing.assert_allclose(found.rows, list(wanted.values()), atol=1e-5)
    for image, row in enumerate(found.of_image):
        assert row == (-1 if labels[image] < 0 else list(wanted).index((labels[image], cameras[image])))


def test_a_row_without_anything_of_its_own_stays():
    same = np.tile(np.eye(1, 4, dtype=np.float32), (5, 1))
    np.testing.assert_array_equal(centre_by_camera(same, np.zeros(5, np.int64), threads=1), same)
    np.testing.assert_array_equal(centre_by_neighbours(same, nearest(same, 3)), same)
    many = np.tile(np.random.default_rng(0).normal(size=(1, 128)), (200, 1))
    many = (many / np.linalg.norm(many, axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_array_equal(centre_by_neighbours(many, nearest(many, 150)), many)


def seen_by_cameras(objects=12, cameras=3, shots=4, dim=64):
    """Features in which a camera weighs more than an object."""
    dice = np.random.default_rng(7)
    things, places = dice.normal(size=(objects, dim)), 2 * dice.normal(size=(cameras, dim))
    who = np.repeat(np.arange(objects), cameras * shots)
    where = np.tile(np.repeat(np.arange(cameras), shots), objects)
    rows = things[who] + places[where] + 0.3 * dice.normal(size=(len(who), dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), who, where


def test_relate_finds_objects_across_cameras_once_it_is_centred():
    features, who, where = seen_by_cameras()
    options = {"k1": 12, "k2": 4, "eps": 0.5, "threads": 1, "cameras": where}
    plain, centred = relate(features, **options), relate(features, centre="camera", **options)
    assert plain.stats["single_camera_clusters"] > 0.9
    assert centred.stats["single_camera_clusters"] == 0
    assert {(a, b) for a, b in zip(centred.labels, who, strict=True)} == {(c, c) for c in range(12)}
    # Proxies are features as the encoder gives them.
    np.testing.assert_array_equal(centred.proxies.inter, features[centred.proxies.inter_image])
    assert (plain.instances, plain.consensus, plain.camera_proxies) == (None, None, None)


def test_relate_finds_more_across_cameras_once_it_is_centred_without_them():
    features, _, where = seen_by_cameras(objects=30)
    options = {"k1": 12, "k2": 4, "eps": 0.5, "threads": 1, "cameras": where}
    plain = relate(features, **options)
    told = []
    local = relate(features, centre="local", centre_k=100, progress=lambda *now: told.append(now[0]), **options)
    assert plain.stats["single_camera_clusters"] > 0.9
    assert local.stats["single_camera_clusters"] < 0.1
    assert "centre" in told
    assert local.stats["centre_s"] >= 0


@pytest.mark.parametrize("more", [{"camera_aware": True, "k1_intra": 3, "k1_inter": 8}, {"precision": "float16"}])
def test_centring_goes_with_lists_by_camera_and_with_half_precision(more):
    features, who, where = seen_by_cameras()
    found = relate(features, k1=12, k2=4, eps=0.7, threads=1, cameras=where, centre="camera", **more)
    assert {*zip(found.labels, who, strict=True)} == {(c, c) for c in range(12)}


def test_the_nearest_sample_is_looked_for_among_the_features_as_they_came():
    features, _, where = seen_by_cameras()
    options = {"inter_rule": "nearest_sample", "threads": 1}
    found = relate(features, k1=12, k2=4, eps=0.5, cameras=where, centre="camera", **options)
    alone = mine_proxies(features, found.labels, **options)
    np.testing.assert_array_equal(found.proxies.inter_image, alone.inter_image)


def test_relate_tells_what_it_is_asked_for():
    features, _, where = seen_by_cameras()
    found = relate(
        features, k1=12, k2=4, eps=0.5, threads=1, cameras=where, instances=5, consensus=3, camera_proxies=True, epoch=2
    )
    assert len(found.camera_proxies.rows) == len({*zip(found.labels, where, strict=True)} - {(-1, c) for c in range(3)})
    again = pick_instances(features, found.labels, 5, epoch=2)
    np.testing.assert_array_equal(found.instances.images, again.images)
    assert found.consensus.clusters.shape == (len(features), 3)
    clustered = found.labels >= 0
    np.testing.assert_allclose(found.consensus.shares[clustered].sum(1), 1, rtol=1e-5)
    assert (found.consensus.clusters[clustered, 0] == found.labels[clustered]).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centre": "camera"}, "camera of every image.*relations.centre=none"),
        ({"camera_proxies": True}, "camera of every image.*camera_proxies=false"),
        ({"centre": "local", "centre_k": 145}, "relations.centre_k of at most the 144 images there are"),
        ({"centre": "camera", "cameras": np.zeros(144, np.int64), "shards": 2}, "shards >= 1, and 1 with.*a centre"),
        ({"centre_k": 1}, "relations.centre_k of 2 or more"),
        ({"instances": -1}, "instances and consensus of 0 or more"),
        ({"consensus": -1}, "instances and consensus of 0 or more"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    features, _, _ = seen_by_cameras()
    with pytest.raises(ConfigError, match=message):
        relate(features, k1=12, eps=0.5, **options)


def test_another_centre_is_refused():
    with pytest.raises(ConfigError, match="a centre of none, camera or local; came 'style'"):
        check_extras("style", 150, 0, 0, 200)


def test_none_of_each_is_refused_where_some_are_asked_for():
    features, labels = case(0, 20, 2)
    with pytest.raises(ConfigError, match="instances of at least 1"):
        pick_instances(features, labels, 0)
    with pytest.raises(ConfigError, match="consensus of at least 1"):
        neighbour_consensus(lists_of(random_weights(0, 20)), labels, 0)

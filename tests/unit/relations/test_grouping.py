"""Groups without labels: rows that stand for several images, tracks, how sure an image is, and what is refused."""

import inspect

import numpy as np
import pytest
from scipy.sparse import csr_array

from gracl.errors import ConfigError, GraclError, NonFiniteValue
from gracl.randomness import rng
from gracl.relations.clustering import cluster
from gracl.relations.clusters import dbscan
from gracl.relations.confidence import confidences
from gracl.relations.grouping import by_size, group
from gracl.relations.jaccard import reciprocal_weights, shared_distance
from gracl.relations.lists import invert
from gracl.relations.refining import reliable_labels
from gracl.relations.relate import relate
from gracl.relations.tracks import fewer_neighbours, rows_of
from gracl.similarity import nearest
from tests.naive import extras
from tests.naive import grouping as naive
from tests.naive import relations as naive_relations
from tests.unit.relations.test_clusters import random_distance, sparse
from tests.unit.relations.test_refining import EPS, MIN_SAMPLES, fine_distance
from tests.unit.relations.test_relate import objects

K = {"k1": 10, "k2": 3}


def case_with_counts(seed):
    dice = rng(seed, "counted")
    rows, min_samples = int(dice.integers(1, 30)), int(dice.integers(1, 7))
    matrix = random_distance(seed, rows, reach=float(dice.uniform(0.02, 0.3)))
    return matrix, dice.integers(1, 5, rows), min_samples


@pytest.mark.parametrize("seed", range(60))
def test_a_row_that_counts_several_times_is_as_if_it_were_there_so_often(seed):
    matrix, counts, min_samples = case_with_counts(seed)
    table, firsts = naive.repeated(matrix, counts)
    wanted = naive_relations.dbscan(table, np.float32(0.6), min_samples)[firsts]
    np.testing.assert_array_equal(dbscan(sparse(matrix), eps=0.6, min_samples=min_samples, counts=counts), wanted)


def test_counting_changes_labels():
    changed = sum(
        dbscan(sparse(matrix), min_samples=least).tolist()
        != dbscan(sparse(matrix), min_samples=least, counts=counts).tolist()
        for matrix, counts, least in map(case_with_counts, range(60))
    )
    assert changed > 20


@pytest.mark.parametrize("seed", range(20))
def test_reliable_rows_that_count_several_times(seed):
    matrix, least = fine_distance(seed), (0.3, 0.5, 0.8, 1.0)[seed % 4]
    counts = rng(seed, "reliable").integers(1, 4, len(matrix))
    labels = dbscan(sparse(matrix), eps=EPS, min_samples=MIN_SAMPLES, counts=counts)
    found = reliable_labels(sparse(matrix), labels, eps=EPS, min_samples=MIN_SAMPLES, least=least, counts=counts)
    table, firsts = naive.repeated(matrix, counts)
    copies = np.repeat(labels, counts)
    kept = np.asarray(extras.reliable(table, copies, EPS, MIN_SAMPLES, least))[firsts]
    np.testing.assert_array_equal(found, naive_relations.by_first_member(np.where(kept, labels, -1)))


@pytest.mark.parametrize("counts", [np.array([1, 2]), np.array([1, 0, 2])])
def test_refuses_counts_of_other_rows_or_of_nothing(counts):
    with pytest.raises(GraclError, match="3 counts of 1 or more"):
        dbscan(sparse(np.zeros((3, 3))), counts=counts)


@pytest.mark.parametrize("clustering", ["hdbscan", "infomap"])
def test_refuses_to_count_where_nobody_can(clustering):
    with pytest.raises(ConfigError, match="clustering=dbscan where rows stand for several images"):
        cluster(csr_array((0, 0), dtype=np.float32), clustering=clustering, counts=np.empty(0, np.int64))


def drawn(seed, images):
    dice = rng(seed, "tracked")
    features = dice.standard_normal((images, 6))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    return features, dice.integers(-1, max(1, images // 3), images), dice.integers(-1, 2, images)


@pytest.mark.parametrize("seed", range(20))
def test_tracks_become_their_means(seed):
    images = int(rng(seed, "images").integers(1, 30))
    features, tracks, cameras = drawn(seed, images)
    found = rows_of(features, tracks, cameras, block_rows=7)
    means, of_image, counts, seen = naive.tracks(features, tracks, cameras)
    np.testing.assert_allclose(found.features, means, atol=1e-6)
    assert (found.of_image.tolist(), found.counts.tolist(), found.cameras.tolist()) == (of_image, counts, seen)
    again = rows_of(features, tracks, block_rows=4096, threads=2)
    np.testing.assert_array_equal(again.features, found.features)
    assert again.cameras is None


def test_a_track_that_cancels_out_has_its_first_feature_and_a_track_of_one_keeps_its_own():
    features = np.array([[1, 0], [-1, 0], [0.6, 0.8]], np.float32)
    found = rows_of(features, np.array([4, 4, 9]))
    np.testing.assert_array_equal(found.features, features[[0, 2]])


def test_numbers_of_neighbours_come_down_with_the_rows_but_not_to_nothing():
    counted = {"k1": 30, "k2": 6, "k1_intra": 5, "centre_k": 150}
    assert fewer_neighbours(counted, 300, 100) == {"k1": 10, "k2": 2, "k1_intra": 2, "centre_k": 50}
    assert fewer_neighbours(counted, 5000, 100) == {"k1": 6, "k2": 2, "k1_intra": 2, "centre_k": 20}
    assert fewer_neighbours({"k1": 4, "k2": 1}, 300, 100) == {"k1": 4, "k2": 1}
    assert fewer_neighbours(counted, 100, 100) == counted


def test_refuses_tracks_of_other_images():
    with pytest.raises(GraclError, match="tracks and cameras of 3 images"):
        rows_of(np.eye(3, dtype=np.float32), np.zeros(2, np.int64))


def sets(seed, k1=8, k2=3):
    features, _ = objects(seed, count=4, each=7, spread=0.9, noise=5)
    weights = reciprocal_weights(nearest(features, k1), features, k1=k1, k2=k2)
    return weights, invert(weights), shared_distance(weights, invert(weights))


def dense(distance):
    matrix = np.ones(distance.shape)
    found = distance.tocoo()
    matrix[found.row, found.col] = found.data
    return matrix


@pytest.mark.parametrize("seed", range(12))
def test_confidence_is_the_mean_similarity_to_the_own_group(seed):
    weights, inverted, distance = sets(seed)
    rows = distance.shape[0]
    labels = rng(seed, "labels").integers(-1, 4, rows) if seed % 2 else dbscan(distance, eps=0.6)
    labels = naive_relations.by_first_member(labels)
    found = confidences(weights, inverted, labels, threads=1)
    np.testing.assert_allclose(found, naive.confidences(dense(distance), labels), atol=1e-5)
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_array_equal(confidences(weights, inverted, labels, threads=3), found)


@pytest.mark.parametrize("seed", range(6))
def test_confidence_of_rows_that_stand_for_several_images(seed):
    weights, inverted, distance = sets(seed)
    counts = rng(seed, "counts").integers(1, 5, distance.shape[0])
    labels = dbscan(distance, eps=0.5, counts=counts)
    found = confidences(weights, inverted, labels, counts=counts)
    table, firsts = naive.repeated(dense(distance), counts)
    wanted = np.array(naive.confidences(table, np.repeat(labels, counts)))[firsts]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_nobody_speaks_for_a_group_of_one_or_for_noise():
    weights, inverted, distance = sets(0)
    labels = np.full(distance.shape[0], -1)
    labels[3] = 0
    assert confidences(weights, inverted, labels).tolist() == [0.0] * len(labels)
    with pytest.raises(GraclError, match="labels and counts"):
        confidences(weights, inverted, labels[1:])


@pytest.mark.parametrize("seed", range(10))
def test_groups_are_numbered_by_size(seed):
    labels = rng(seed, "sizes").integers(-1, 6, 25)
    assert by_size(labels).tolist() == naive.by_size(labels)


def test_no_groups_at_all():
    assert by_size(np.full(3, -1)).tolist() == [-1] * 3
    assert by_size(np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize(
    "options",
    [{}, {"eps": "auto"}, {"precision": "float16"}, {"reliability": 0.5}, {"centre": "local", "centre_k": 20}],
)
def test_groups_are_the_clusters_of_the_relations(options):
    features, _ = objects(count=5, each=13, noise=4)
    found = group(features, **K, **options)
    labels = relate(features, **K, **options).labels
    assert found.labels.tolist() == naive.by_size(labels)
    for number, centre in enumerate(found.centres):
        assert centre == naive.centre(features, np.flatnonzero(found.labels == number).tolist())
    assert (found.confidence[found.labels < 0] == 0).all()
    assert (found.confidence[found.labels >= 0] > 0).all()


def test_groups_by_camera_are_those_of_the_relations_by_camera():
    features, _ = objects()
    cameras = rng(0, "cameras").integers(0, 2, len(features))
    by_camera = {"camera_aware": True, "k1_inter": 6, "k1_intra": 4}
    found = group(features, cameras=cameras, **by_camera)
    assert found.labels.tolist() == naive.by_size(relate(features, cameras=cameras, **by_camera).labels)


def test_neither_threads_nor_blocks_change_groups():
    features, _ = objects(count=5, each=13, noise=4)
    tracks = rng(1, "tracks").integers(-1, 20, len(features))
    one, other = (
        group(features, tracks=tracks, k1=6, k2=2, threads=threads, block_rows=rows)
        for threads, rows in ((1, 4096), (3, 5))
    )
    for name in ("labels", "confidence", "centres"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_images_of_a_track_stay_together_whatever_their_features_say():
    features, truth = objects(count=6, each=12, spread=0.4)
    # Each object in tracks of three, but one track goes from an object to another.
    tracks = np.full(len(features), -1)
    for one in range(6):
        mine = np.flatnonzero(truth == one)
        tracks[mine] = one * 4 + np.arange(12) // 3
    stray = np.flatnonzero(truth == 1)[0]
    tracks[stray] = tracks[truth == 0][0]
    found = group(features, tracks=tracks, k1=4, k2=1, min_samples=4)
    assert found.rows == 24
    for number in range(24):
        mine = found.labels[tracks == number]
        assert len(set(mine.tolist())) == 1
    assert found.labels[stray] == found.labels[tracks == tracks[stray]][0]
    alone = group(features, **K)
    assert alone.labels[stray] == alone.labels[truth == 1][1], "features alone put it with its object"


def test_a_track_of_enough_images_is_a_group_by_itself():
    features = np.eye(6, dtype=np.float32)
    found = group(features, tracks=np.array([-1, 7, 7, 7, 7, -1]), k1=1, k2=1, min_samples=4)
    assert found.labels.tolist() == [-1, 0, 0, 0, 0, -1]
    assert found.confidence.tolist() == [0, 1, 1, 1, 1, 0]
    assert found.centres.tolist() == [1]


def test_nobody_has_to_be_in_a_group():
    found = group(np.eye(5, dtype=np.float32), k1=2, k2=1)
    assert found.labels.tolist() == [-1] * 5
    assert len(found.centres) == 0


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"k1": 73}, ConfigError, "at most 72 neighbours"),
        ({"k2": 11}, ConfigError, "k2 <= k1"),
        ({"eps": 1.0}, ConfigError, "eps"),
        ({"camera_aware": True}, ConfigError, "the camera of every image"),
        ({"camera_aware": True, "cameras": np.full(72, -1)}, ConfigError, "72 of 72 unknown"),
        ({"centre": "camera", "cameras": np.full(72, -1)}, ConfigError, "the camera of some image"),
        ({"tracks": np.zeros(3, np.int64)}, GraclError, "tracks and cameras of 72 images"),
        ({"tracks": np.zeros(72, np.int64)}, ConfigError, "at most 1 neighbours"),
        ({"tracks": np.zeros(72, np.int64), "clustering": "infomap"}, ConfigError, "clustering=dbscan"),
        ({"reliability": 0.5, "clustering": "hdbscan"}, ConfigError, "reliability"),
        ({"threads": -1}, ConfigError, "threads"),
    ],
)
def test_refuses(options, error, says):
    with pytest.raises(error, match=says):
        group(objects()[0], **(K | options))


def test_refuses_features_that_are_none():
    features = objects()[0].copy()
    features[3] = np.nan
    with pytest.raises(NonFiniteValue):
        group(features, **K)


def test_a_track_with_two_cameras_has_none():
    features, truth = objects()
    with pytest.raises(ConfigError, match="of a track: one camera"):
        group(features, cameras=np.arange(72) % 2, tracks=truth, camera_aware=True)


def test_the_settings_have_the_defaults_of_the_relations():
    ours, theirs = (inspect.signature(one).parameters for one in (group, relate))
    shared = set(ours) & set(theirs)
    assert len(shared) == len(ours) - 1  # all but tracks
    assert {name: ours[name].default for name in shared} == {name: theirs[name].default for name in shared}

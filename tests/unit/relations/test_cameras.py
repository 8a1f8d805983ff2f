import dataclasses
from itertools import product

import jaxtyping
import numpy as np
import pytest

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.cameras import CameraNeighbors, camera_neighbors, camera_weights
from gracl.relations.jaccard import shared_distance
from gracl.relations.lists import invert
from tests.naive import cameras as naive

# Unit rows whose inner products are exact, so that nearly everything ties.
SIGNS = np.array(list(product((-0.5, 0.5), repeat=4)), np.float32)


def blobs(seed, rows, dim=3, copies=0):
    """Unit rows around four centres, some of them exact copies of others."""
    dice = rng(seed, "blobs")
    features = dice.standard_normal((4, dim))[dice.integers(0, 4, rows)] + 0.4 * dice.standard_normal((rows, dim))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    if copies:
        features[dice.integers(0, rows, copies)] = features[dice.integers(0, rows, copies)]
    return features


def case(seed):
    """Rows, cameras (numbers with gaps; every third case has one of a single image) and the options of the weights."""
    dice = rng(seed, "case")
    rows = int(dice.integers(1, 26))
    features = SIGNS[dice.integers(0, 16, rows)] if seed % 4 == 3 else blobs(seed, rows, copies=rows // 3)
    cameras = dice.choice([0, 3, 4, 9], rows) if seed % 5 else np.full(rows, 7)
    if seed % 3 == 0:
        cameras[rows // 2] = 11
    k1 = {"k1_intra": int(dice.integers(1, 8)), "k1_inter": int(dice.integers(1, 12))}
    k2 = {
        "k2_intra": int(dice.integers(1, k1["k1_intra"] + 2)),
        "k2_inter": int(dice.integers(0, k1["k1_inter"] + 2)),
    }
    return features, cameras.astype(np.int64), k1 | k2


def neighbors_of(features, cameras, k1_intra=5, k1_inter=20, **options):
    return camera_neighbors(features, cameras, k_intra=k1_intra + 1, k_inter=k1_inter + 1, **options)


def weights_of(features, cameras, *, threads=1, **options):
    k1 = {name: options[name] for name in ("k1_intra", "k1_inter") if name in options}
    return camera_weights(neighbors_of(features, cameras, threads=1, **k1), threads=threads, **options)


def dense(lists):
    rows = len(lists.starts) - 1
    full = np.zeros((rows, rows))
    full[np.repeat(np.arange(rows), np.diff(lists.starts)), lists.ids] = lists.values
    return full


def stored(distance):
    """The matrix with 1 where nothing is stored."""
    full = np.ones(distance.shape)
    full[np.repeat(np.arange(len(full)), np.diff(distance.indptr)), distance.indices] = distance.data
    return full


def filled(lists, k):
    """Lists of any length as a table, -1 where they end."""
    return [(row + [-1] * k)[:k] for row in lists]


@pytest.mark.parametrize("seed", range(60))
def test_neighbors_are_those_of_the_double_loop(seed):
    features, cameras, options = case(seed)
    k_intra, k_inter = options["k1_intra"] + 1, options["k1_inter"] + 1
    found = camera_neighbors(features, cameras, k_intra=k_intra, k_inter=k_inter, threads=1)
    intra, inter = naive.camera_lists(features, cameras)
    assert found.intra.tolist() == filled(intra, k_intra)
    assert found.inter.tolist() == filled(inter, k_inter)
    for ids, similarities in (
        (found.intra, found.intra_similarities),
        (found.inter, found.inter_similarities),
    ):
        expect = np.einsum("nd,nkd->nk", features, features[ids])
        np.testing.assert_allclose(similarities, np.where(ids < 0, -np.inf, expect), atol=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_weights_are_those_of_the_definition(seed):
    features, cameras, options = case(seed)
    found = weights_of(features, cameras, **options)
    expect = naive.camera_weights(features, cameras, *options.values())
    np.testing.assert_allclose(dense(found), expect, atol=1e-6)
    distance = shared_distance(found, invert(found), threads=1)
    np.testing.assert_allclose(stored(distance), naive.distance(expect), atol=3e-6)
    np.testing.assert_allclose(dense(found).sum(axis=1), 1, atol=1e-6)
    assert (found.values > 0).all()
    for row in range(len(features)):
        ids = found.ids[found.starts[row] : found.starts[row + 1]].tolist()
        assert len(ids) == len(set(ids))
        assert row in ids


def test_the_defaults_are_5_20_2_and_4():
    features, cameras = blobs(0, 90), rng(0, "cameras").integers(0, 3, 90)
    np.testing.assert_allclose(
        dense(weights_of(features, cameras)), naive.camera_weights(features, cameras, 5, 20, 2, 4), atol=1e-6
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_does_not_depend_on_threads_nor_blocks(seed):
    features, cameras = blobs(seed, 700, copies=200), rng(seed, "cameras").integers(0, 5, 700)
    table = neighbors_of(features, cameras, threads=1)
    reference = camera_weights(table, threads=1)
    for threads in (1, 2, 3):
        other = neighbors_of(features, cameras, threads=threads, block_rows=37)
        for field in dataclasses.fields(table):
            np.testing.assert_array_equal(getattr(other, field.name), getattr(table, field.name))
        for found, expect in zip(camera_weights(other, threads=threads), reference, strict=True):
            np.testing.assert_array_equal(found, expect)


def test_half_precision_is_read():
    features, cameras = blobs(3, 60), rng(3, "cameras").integers(0, 3, 60)
    half = features.astype(np.float16)
    found, expect = neighbors_of(half, cameras), neighbors_of(half.astype(np.float32), cameras)
    np.testing.assert_array_equal(found.intra, expect.intra)
    np.testing.assert_array_equal(found.inter, expect.inter)
    np.testing.assert_array_equal(found.inter_similarities, expect.inter_similarities)


def test_one_camera_has_no_inter_lists():
    features, cameras = blobs(4, 30), np.full(30, 2)
    found = neighbors_of(features, cameras)
    assert (found.inter == -1).all()
    assert (found.intra >= 0).all()
    # The set is then that of the camera alone, and its rows are averaged over the first list alone.
    np.testing.assert_allclose(
        dense(weights_of(features, cameras, k2_inter=4)), dense(weights_of(features, cameras, k2_inter=0))
    )


def test_each_row_its_own_camera():
    features, cameras = blobs(5, 12), np.arange(12)
    found = neighbors_of(features, cameras)
    assert found.intra.tolist() == [[row] + [-1] * 5 for row in range(12)]
    assert (found.inter[:, :11] >= 0).all()
    assert (found.inter[:, 11:] == -1).all()


def test_rows_of_the_wrong_camera_stay_out_of_short_lists():
    # Camera 1 has one image, a copy of image 0: it may be met as one of another camera, never as one of its own.
    features, cameras = np.repeat(SIGNS[:2], [3, 1], axis=0)[[0, 1, 3, 2]], np.array([0, 0, 0, 1])
    found = neighbors_of(features, cameras, 2, 2)
    assert found.intra.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, -1, -1]]
    assert found.inter.tolist() == [[3, -1, -1], [3, -1, -1], [3, -1, -1], [0, 1, 2]]


def test_no_averaging_leaves_the_weights():
    features, cameras, _ = case(1)
    alone = dense(weights_of(features, cameras, k1_intra=3, k1_inter=3, k2_intra=1, k2_inter=0))
    np.testing.assert_allclose(alone, naive.camera_weights(features, cameras, 3, 3, 1, 0), atol=1e-6)


def test_longer_tables_are_cut():
    features, cameras = blobs(6, 80), rng(6, "cameras").integers(0, 3, 80)
    long = camera_weights(neighbors_of(features, cameras, 15, 40), k1_intra=3, k1_inter=6)
    np.testing.assert_array_equal(dense(long), dense(weights_of(features, cameras, k1_intra=3, k1_inter=6)))


def test_no_row():
    found = weights_of(np.empty((0, 4), np.float32), np.empty(0, np.int64))
    assert [part.tolist() for part in found] == [[0], [], [], []]


@pytest.mark.parametrize("cameras", [[2, 0, 2, 0, 5, 0], [4] * 6])
def test_tells_how_far_it_is(cameras):
    told = []
    neighbors_of(SIGNS[:6], np.array(cameras), block_rows=2, progress=lambda *at: told.append(at))
    assert [rows for _, rows in told] == [6] * len(told)
    done = [done for done, _ in told]
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (2, 6)


def test_refuses_unknown_cameras():
    with pytest.raises(GraclError, match=r"2 images without, among them \[1, 3\]; ingest with a layout"):
        neighbors_of(SIGNS[:4], np.array([0, -1, 2, -1]))


def test_refuses_cameras_of_other_images():
    jaxtyping.config.update("jaxtyping_disable", True)  # as in production
    try:
        with pytest.raises(GraclError, match="a camera for each of 4 images; came 3 cameras"):
            neighbors_of(SIGNS[:4], np.zeros(3, np.int64))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("options", [{"k_intra": 0}, {"k_inter": 0}, {"block_rows": 0}])
def test_refuses_options_of_the_search(options):
    with pytest.raises(ConfigError, match=">= 1"):
        camera_neighbors(SIGNS[:4], np.array([0, 0, 1, 1]), **{"k_intra": 2, "k_inter": 2, **options})


@pytest.mark.parametrize(
    "options",
    [{"k1_intra": 0}, {"k1_inter": 0}, {"k2_intra": 0}, {"k2_inter": -1}, {"k2_intra": 7}, {"k2_inter": 22}],
)
def test_refuses_options_of_the_weights(options):
    table = neighbors_of(SIGNS, np.arange(16) % 3)
    with pytest.raises(ConfigError, match="the usual values are 5, 20, 2 and 4"):
        camera_weights(table, **options)


def test_refuses_tables_that_do_not_belong():
    table = neighbors_of(SIGNS, np.arange(16) % 3)
    outside = table.inter.copy()
    outside[3, 1] = 16
    cases = [
        (neighbors_of(SIGNS, np.arange(16) % 3, 4, 20), "6 and 21 rows; came 5 and 21"),
        (neighbors_of(SIGNS, np.arange(16) % 3, 5, 19), "6 and 21 rows; came 6 and 20"),
        (dataclasses.replace(table, inter=outside), "rows 0..15"),
        (dataclasses.replace(table, intra=table.intra[::-1].copy()), "each first in the list"),
        (dataclasses.replace(table, intra_similarities=2 * table.intra_similarities), "unit rows"),
    ]
    for neighbors, says in cases:
        assert isinstance(neighbors, CameraNeighbors)
        with pytest.raises(GraclError, match=says):
            camera_weights(neighbors)

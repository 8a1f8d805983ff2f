import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest

from gracl.errors import ClusteringCollapsed, ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.clusters import dbscan
from gracl.relations.jaccard import jaccard_distance
from gracl.relations.relate import relate
from gracl.similarity import nearest
from tests.naive import relations as naive

GOLDEN = Path(__file__).parents[3].parent / "shared" / "golden"


def objects(seed=0, count=6, each=12, dim=16, spread=0.5, noise=0):
    """Unit rows of well-separated objects, then rows of no object; in random order, with the objects."""
    dice = rng(seed, "objects")
    truth = np.concatenate([np.repeat(np.arange(count), each), np.full(noise, -1)])
    centres = np.concatenate([3 * np.linalg.qr(dice.standard_normal((dim, dim)))[0][:count], np.zeros((1, dim))])
    rows = centres[truth] + spread * dice.standard_normal((len(truth), dim)) * np.where(truth < 0, 4, 1)[:, None]
    order = dice.permutation(len(truth))
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return features[order], truth[order]


def test_finds_the_objects():
    features, truth = objects()
    found = relate(features, epoch=3, k1=10, k2=3, threads=1)
    assert found.epoch == 3
    assert found.labels.tolist() == naive.by_first_member(truth).tolist()
    inter, intra = naive.proxies(features, found.labels)
    assert found.proxies.inter_image.tolist() == inter
    assert found.proxies.intra_image.tolist() == intra
    assert found.clusters == 6


# eps is no simple fraction: where copies make distances of exactly one half, rounding would decide.
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("k1", "k2", "eps"), [(30, 6, 0.6), (8, 3, 0.53), (100, 6, 0.6)])
def test_is_the_dense_algorithm(seed, k1, k2, eps):
    features, _ = objects(seed, count=4, each=8, spread=0.9, noise=9)
    features[1::9] = features[::9]  # exact copies
    table, _ = naive.nearest(features, k1)
    expect = naive.dbscan(naive.jaccard(table, features, k1, k2), eps, 4)
    if expect.max() < 1:
        with pytest.raises(ClusteringCollapsed):
            relate(features, k1=k1, k2=k2, eps=eps, threads=1)
    else:
        assert relate(features, k1=k1, k2=k2, eps=eps, threads=1).labels.tolist() == expect.tolist()


def test_does_not_depend_on_what_computes_it():
    features, _ = objects(1, count=12, each=25, spread=0.8, noise=60)
    reference = relate(features, backend="torch", threads=1)
    for options in ({"backend": "faiss"}, {"threads": 3}, {"block_rows": 17}):
        found = relate(features, **options)
        np.testing.assert_array_equal(found.labels, reference.labels)
        np.testing.assert_array_equal(found.proxies.inter, reference.proxies.inter)
        np.testing.assert_array_equal(found.proxies.cluster_sums, reference.proxies.cluster_sums)


def test_stats():
    features, _ = objects(2, count=5, each=10, noise=7)
    found = relate(features, k1=10, k2=3)
    stats, labels = found.stats, found.labels
    for phase in ("knn", "jaccard", "dbscan", "proxies"):
        assert stats[f"{phase}_s"] > 0
    sizes = np.bincount(labels[labels >= 0])
    assert stats["noise_fraction"] == (labels == -1).mean()
    assert (stats["size_min"], stats["size_median"], stats["size_max"]) == (
        sizes.min(),
        np.median(sizes),
        sizes.max(),
    )
    assert stats["mean_feature_norm"] == pytest.approx(np.linalg.norm(features[labels >= 0].mean(axis=0)), abs=1e-6)
    same = found.proxies.inter_image == found.proxies.intra_image
    assert stats["proxies_coincide"] == same.mean()
    assert 0 <= stats["inter_centrality_rank"] <= 1


def test_no_noise_is_no_noise():
    features, _ = objects(3, count=3, each=10, spread=0.05)
    assert relate(features, k1=10, k2=3).stats["noise_fraction"] == 0


def test_clusters_of_one():
    features = np.eye(4, dtype=np.float32)
    found = relate(features, k1=1, k2=1, min_samples=1)
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert found.proxies.inter_image.tolist() == [0, 1, 2, 3]
    assert found.stats["inter_centrality_rank"] == 0


def test_progress_tells_every_phase_to_its_end():
    features, _ = objects(4)
    told = []
    relate(features, k1=10, k2=3, progress=lambda *at: told.append(at))
    assert [at for at in told if at[1] == at[2]] == [(p, 72, 72) for p in ("knn", "jaccard", "dbscan", "proxies")]


def test_all_noise_asks_for_a_larger_eps():
    with pytest.raises(ClusteringCollapsed, match=r"0 among 40 images, 100.0% of them noise, at eps=0.6; raise eps"):
        relate(np.eye(40, dtype=np.float32), k1=1, k2=1)
    with pytest.raises(ClusteringCollapsed, match="raise eps"):
        relate(np.ones((1, 1), np.float32))


def test_one_cluster_asks_for_a_smaller_eps():
    with pytest.raises(ClusteringCollapsed, match=r"1 among 20 images, 0.0% of them noise, at eps=0.5; lower eps"):
        relate(np.tile(np.float32([[0.6, 0.8]]), (20, 1)), eps=0.5)


def test_one_cluster_in_a_sea_of_noise_asks_for_a_larger_eps():
    features = np.zeros((30, 30), np.float32)
    features[np.arange(30), np.maximum(np.arange(30), 4)] = 1  # rows 0 to 4 are copies
    with pytest.raises(ClusteringCollapsed, match=r"1 among 30 images, 83.3% of them noise, at eps=0.2; raise eps"):
        relate(features, k1=5, k2=1, eps=0.2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k1": 0}, "k2 <= k1"),
        ({"k1": 4, "k2": 5}, "k2 <= k1"),
        ({"k2": 0}, "k2 <= k1"),
        ({"eps": 0.0}, "eps"),
        ({"eps": 1.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"min_samples": 0}, "min_samples"),
        ({"block_rows": 0}, "block_rows"),
        ({"threads": -1}, "threads"),
    ],
)
def test_refuses_options(options, says):
    with pytest.raises(ConfigError, match=says):
        relate(objects()[0], **options)


def test_refuses_features_without_meaning():
    features, _ = objects()
    for value, says in ((np.nan, "finite features"), (np.inf, "finite features"), (2.0, "length 1")):
        bad = features.copy()
        bad[5] *= value
        with pytest.raises(GraclError, match=rf"{says}.*; came 1 other rows, among them \[5\]"):
            relate(bad)
    zero = features.copy()
    zero[7] = 0
    with pytest.raises(GraclError, match="length 1"):
        relate(zero)
    with pytest.raises(GraclError, match="non-empty"):
        relate(np.empty((0, 16), np.float32))
    # Without the shape checks of the tests, as in production.
    with pytest.raises(GraclError, match="float32"):
        inspect.unwrap(relate)(features.astype(np.float64))


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden case is not there: {GOLDEN}")
    spec = importlib.util.spec_from_file_location("gen_features", GOLDEN / "gen_features.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    case = np.load(GOLDEN / "dense_jaccard_dbscan_4000.npz")
    features, _, _, sha = generator.make("s4k")
    assert sha == str(case["features_sha256"])
    return features, case, nearest(features, 30)


def test_golden_neighbours(golden):
    features, case, table = golden
    np.testing.assert_allclose(2 - 2 * table.similarities, case["knn_sqdist"], atol=1e-5)
    assert (table.indices == case["knn"]).mean() > 0.9999  # the others are ties in float32


def test_golden_distances(golden):
    features, case, table = golden
    distance = jaccard_distance(table, features)
    full = np.ones(distance.shape, np.float32)
    full[np.repeat(np.arange(4000), np.diff(distance.indptr)), distance.indices] = distance.data
    np.testing.assert_allclose(full[case["pair_i"], case["pair_j"]], case["pair_jaccard"], atol=1e-5)
    np.testing.assert_allclose(full[case["jac_rows"], case["jac_cols"]], case["jac_vals"], atol=1e-5)
    assert distance.nnz == len(case["jac_vals"])
    assert np.array_equal(dbscan(distance), naive.by_first_member(case["labels"]))


def test_golden_labels(golden):
    features, case, _ = golden
    found = relate(features)
    assert np.array_equal(found.labels, naive.by_first_member(case["labels"]))
    assert found.clusters == 187
    assert (found.labels == -1).sum() == 436

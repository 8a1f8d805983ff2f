import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from gracl import measuring
from gracl.errors import ClusteringCollapsed, ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations import steps
from gracl.relations.cameras import camera_neighbors, camera_weights
from gracl.relations.clusters import dbscan
from gracl.relations.diagnostics import silhouette
from gracl.relations.jaccard import jaccard_distance, reciprocal_weights, shared_distance
from gracl.relations.lists import invert
from gracl.relations.proxies import mine_proxies
from gracl.relations.relate import relate
from gracl.relations.steps import find_here
from gracl.similarity import Searcher, merged, nearest, shares
from gracl.similarity.products import Product
from tests.naive import proxies as naive_proxies
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
@pytest.mark.parametrize(("k1", "k2", "eps"), [(30, 6, 0.6), (8, 3, 0.53), (41, 6, 0.6)])
def test_is_the_dense_algorithm(seed, k1, k2, eps):
    features, _ = objects(seed, count=4, each=8, spread=0.9, noise=9)
    features[1::9] = features[::9]  # exact copies
    is_the_dense_algorithm(features, k1, k2, eps, 4)


@pytest.mark.parametrize("seed", range(200))
def test_is_the_dense_algorithm_on_random_cases_with_ties_and_copies(seed):
    dice = rng(seed, "random case")
    rows = int(dice.integers(2, 46))
    if seed % 2:  # whole numbers: many similarities are exactly equal, many rows are copies
        features = dice.integers(-1, 2, (rows, 3)) + np.array([0, 0, 3]) * dice.integers(1, 3, (rows, 1))
    else:
        features = dice.standard_normal((6, 5))[dice.integers(0, 6, rows)] + 0.4 * dice.standard_normal((rows, 5))
        features[dice.integers(0, rows, rows // 3)] = features[dice.integers(0, rows, rows // 3)]
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    k1 = int(dice.integers(1, min(rows, 16) + 1))
    is_the_dense_algorithm(
        features, k1, int(dice.integers(1, k1 + 1)), float(dice.uniform(0.3, 0.8)), int(dice.integers(1, 6))
    )


def is_the_dense_algorithm(features, k1, k2, eps, min_samples):
    table, _ = naive.nearest(features, k1)
    expect = naive.dbscan(naive.jaccard(table, features, k1, k2), eps, min_samples)
    options = {"k1": k1, "k2": k2, "eps": eps, "min_samples": min_samples, "device": "cpu"}
    if expect.max() < 1:
        with pytest.raises(ClusteringCollapsed):
            relate(features, threads=1, **options)
    else:
        for threads in (1, 2):
            assert relate(features, threads=threads, **options).labels.tolist() == expect.tolist()


def test_does_not_depend_on_what_computes_it():
    features, _ = objects(1, count=12, each=25, spread=0.8, noise=60)
    reference = relate(features, backend="torch", threads=1)
    ways = ({"backend": "faiss"}, {"threads": 3}, {"block_rows": 17}, {"shards": 3}, {"find": shuffled})
    for options in ways:
        found = relate(features, **options)
        np.testing.assert_array_equal(found.labels, reference.labels)
        np.testing.assert_array_equal(found.proxies.inter, reference.proxies.inter)
        np.testing.assert_array_equal(found.proxies.cluster_sums, reference.proxies.cluster_sums)


def shuffled(features, k, *, parts, progress, **options):
    """A `find` that makes the shares last first."""
    searcher, edges = Searcher(features, **options), shares(len(features), 5)
    return merged([searcher.nearest(k, rows=share) for share in edges[::-1]][::-1])


def test_stats():
    features, _ = objects(2, count=5, each=10, noise=7)
    found = relate(features, k1=10, k2=3)
    stats, labels = found.stats, found.labels
    for phase in ("knn", "weights", "jaccard", "cluster", "proxies", "figures"):
        assert stats[f"{phase}_s"] > 0
        assert stats[f"{phase}_peak_mb"] > 10
    assert stats["knn_recall"] == 1
    assert stats["eps"] == 0.6
    sizes = np.bincount(labels[labels >= 0])
    assert stats["noise_fraction"] == (labels == -1).mean()
    assert (stats["size_min"], stats["size_median"], stats["size_max"]) == (
        sizes.min(),
        np.median(sizes),
        sizes.max(),
    )
    assert stats["mean_feature_norm"] == pytest.approx(np.linalg.norm(features[labels >= 0].mean(axis=0)), abs=1e-6)
    assert stats["size_p10"] <= stats["size_median"] <= stats["size_p90"]
    weights = reciprocal_weights(nearest(features, 10), features, k1=10, k2=3)
    assert stats["silhouette"] == silhouette(weights, invert(weights), labels)
    assert "camera_entropy" not in stats
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
    phases = ("knn", "jaccard", "cluster", "proxies", "figures")
    assert [at for at in told if at[1] == at[2]] == [(p, 72, 72) for p in phases]


def test_progress_of_shares_goes_on():
    features, _ = objects(4)
    told = []
    relate(features, k1=10, k2=3, shards=3, block_rows=10, progress=lambda *at: told.append(at))
    assert [done for phase, done, _ in told if phase == "knn"] == [10, 20, 24, 34, 44, 48, 58, 68, 72]


def test_half_rows_give_the_labels_of_the_same_numbers():
    features, _ = objects(5, count=12, each=20, spread=0.8, noise=30)
    half = features.astype(np.float16)
    reference = relate(half.astype(np.float32), k1=15, k2=4)
    for given in (relate(half, k1=15, k2=4), relate(features, k1=15, k2=4, precision="float16")):
        np.testing.assert_array_equal(given.labels, reference.labels)
        np.testing.assert_array_equal(given.proxies.inter, reference.proxies.inter)
        np.testing.assert_array_equal(given.proxies.intra_image, reference.proxies.intra_image)
        assert given.proxies.inter.dtype == np.float32


def test_reads_features_from_a_file(tmp_path):
    features, _ = objects(6, count=12, each=20, spread=0.8)
    np.save(tmp_path / "features.npy", features.astype(np.float16))
    found = relate(np.load(tmp_path / "features.npy", mmap_mode="r"), k1=15, k2=4)
    np.testing.assert_array_equal(found.labels, relate(features.astype(np.float16), k1=15, k2=4).labels)


def test_cameras_make_lists_of_their_own_only_if_asked():
    features, _ = objects(7, count=8, each=18, spread=0.8, noise=20)
    cameras = rng(7, "cameras").integers(0, 3, len(features))
    plain, told = relate(features, k1=10, k2=3), relate(features, k1=10, k2=3, cameras=cameras)
    np.testing.assert_array_equal(plain.labels, told.labels)
    assert 0 < told.stats["camera_entropy"] <= 1
    ks = {"k1_intra": 4, "k1_inter": 8, "k2_intra": 2, "k2_inter": 3}
    found = relate(features, cameras=cameras, camera_aware=True, **ks)
    neighbors = camera_neighbors(features, cameras, k_intra=5, k_inter=9)
    weights = camera_weights(neighbors, **ks)
    expect = dbscan(shared_distance(weights, invert(weights)))
    np.testing.assert_array_equal(found.labels, expect)
    assert "knn_recall" not in found.stats


@pytest.mark.parametrize("clustering", ["hdbscan", "infomap"])
def test_other_clusterings(clustering):
    if clustering == "infomap":
        pytest.importorskip("infomap", reason="the package infomap is not installed")
    features, truth = objects(8)
    found = relate(features, k1=10, k2=3, clustering=clustering, min_samples=3)
    assert found.labels.tolist() == naive.by_first_member(truth).tolist()


def test_hdbscan_looks_beyond_eps():
    features, _ = objects(9, spread=0.8)
    one, other = (relate(features, k1=10, k2=3, clustering="hdbscan", eps=eps) for eps in (0.1, 0.9))
    np.testing.assert_array_equal(one.labels, other.labels)


def test_rules_of_the_proxies_are_passed_on():
    features, _ = objects(10, count=8, each=15, spread=0.9)
    rules = {"inter_rule": "nearest_centroids", "intra_rule": "minimum", "centroids": 2}
    found = relate(features, k1=10, k2=3, **rules)
    expect = mine_proxies(features, found.labels, **rules)
    np.testing.assert_array_equal(found.proxies.inter_image, expect.inter_image)
    np.testing.assert_array_equal(found.proxies.intra_image, expect.intra_image)
    assert (found.proxies.inter_image != mine_proxies(features, found.labels).inter_image).any()


@pytest.mark.parametrize("foreign", ["samples", "proxies", "noise_too"])
@pytest.mark.parametrize("rule", ["mean", "cluster_mean", "nearest_sample"])
def test_proxies_in_the_space_of_the_clusters(foreign, rule):
    """From features to proxies by 1 - Jaccard distance, against the dense definition."""
    features, _ = objects(12, count=5, each=10, spread=0.9, noise=12)
    chosen = {"inter_rule": rule, "foreign": foreign, "trim": 0.1}
    found = relate(features, k1=12, k2=3, space="jaccard", **chosen)
    assert (found.labels < 0).any()
    similarity = 1 - naive.jaccard(naive.nearest(features, 12)[0], features, 12, 3)
    expect = naive_proxies.proxies(features, found.labels, rule, foreign=foreign, trim=0.1, similarity=similarity)
    assert (found.proxies.inter_image.tolist(), found.proxies.intra_image.tolist()) == expect
    np.testing.assert_array_equal(found.proxies.inter, features[expect[0]])
    by_cosine = relate(features, k1=12, k2=3, **chosen)
    assert (by_cosine.proxies.inter_image != found.proxies.inter_image).any()


@pytest.mark.parametrize(
    "bad",
    [
        {"foreign": "centroids", "inter_rule": "nearest_centroids"},
        {"space": "jaccard", "inter_rule": "log_sum_exp"},
        {"trim": 0.5},
    ],
)
def test_refuses_choices_of_proxies_before_the_work(bad):
    with pytest.raises(ConfigError, match="expected"):
        relate(objects(13)[0], k1=10, k2=3, find=never, **bad)


def test_approximate_search_tells_its_recall():
    features, _ = objects(11, count=20, each=40, dim=32)
    exact, found = relate(features), relate(features, search="approximate")
    assert 0.8 < found.stats["knn_recall"] < 1
    assert adjusted_rand_score(exact.labels, found.labels) > 0.95


def test_refuses_work_that_memory_is_too_small_for(monkeypatch):
    features = objects()[0]
    monkeypatch.setattr(measuring, "available_memory", lambda: 1000)
    with pytest.raises(GraclError, match=r"expected 0.0 GB of free memory for 10 neighbours of 72 images"):
        relate(features, k1=10, k2=3, find=never)
    monkeypatch.setattr(measuring, "available_memory", lambda: 100_000)  # enough for DBSCAN, not for the whole graph
    assert relate(features, k1=10, k2=3).clusters == 6
    with pytest.raises(GraclError, match="of free memory"):
        relate(features, k1=10, k2=3, clustering="hdbscan", find=never)


def test_half_rows_are_not_copied_again():
    half = objects()[0].astype(np.float16)

    def find(features, k, **options):
        assert np.shares_memory(features, half)
        return find_here(features, k, **options)

    assert relate(half, k1=10, k2=3, precision="float16", find=find).clusters == 6


def never(*_, **__):
    raise AssertionError("work began")


def test_all_noise_asks_for_a_larger_eps():
    with pytest.raises(ClusteringCollapsed, match=r"0 among 40 images, 100.0% of them noise, at eps=0.6; raise eps"):
        relate(np.eye(40, dtype=np.float32), k1=1, k2=1)
    with pytest.raises(ClusteringCollapsed, match="raise eps"):
        relate(np.ones((1, 1), np.float32), k1=1, k2=1)
    with pytest.raises(ClusteringCollapsed, match=r"at eps=auto, here 0.5; give relations.eps a number"):
        relate(np.eye(40, dtype=np.float32), k1=1, k2=1, eps="auto")
    with pytest.raises(ClusteringCollapsed, match="at hdbscan; lower relations.min_cluster_size"):
        relate(np.eye(40, dtype=np.float32), k1=1, k2=1, clustering="hdbscan")


def test_one_cluster_asks_for_a_smaller_eps():
    with pytest.raises(ClusteringCollapsed, match=r"1 among 20 images, 0.0% of them noise, at eps=0.5; lower eps"):
        relate(np.tile(np.float32([[0.6, 0.8]]), (20, 1)), k1=20, eps=0.5)


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
        ({"eps": "auto", "clustering": "hdbscan"}, "auto with clustering=dbscan"),
        ({"min_samples": 0}, "min_samples"),
        ({"block_rows": 0}, "block_rows"),
        ({"threads": -1}, "threads"),
        ({"k1": 73}, "at most 72 neighbours"),
        ({"shards": 0}, "shards"),
        ({"shards": 2, "search": "approximate"}, "shards"),
        ({"shards": 2, "camera_aware": True, "cameras": np.zeros(72, np.int64)}, "shards"),
        ({"camera_aware": True}, "the camera of every image"),
        ({"camera_aware": True, "cameras": np.zeros(72, np.int64), "k2_intra": 9}, "k2_intra"),
        ({"camera_aware": True, "cameras": np.zeros(72, np.int64), "search": "approximate"}, "search=exact"),
        ({"min_cluster_size": 1}, "min_cluster_size"),
        ({"centroids": 0}, "centroids"),
        ({"rule_temperature": 0.0}, "rule_temperature"),
        ({"effort": -1}, "effort"),
    ],
)
def test_refuses_options_before_any_work(options, says, monkeypatch):
    monkeypatch.setattr(steps, "camera_neighbors", never)
    with pytest.raises(ConfigError, match=says):
        relate(objects()[0], **{"k1": 10, "k2": 3, "find": never, **options})


def test_refuses_features_without_meaning():
    features, _ = objects()
    for value, says in ((np.nan, "finite features"), (np.inf, "finite features"), (2.0, "length 1")):
        bad = features.copy()
        bad[5] *= value
        with pytest.raises(GraclError, match=rf"{says}.*; came 1 other rows, among them \[5\]"):
            relate(bad, find=never)
    zero = features.copy()
    zero[7] = 0
    with pytest.raises(GraclError, match="length 1"):
        relate(zero, find=never)
    with pytest.raises(GraclError, match="non-empty"):
        relate(np.empty((0, 16), np.float32), find=never)
    # Without the shape checks of the tests, as in production.
    with pytest.raises(GraclError, match="float32"):
        inspect.unwrap(relate)(features.astype(np.float64), find=never)
    with pytest.raises(GraclError, match="expected 72 cameras"):
        inspect.unwrap(relate)(features, cameras=np.zeros(71, np.int64), find=never)


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


def test_golden_neighbours_by_a_half_product(golden, monkeypatch):
    features, _, table = golden
    whole = Product.__init__
    monkeypatch.setattr(
        Product, "__init__", lambda self, rows, place, half, resident: whole(self, rows, place, half=True)
    )
    found = nearest(features, 30, device="cpu")
    np.testing.assert_array_equal(found.indices, table.indices)
    np.testing.assert_array_equal(found.similarities, table.similarities)


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

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.cameras import camera_neighbors, camera_weights
from gracl.relations.diagnostics import camera_entropies, describe, silhouette
from gracl.relations.lists import invert
from gracl.relations.proxies import mine_proxies
from tests.clustered import lists_of, random_weights
from tests.naive import cameras as naive


def found(weights, labels, **options):
    return silhouette(weights, invert(weights), np.asarray(labels, np.int64), **options)


def labelled(seed, rows, noise):
    """Labels 0..C-1 with 2 to 6 clusters, some of one, and -1."""
    dice = rng(seed, "labels")
    clusters = min(2 + seed % 5, rows)
    labels = np.where(dice.random(rows) < noise, -1, dice.integers(0, clusters, rows))
    labels[dice.permutation(rows)[:clusters]] = np.arange(clusters)
    return labels.astype(np.int64)


@pytest.mark.parametrize("seed", range(50))
def test_silhouette_is_that_of_the_double_loop(seed):
    rows = int(rng(seed, "rows").integers(2, 30))
    full, labels = random_weights(seed, rows, copies=rows // 2 if seed % 2 else 0), labelled(seed, rows, noise=0.25)
    expect = naive.silhouettes(naive.distance(full), labels)
    assert found(lists_of(full), labels, threads=1) == pytest.approx(np.mean(expect), abs=2e-5)


@pytest.mark.parametrize("seed", range(20))
def test_silhouette_is_that_of_scikit_learn(seed):
    rows = int(rng(seed, "rows").integers(8, 40))
    full, labels = random_weights(seed, rows, copies=rows // 2), labelled(seed, rows, noise=0)
    expect = silhouette_samples(naive.distance(full), labels, metric="precomputed")
    assert found(lists_of(full), labels) == pytest.approx(expect.mean(), abs=2e-5)


def test_silhouette_of_real_weights():
    dice = rng(0, "real")
    features = dice.standard_normal((5, 8))[np.arange(60) % 5] + 0.5 * dice.standard_normal((60, 8))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    features[50:] = features[:10]
    table = camera_neighbors(features, dice.integers(0, 3, 60), k_intra=6, k_inter=21)
    weights = camera_weights(table, k1_inter=8)
    full = np.zeros((60, 60))
    full[np.repeat(np.arange(60), np.diff(weights.starts)), weights.ids] = weights.values
    for labels in (np.arange(60) % 5, np.arange(60) // 12, np.where(np.arange(60) < 7, -1, np.arange(60) % 3)):
        expect = np.mean(naive.silhouettes(naive.distance(full), labels))
        assert found(weights, labels) == pytest.approx(expect, abs=2e-5)


def test_silhouette_of_simple_cases():
    apart = lists_of(np.kron(np.eye(2), np.full((3, 3), 1 / 3)).astype(np.float32))
    assert found(apart, [0, 0, 0, 1, 1, 1]) == 1
    assert found(apart, [0, 1, 0, 0, 1, 1]) < 0
    assert found(apart, [0, 0, -1, 1, 1, -1]) == 1
    assert found(apart, [0, 0, 0, 0, 0, 0]) == 0  # nothing to be told from
    assert found(apart, [-1] * 6) == 0
    assert found(apart, [0, 1, 2, 3, 4, 5]) == 0  # clusters of one
    same = lists_of(np.full((6, 6), 1 / 6, np.float32))
    assert found(same, [0, 0, 0, 1, 1, 1]) == 0  # both distances are 0
    strangers = lists_of(np.eye(4, dtype=np.float32))
    assert found(strangers, [0, 0, 1, 1]) == 0  # both distances are 1


def test_rounding_alone_makes_no_silhouette():
    # Equal rows whose weights were rounded differently: at a distance of some 1e-8 that means nothing.
    full = np.full((6, 6), 1 / 6, np.float32) * (1 + np.arange(6, dtype=np.float32)[:, None] * np.float32(1e-7))
    assert len(np.unique(full)) > 1
    assert found(lists_of(full), [0, 0, 0, 1, 1, 1]) == 0


def test_silhouette_does_not_depend_on_threads():
    full, labels = random_weights(3, 900, copies=200), labelled(3, 900, noise=0.2)
    weights = lists_of(full)
    for sample in (10_000, 300):
        reference = found(weights, labels, sample=sample, threads=1)
        assert [found(weights, labels, sample=sample, threads=threads) for threads in (1, 2, 3)] == [reference] * 3


def test_a_sample_is_always_the_same_and_close():
    full, labels = random_weights(4, 1500), np.repeat(np.arange(150), 10)
    weights = lists_of(full + np.kron(np.eye(150), np.full((10, 10), 0.1, np.float32)))
    weights = weights._replace(values=weights.values / 2)
    exact = found(weights, labels)
    assert exact > 0.1
    for sample in (300, 1499):
        some = found(weights, labels, sample=sample)
        assert some == found(weights, labels, sample=sample)
        assert some != exact
        assert some == pytest.approx(exact, abs=0.02)
    assert found(weights, labels, sample=1500) == exact


def test_a_sample_is_drawn_of_clustered_rows_only():
    full, labels = random_weights(5, 200), labelled(5, 200, noise=0.9)
    clustered = (labels >= 0).sum()
    scores = naive.silhouettes(naive.distance(full), labels)
    one = found(lists_of(full), labels, sample=1)
    assert min(abs(one - score) for score in scores) < 2e-5
    assert found(lists_of(full), labels, sample=int(clustered)) == pytest.approx(np.mean(scores), abs=2e-5)


def test_silhouette_refuses():
    weights = lists_of(np.eye(4, dtype=np.float32))
    with pytest.raises(ConfigError, match="sample >= 1"):
        found(weights, [0, 0, 1, 1], sample=0)
    with pytest.raises(GraclError, match="4 labels; came 3"):
        silhouette(weights, invert(weights), np.array([0, 0, 1]))
    with pytest.raises(GraclError, match="each with a member"):
        found(weights, [0, 0, 2, 2])


@pytest.mark.parametrize("seed", range(40))
def test_camera_entropies_are_those_of_the_definition(seed):
    rows = int(rng(seed, "rows").integers(2, 50))
    labels = labelled(seed, rows, noise=0.2)
    cameras = rng(seed, "cameras").choice([1, 4, 6, 30][: 1 + seed % 4], rows)
    expect = naive.camera_entropy(labels.tolist(), cameras.tolist())
    np.testing.assert_allclose(camera_entropies(labels, cameras), expect, atol=1e-12)


def test_camera_entropy_runs_from_0_to_1():
    labels, cameras = np.array([0, 0, 0, 0, 1, 1, 1, -1]), np.array([5, 6, 5, 6, 5, 5, 5, 6])
    assert camera_entropies(labels, cameras).tolist() == [1.0, 0.0]
    assert camera_entropies(labels, np.zeros(8, np.int64)).tolist() == [0.0, 0.0]


def described(cameras=None, rows=60, seed=7, threads=1):
    dice = rng(seed, "described")
    features = dice.standard_normal((rows, 6))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    labels = labelled(seed, rows, noise=0.2)
    proxies = mine_proxies(features, labels)
    return describe(features, labels, proxies, cameras=cameras, threads=threads), features, labels, proxies


def test_describe_by_definition():
    cameras = rng(7, "cameras").integers(0, 4, 60)
    figures, features, labels, proxies = described(cameras)
    sizes = np.sort([(labels == c).sum() for c in range(labels.max() + 1)])
    assert figures["noise_fraction"] == (labels == -1).sum() / 60
    assert (figures["size_min"], figures["size_max"]) == (sizes[0], sizes[-1])
    assert figures["size_median"] == np.median(sizes)
    for name, share in (("size_p10", 0.1), ("size_p90", 0.9)):
        place = share * (len(sizes) - 1)
        low = int(place)
        assert figures[name] == pytest.approx(sizes[low] + (place - low) * (sizes[low + 1] - sizes[low]))
    mean = features[labels >= 0].astype(np.float64).mean(axis=0)
    assert figures["mean_feature_norm"] == pytest.approx(np.linalg.norm(mean), abs=1e-6)
    assert figures["proxies_coincide"] == (proxies.inter_image == proxies.intra_image).mean()
    ranks = []
    for c, inter in enumerate(proxies.inter_image):
        members = np.flatnonzero(labels == c)
        towards = features[members] @ features[members].sum(axis=0)
        ranks.append((towards > towards[members == inter]).sum() / (len(members) - 1))
    assert figures["inter_centrality_rank"] == pytest.approx(np.mean(ranks))
    expect = naive.camera_entropy(labels.tolist(), cameras.tolist())
    assert figures["camera_entropy"] == pytest.approx(np.mean(expect))


def test_single_camera_clusters():
    labels, features = np.array([0, 0, 1, 1, 1, -1]), np.eye(6, dtype=np.float32)
    proxies = mine_proxies(features, labels)
    for cameras, share in (([0, 0, 0, 1, 0, 1], 0.5), ([2] * 6, 1.0), ([0, 1, 0, 1, 1, 1], 0.0)):
        figures = describe(features, labels, proxies, cameras=np.array(cameras))
        assert figures["single_camera_clusters"] == share
        assert (figures["camera_entropy"] == 0) == (share == 1)


@pytest.mark.parametrize("cameras", [None, np.where(np.arange(60) == 9, -1, 3)])
def test_without_cameras_their_figures_are_left_out(cameras):
    figures, *_ = described(cameras)
    assert set(figures) == {
        "noise_fraction",
        *("size_min", "size_p10", "size_median", "size_p90", "size_max"),
        *("mean_feature_norm", "proxies_coincide", "inter_centrality_rank"),
    }


def test_describe_does_not_depend_on_threads():
    assert described(rows=500, threads=1)[0] == described(rows=500, threads=3)[0]


def test_describe_of_clusters_of_one_and_of_none():
    features = np.eye(4, dtype=np.float32)
    alone = np.array([0, -1, 1, 2])
    figures = describe(features, alone, mine_proxies(features, alone), cameras=np.arange(4))
    assert (figures["size_min"], figures["size_max"], figures["inter_centrality_rank"]) == (1, 1, 0)
    assert (figures["camera_entropy"], figures["single_camera_clusters"]) == (0, 1)
    noise = np.full(4, -1)
    with pytest.raises(GraclError, match="at least one cluster"):
        describe(features, noise, mine_proxies(features, noise))

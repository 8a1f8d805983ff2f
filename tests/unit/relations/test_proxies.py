import numpy as np
import pytest
import torch

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.proxies import centrality_ranks, cluster_sizes, mine_proxies
from tests.clustered import case
from tests.naive import relations as naive


@pytest.mark.parametrize("seed", range(30))
def test_are_the_proxies_by_double_loop(seed):
    rows = int(rng(seed, "rows").integers(2, 40))
    features, labels = case(seed, rows, clusters=1 + seed % min(rows, 7), copies=rows // 2 if seed % 2 else 0)
    inter, intra = naive.proxies(features, labels)
    found = mine_proxies(features, labels, threads=1)
    assert found.inter_image.tolist() == inter
    assert found.intra_image.tolist() == intra
    np.testing.assert_array_equal(found.inter, features[inter])
    np.testing.assert_array_equal(found.intra, features[intra])
    for c, total in enumerate(found.cluster_sums):
        np.testing.assert_allclose(total, features[labels == c].sum(axis=0), atol=1e-5)


def test_intra_proxy_is_the_member_farthest_from_the_centre():
    features, labels = case(50, 300, clusters=9, dim=16)
    found = mine_proxies(features, labels)
    for c in range(9):
        members = np.flatnonzero(labels == c)
        assert found.intra_image[c] == members[np.argmin(features[members] @ features[members].sum(axis=0))]


def test_pairs_and_copies_tie_to_the_lowest_index():
    features, _ = case(51, 8, clusters=1, dim=64)
    pair = np.array([-1, 0, 1, 0, 1, 1, -1, -1])
    assert mine_proxies(features, pair).intra_image[0] == 1
    same = np.tile(features[:1], (8, 1))
    found = mine_proxies(same, np.array([-1, 1, 1, 0, 0, 0, 1, -1]))
    assert found.inter_image.tolist() == [3, 1]
    assert found.intra_image.tolist() == [3, 1]


def test_cluster_of_one_single_cluster_and_no_cluster():
    features, _ = case(52, 5, clusters=1)
    found = mine_proxies(features, np.array([-1, 0, 1, 1, 1]))
    assert found.inter_image[0] == found.intra_image[0] == 1
    assert mine_proxies(features, np.array([-1, 0, 0, 0, -1])).inter_image.tolist() == [1]
    none = mine_proxies(features, np.full(5, -1))
    assert none.inter.shape == (0, 5)
    assert none.inter_image.tolist() == []


def test_noise_takes_no_part():
    features, labels = case(53, 60, clusters=4)
    keep = labels >= 0
    found, alone = mine_proxies(features, labels), mine_proxies(features[keep], labels[keep])
    np.testing.assert_array_equal(found.inter, alone.inter)
    np.testing.assert_array_equal(found.intra, alone.intra)


def test_does_not_depend_on_threads():
    features, labels = case(54, 900, clusters=30, dim=130)
    one, three = mine_proxies(features, labels, threads=1), mine_proxies(features, labels, threads=3)
    for name in ("inter", "intra", "inter_image", "intra_image", "cluster_sums"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))


@pytest.mark.parametrize("labels", [[0, 2, 2], [-2, 0, 0]])
def test_refuses_labels_with_gaps(labels):
    features, _ = case(55, 3, clusters=1)
    with pytest.raises(GraclError, match="expected"):
        mine_proxies(features, np.array(labels))


def test_cluster_sizes():
    assert cluster_sizes(np.array([1, -1, 0, 1])).tolist() == [1, 2]
    assert cluster_sizes(np.array([], np.int64)).tolist() == []


def test_centrality_ranks_count_the_members_nearer_to_the_centre():
    features, labels = case(56, 120, clusters=6, dim=8)
    labels[labels == 5] = -1
    labels[np.flatnonzero(labels == -1)[0]] = 5  # a cluster of one, which has no rank
    proxies = mine_proxies(features, labels)
    expect = []
    for c in range(5):
        members = np.flatnonzero(labels == c)
        near = features[members].astype(np.float64) @ features[members].astype(np.float64).sum(axis=0)
        own = near[members == proxies.inter_image[c]]
        expect.append((near > own).sum() / (len(members) - 1))
    assert centrality_ranks(features, labels, proxies).tolist() == expect


def test_ranks_of_half_rows_are_those_of_the_same_numbers():
    features, labels = case(57, 150, clusters=6, dim=40)
    half = features.astype(np.float16)
    proxies = mine_proxies(half, labels)
    ranks = centrality_ranks(half, labels, proxies)
    assert ranks.tolist() == centrality_ranks(half.astype(np.float32), labels, proxies).tolist()
    assert len(set(ranks.tolist())) > 1


def test_half_rows_give_float32_proxies_of_the_same_numbers():
    features, labels = case(58, 200, clusters=9, dim=33, copies=60)
    half = features.astype(np.float16)
    found, same = mine_proxies(half, labels), mine_proxies(half.astype(np.float32), labels)
    assert found.inter.dtype == found.intra.dtype == np.float32
    for name in ("inter", "intra", "inter_image", "intra_image", "cluster_sums"):
        np.testing.assert_array_equal(getattr(found, name), getattr(same, name))


def test_does_not_depend_on_block_rows():
    features, labels = case(59, 300, clusters=11, dim=70, copies=50)
    whole = mine_proxies(features, labels)
    for block_rows in (1, 7, 299):
        found = mine_proxies(features, labels, block_rows=block_rows)
        np.testing.assert_array_equal(found.cluster_sums, whole.cluster_sums)
        np.testing.assert_array_equal(found.inter_image, whole.inter_image)
        np.testing.assert_array_equal(found.intra_image, whole.intra_image)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"centroids": 0}, "centroids >= 1"),
        ({"block_rows": 0}, "block_rows >= 1"),
        ({"rule_temperature": 0.0}, "rule_temperature"),
        ({"rule_temperature": -0.05}, "rule_temperature"),
        ({"rule_temperature": float("nan")}, "rule_temperature"),
        ({"rule_temperature": float("inf")}, "rule_temperature"),
        ({"threads": -1}, "threads >= 0"),
    ],
)
def test_refuses_options(options, says):
    features, labels = case(60, 6, clusters=2)
    with pytest.raises(ConfigError, match=says):
        mine_proxies(features, labels, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_refuses_a_gpu_that_is_not_there():
    features, labels = case(61, 6, clusters=2)
    with pytest.raises(ConfigError, match="CUDA"):
        mine_proxies(features, labels, device="cuda")

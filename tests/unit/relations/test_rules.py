import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gracl.errors import ConfigError, GraclError
from gracl.relations import scoring
from gracl.relations.choices import check_rules
from gracl.relations.proxies import mine_proxies
from gracl.relations.scoring import float32_error, steady
from gracl.types import Neighbors
from tests.clustered import case, errors_of_proposals, mixed
from tests.naive import proxies as naive
from tests.naive import relations

INTER = ["mean", "cluster_mean", "nearest_sample", "nearest_centroids", "log_sum_exp"]
INTRA = ["mean", "minimum"]


def images(found):
    return found.inter_image.tolist(), found.intra_image.tolist()


@pytest.mark.parametrize("seed", range(35))
@pytest.mark.parametrize("rule", INTER)
def test_inter_proxies_are_those_by_definition(rule, seed):
    features, labels = mixed(seed)
    count, temperature = 1 + seed % 4, (0.05, 0.5, 0.01)[seed % 3]
    expect = naive.proxies(features, labels, rule, "mean", count, temperature)
    found = mine_proxies(
        features, labels, inter_rule=rule, centroids=count, rule_temperature=temperature, block_rows=1 + seed % 9
    )
    assert images(found) == expect
    np.testing.assert_array_equal(found.inter, features[expect[0]])
    np.testing.assert_array_equal(found.intra, features[expect[1]])


@pytest.mark.parametrize("seed", range(35))
@pytest.mark.parametrize("rule", INTRA)
def test_intra_proxies_are_those_by_definition(rule, seed):
    features, labels = mixed(seed)
    found = mine_proxies(features, labels, intra_rule=rule, block_rows=1 + seed % 9)
    assert images(found) == naive.proxies(features, labels, "mean", rule)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rule", INTER)
def test_settles_what_float32_cannot_tell(rule, seed):
    """Rows so near to each other that their scores differ by less than the rounding of a float32 product."""
    features, labels = case(100 + seed, 40, clusters=4, dim=12, spread=1e-5, copies=8)
    intra = INTRA[seed % 2]
    scores = features.astype(np.float64) @ features.astype(np.float64).T
    assert np.ptp(scores) < float32_error(12)
    assert images(mine_proxies(features, labels, inter_rule=rule, intra_rule=intra)) == naive.proxies(
        features, labels, rule, intra
    )


def test_the_rules_differ():
    features, labels = case(7, 400, clusters=20, dim=8)
    found = {rule: tuple(mine_proxies(features, labels, inter_rule=rule).inter_image.tolist()) for rule in INTER}
    assert len(set(found.values())) == len(INTER)
    few, many = (mine_proxies(features, labels, inter_rule="nearest_centroids", centroids=n) for n in (1, 19))
    assert few.inter_image.tolist() != many.inter_image.tolist()
    cold, warm = (mine_proxies(features, labels, inter_rule="log_sum_exp", rule_temperature=t) for t in (1e-4, 100.0))
    assert tuple(cold.inter_image.tolist()) == found["nearest_sample"]
    assert tuple(warm.inter_image.tolist()) == found["mean"]


@pytest.mark.parametrize("rule", INTER)
def test_one_cluster_has_nothing_foreign_and_a_cluster_of_one_is_both(rule):
    features, _ = case(8, 6, clusters=1)
    alone = mine_proxies(features, np.array([-1, 0, 0, -1, 0, 0]), inter_rule=rule, intra_rule="minimum")
    assert alone.inter_image.tolist() == [1]
    found = mine_proxies(features, np.array([2, 1, 0, 0, 0, -1]), inter_rule=rule, intra_rule="minimum")
    assert found.inter_image.tolist()[1:] == found.intra_image.tolist()[1:] == [1, 0]
    none = mine_proxies(features, np.full(6, -1), inter_rule=rule, intra_rule="minimum")
    assert none.inter.shape == none.intra.shape == (0, 5)


def test_farthest_pair_ties_to_its_first():
    angles = np.radians([0, 80, 30, 10, 40])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = mine_proxies(features[::-1].copy(), np.zeros(5, np.int64), intra_rule="minimum")
    assert found.intra_image.tolist() == [3]


def test_centroids_are_of_length_one_and_zero_stays_zero():
    """The second cluster's mean is zero, the third's short: what counts is its direction."""
    features = np.array([[1, 0], [0.6, 0.8], [0, 1], [0, -1], [1, 0], [-0.96, 0.28]], np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = mine_proxies(features, labels, inter_rule="nearest_centroids", centroids=1)
    assert found.inter_image.tolist() == naive.proxies(features, labels, "nearest_centroids", centroids=1)[0]
    # f_0 . c_2 = 0.14 and f_1 . c_2 = 0.88 with c_2 = (0.141, 0.990).
    assert found.inter_image[0] == 0


@pytest.mark.parametrize("rule", INTER)
def test_depends_on_neither_threads_nor_blocks(rule):
    features, labels = case(9, 200, clusters=15, dim=130, spread=0.3, copies=50)
    options = {"inter_rule": rule, "intra_rule": "minimum", "device": "cpu"}
    reference = mine_proxies(features, labels, threads=1, **options)
    for other in ({"threads": 3}, {"block_rows": 9, "threads": 2}, {"block_rows": 64}, {"block_rows": 199}):
        found = mine_proxies(features, labels, **options, **other)
        for name in ("inter", "intra", "inter_image", "intra_image", "cluster_sums"):
            np.testing.assert_array_equal(getattr(found, name), getattr(reference, name))


@pytest.mark.parametrize("rule", INTER)
def test_half_rows_mapped_from_disk_give_the_proxies_of_the_same_numbers(rule, tmp_path):
    features, labels = case(10, 500, clusters=25, dim=48, spread=0.5, copies=80)
    np.save(tmp_path / "features.npy", features.astype(np.float16))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    options = {"inter_rule": rule, "intra_rule": "minimum", "block_rows": 90}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mine_proxies(mapped, labels, **options)
    same = mine_proxies(np.array(mapped).astype(np.float32), labels, **options)
    for name in ("inter", "intra", "inter_image", "intra_image", "cluster_sums"):
        np.testing.assert_array_equal(getattr(found, name), getattr(same, name))
        assert type(getattr(found, name)) is np.ndarray


def exact_lists(features, k):
    return Neighbors(*relations.nearest(features, k))


@pytest.mark.parametrize("seed", range(30))
def test_lists_of_neighbours_change_no_proxy(seed):
    features, labels = mixed(seed)
    expect = mine_proxies(features, labels, inter_rule="nearest_sample")
    for k in (1, 2, 6):
        lists = exact_lists(features, min(k, len(features)))
        assert images(mine_proxies(features, labels, inter_rule="nearest_sample", neighbors=lists)) == images(expect)


def test_rows_with_a_foreign_neighbour_are_not_searched(monkeypatch):
    """Both members of cluster 0 have a foreign neighbour, one much nearer than the other: nothing is multiplied."""
    features, _ = case(11, 30, clusters=1, dim=6)
    labels = np.concatenate([np.zeros(2, np.int64), np.arange(1, 29)])
    searched = []
    monkeypatch.setattr(
        "gracl.relations.rules.in_blocks", lambda score, step: lambda rows, dtype: searched.extend(rows) or rows * 0.0
    )
    mine_proxies(features, labels, inter_rule="nearest_sample", neighbors=exact_lists(features, 30))
    assert searched == []
    mine_proxies(features, labels, inter_rule="nearest_sample", neighbors=exact_lists(features, 1))
    assert sorted(set(searched)) == [0, 1]


def test_refuses_neighbours_of_other_features():
    features, labels = case(12, 20, clusters=3)
    short = exact_lists(features[:10], 4)
    beyond = exact_lists(features, 4)
    beyond.indices[3, 2] = 20
    for lists in (short, beyond):
        with pytest.raises(GraclError, match="neighbours"):
            mine_proxies(features, labels, inter_rule="nearest_sample", neighbors=lists)


def test_refuses_rules_that_are_not_known():
    good = {"inter_rule": "mean", "intra_rule": "mean", "foreign": "samples", "space": "cosine"}
    good |= {"centroids": 10, "rule_temperature": 0.05, "trim": 0.0, "block_rows": 1}
    check_rules(**good)
    for bad in ({"inter_rule": "median"}, {"intra_rule": "nearest_sample"}):
        with pytest.raises(ConfigError, match="among mean"):
            check_rules(**{**good, **bad})


@pytest.mark.parametrize("dim", [3, 64, 700])
@pytest.mark.parametrize("rule", [*INTER[2:], "minimum"])
def test_proposals_are_within_their_bounds(rule, dim, monkeypatch):
    features, labels = case(15, 120, clusters=8, dim=dim, spread=0.5)
    off = errors_of_proposals(monkeypatch)
    for half in (False, True):
        for temperature in (1e-6, 0.05, 100.0):
            options = {"intra_rule": rule} if rule == "minimum" else {"inter_rule": rule}
            rows = features.astype(np.float16) if half else features
            mine_proxies(rows, labels, rule_temperature=temperature, block_rows=60, **options)
    assert len(off) == 6
    assert max(part.max() for part in off) > 0


def test_torch_is_left_as_it_was():
    def state():
        products = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        return torch.get_num_threads(), *(product.fp32_precision for product in products)

    before = state()
    with steady(before[0] + 1):
        assert state() == (before[0] + 1, "ieee", "ieee")
    assert state() == before
    with steady(0):
        assert state() == (before[0], "ieee", "ieee")
    assert state() == before


def test_a_table_that_fits_is_copied_to_the_gpu_once(monkeypatch):
    features, labels = case(13, 10, clusters=2)
    for free, times in ((features.nbytes, 0), (3 * features.nbytes, 1)):
        moved = []
        monkeypatch.setattr(scoring, "free_on_gpu", lambda free=free: free)
        table = SimpleNamespace(to=lambda place, moved=moved: moved.append(place))
        monkeypatch.setattr(scoring, "as_tensor", lambda array, table=table: table)
        scoring.table_of(features, labels, np.bincount(labels[labels >= 0]), 4, "cuda")
        assert moved == ["cuda"] * times
        monkeypatch.undo()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rule", INTER)
def test_gpu_gives_the_proxies_of_the_cpu(rule, dtype, monkeypatch):
    features, labels = case(14, 3000, clusters=150, dim=256, spread=0.3, copies=500)
    features = features.astype(dtype)
    options = {"inter_rule": rule, "intra_rule": "minimum", "block_rows": 700}
    reference = mine_proxies(features, labels, device="cpu", **options)
    assert images(mine_proxies(features, labels, device="cuda", **options)) == images(reference)
    monkeypatch.setattr(scoring, "free_on_gpu", lambda: 0)
    assert images(mine_proxies(features, labels, device="cuda", **options)) == images(reference)

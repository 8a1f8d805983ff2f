"""Which images are reliable in their cluster, and noise as clusters of its own."""

import numpy as np
import pytest
from pydantic import ValidationError

from gracl.config import TrainConfig
from gracl.errors import ClusteringCollapsed, ConfigError
from gracl.randomness import rng
from gracl.relations.checks import check_clusters
from gracl.relations.clusters import dbscan
from gracl.relations.refining import EPS_GAP, check_refining, overlaps, own_clusters, reliable_labels
from gracl.relations.relate import relate
from tests.clustered import case
from tests.naive import extras as naive
from tests.naive import relations as naive_relations
from tests.unit.relations.test_clusters import sparse

EPS, MIN_SAMPLES = 0.5, 3


def fine_distance(seed):
    """Groups whose distances lie closely around EPS, so that a step of 0.02 moves clusters."""
    dice = rng(seed, "fine")
    rows = int(dice.integers(6, 50))
    groups = dice.integers(0, 6, rows)
    near = dice.integers(40, 100, (rows, rows)) / 100
    upper = np.triu(np.where(groups[:, None] == groups, near, np.where(dice.random((rows, rows)) < 0.05, near, 1)), 1)
    return (upper + upper.T).astype(np.float32)


@pytest.mark.parametrize("seed", range(40))
def test_sure_rows_are_those_whose_clusters_overlap(seed):
    matrix, least = fine_distance(seed), (0.3, 0.5, 0.8, 1.0)[seed % 4]
    labels = dbscan(sparse(matrix), eps=EPS, min_samples=MIN_SAMPLES)
    found = reliable_labels(sparse(matrix), labels, eps=EPS, min_samples=MIN_SAMPLES, least=least)
    kept = naive.reliable(matrix, labels, EPS, MIN_SAMPLES, least)
    np.testing.assert_array_equal(found, naive_relations.by_first_member(np.where(kept, labels, -1)))


def test_the_cases_above_keep_some_and_drop_some():
    kept, dropped = 0, 0
    for seed in range(40):
        matrix = fine_distance(seed)
        labels = dbscan(sparse(matrix), eps=EPS, min_samples=MIN_SAMPLES)
        found = reliable_labels(sparse(matrix), labels, eps=EPS, min_samples=MIN_SAMPLES, least=0.5)
        kept, dropped = kept + (found >= 0).sum(), dropped + ((labels >= 0) & (found < 0)).sum()
    assert kept > 100
    assert dropped > 100


def test_overlaps_by_hand():
    one, other = np.array([0, 0, 0, 1, 1, -1]), np.array([0, 0, 1, 1, 1, 1])
    assert overlaps(one, other).tolist() == [2 / 3, 2 / 3, 1 / 6, 2 / 4, 2 / 4, 1 / 4]
    noise = np.full(4, -1)
    assert overlaps(noise, noise).tolist() == [1.0] * 4


def test_noise_becomes_clusters_of_one():
    assert own_clusters(np.array([-1, 0, -1, 1, 0])).tolist() == [0, 1, 2, 3, 1]
    assert own_clusters(np.array([-1, -1])).tolist() == [0, 1]
    assert own_clusters(np.array([0, 1, 0])).tolist() == [0, 1, 0]


def test_relate_leaves_out_who_is_not_sure_and_can_keep_noise():
    features, _ = case(3, 300, 12, dim=16, spread=0.7)
    options = {"k1": 10, "k2": 4, "eps": "auto", "threads": 1}
    plain, tested, apart = (
        relate(features, **options, **more) for more in ({}, {"reliability": 0.7}, {"noise": "own_clusters"})
    )
    assert tested.stats["eps"] == plain.stats["eps"]
    lost = (plain.labels >= 0) & (tested.labels < 0)
    assert tested.stats["unreliable"] == pytest.approx(lost.mean())
    assert lost.any()
    assert ((tested.labels >= 0) <= (plain.labels >= 0)).all()
    np.testing.assert_array_equal(apart.labels, own_clusters(plain.labels))
    assert apart.stats["own_clusters"] == pytest.approx((plain.labels < 0).mean())
    assert apart.clusters == plain.clusters + (plain.labels < 0).sum()
    assert "unreliable" not in plain.stats
    assert "own_clusters" not in plain.stats


def test_a_test_that_nobody_passes_says_which_setting_to_lower():
    with pytest.raises(ClusteringCollapsed, match=r"eps=0\.6, reliability=1; lower relations\.reliability, raise eps"):
        check_clusters(np.full(9, -1), "dbscan", 0.6, reliability=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reliability": 1.5}, "relations.reliability of 0 to 1"),
        ({"reliability": 0.5, "clustering": "hdbscan"}, "clustering=dbscan and an eps between"),
        ({"reliability": 0.5, "eps": 0.99}, "clustering=dbscan and an eps between"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    features, _ = case(0, 60, 4)
    with pytest.raises(ConfigError, match=message):
        relate(features, k1=8, **{"eps": 0.5} | options)


def test_another_use_of_noise_is_refused():
    with pytest.raises(ConfigError, match="noise of left_out or own_clusters; came 'kept'"):
        check_refining(0.0, "kept", "dbscan", 0.5)


def test_the_config_knows_how_far_eps_is_moved():
    relations = {"reliability": 0.5, "eps": EPS_GAP}
    with pytest.raises(ValidationError, match="between 0.02 and 0.98"):
        TrainConfig(data={"root": "x"}, relations=relations)
    assert TrainConfig(data={"root": "x"}, relations=relations | {"eps": EPS_GAP + 0.001}).relations.reliability == 0.5

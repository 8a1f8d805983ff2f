"""What is foreign, and who may be a proxy: method.md 4.5 A and L."""

import numpy as np
import pytest

from gracl.errors import ConfigError
from gracl.relations.members import eligible_members, noise_apart
from gracl.relations.proxies import mine_proxies
from gracl.relations.rules import OF_ITEMS, check_rules
from tests.clustered import case
from tests.naive import proxies as naive
from tests.unit.relations.test_rules import INTER, images, mixed

ITEMS = ["centroids", "proxies"]
PAIRS = [*((rule, "noise_too") for rule in INTER), *((rule, foreign) for rule in OF_ITEMS for foreign in ITEMS)]


@pytest.mark.parametrize("seed", range(21))
@pytest.mark.parametrize(("rule", "foreign"), PAIRS)
def test_proxies_against_other_strangers_are_those_by_definition(rule, foreign, seed):
    features, labels = mixed(seed)
    count, temperature = 1 + seed % 4, (0.05, 0.5, 0.01)[seed % 3]
    expect = naive.proxies(features, labels, rule, "mean", count, temperature, foreign)
    found = mine_proxies(
        features,
        labels,
        inter_rule=rule,
        centroids=count,
        rule_temperature=temperature,
        foreign=foreign,
        block_rows=1 + seed % 9,
    )
    assert images(found) == expect
    np.testing.assert_array_equal(found.inter, features[expect[0]])
    assert found.cluster_sums.shape == found.inter.shape


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("intra", ["mean", "minimum"])
@pytest.mark.parametrize(("rule", "foreign"), [*((rule, "samples") for rule in INTER), ("mean", "proxies")])
def test_trimmed_proxies_are_those_by_definition(rule, foreign, intra, seed):
    features, labels = mixed(seed)
    trim = (0.05, 0.2, 0.49)[seed % 3]
    expect = naive.proxies(features, labels, rule, intra, strangers=foreign, trim=trim)
    found = mine_proxies(features, labels, inter_rule=rule, intra_rule=intra, foreign=foreign, trim=trim, block_rows=7)
    assert images(found) == expect


def test_strangers_differ():
    features, labels = case(7, 400, clusters=20, dim=8, noise=0.2)
    found = {
        foreign: tuple(mine_proxies(features, labels, inter_rule="log_sum_exp", foreign=foreign).inter_image.tolist())
        for foreign in ("samples", "centroids", "proxies", "noise_too")
    }
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("foreign", [*ITEMS, "noise_too"])
def test_other_strangers_depend_on_neither_threads_nor_blocks(foreign):
    features, labels = case(9, 200, clusters=15, dim=130, spread=0.3, copies=50, noise=0.1)
    options = {"inter_rule": "log_sum_exp", "foreign": foreign, "trim": 0.1, "device": "cpu"}
    reference = mine_proxies(features, labels, threads=1, **options)
    for other in ({"threads": 3}, {"block_rows": 9, "threads": 2}, {"block_rows": 64}):
        assert images(mine_proxies(features, labels, **options, **other)) == images(reference)


def test_a_share_of_all_goes_equal_ones_from_behind_and_the_last_of_a_cluster_stays():
    labels = np.array([0, 0, 0, 1, 1, -1, 2])

    def gone(own, trim):
        return np.flatnonzero(~eligible_members(np.array(own), labels, trim)).tolist()

    own = [0.1, 0.1, 0.3, 0.1, 0.1, 0.0, 0.0]
    assert gone(own, 0.0) == []
    assert gone(own, 0.2) == [4]
    assert gone(own, 0.49) == [4], "of 3 and 4 the first stays: nobody else is left"
    assert gone([0.1, 0.1, 0.1, 0.2, 0.2, 0.0, 0.0], 0.4) == [1, 2]
    assert gone([0.1, 0.1, 0.1 + 1e-14, 0.2, 0.2, 0.0, 0.0], 0.2) == [2]


def test_noise_stands_apart_in_order_of_index():
    assert noise_apart(np.array([-1, 1, 0, -1, 1])).tolist() == [2, 1, 0, 3, 1]
    assert noise_apart(np.array([-1, -1])).tolist() == [0, 1]


def test_refuses_what_has_no_meaning():
    good = {"inter_rule": "mean", "intra_rule": "mean", "centroids": 10, "rule_temperature": 0.05, "block_rows": 1}
    for foreign in ("samples", "centroids", "proxies", "noise_too"):
        check_rules(**good, foreign=foreign, trim=0.49)
    for bad in (
        {"foreign": "neighbours"},
        {"foreign": "centroids", "inter_rule": "nearest_sample"},
        {"foreign": "proxies", "inter_rule": "cluster_mean"},
        {"trim": 0.5},
        {"trim": -0.1},
    ):
        with pytest.raises(ConfigError):
            check_rules(**{**good, **bad})

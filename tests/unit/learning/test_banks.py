import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gracl.learning.banks import Bank, Clusters, in_turn, means, scores, select_lowest
from gracl.types import Proxies
from tests.naive import losses as naive
from tests.unit.learning.test_losses import batch, unit, world

CHOICES = ("foreign_sum", "foreign_proxies", "nearest_centroid", "own_sum", "own_proxy")
UPDATES = ("selected", "every", "mean", "frozen")


def epoch(seed, **options):
    """A bank begun on a random world, with what the naive twin needs."""
    proxies = world(seed).proxies
    bank = Bank(**{"start": "mined", "choice": "own_sum", "update": "selected", "momentum": 0.1} | options)
    clusters = Clusters.of(proxies, "cpu")
    bank.begin(torch.tensor(proxies.inter), clusters)
    return bank, clusters, proxies


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_double_loop(choice, seed):
    bank, clusters, proxies = epoch(seed)
    features, labels = batch(seed)
    found = scores(choice, torch.tensor(features), torch.tensor(labels), bank.rows, clusters)
    wanted = [
        naive.score(choice, z, label, proxies.inter, proxies.cluster_sums)
        for z, label in zip(features, labels, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "update"), [*itertools.product(CHOICES, ["selected"]), *itertools.product(["own_sum"], UPDATES[1:])]
)
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9])
def test_following_equals_the_double_loop(choice, update, momentum):
    for seed in range(6):
        bank, clusters, proxies = epoch(seed, choice=choice, update=update, momentum=momentum)
        features, labels = batch(seed, clusters=3 + seed % 3)
        wanted = naive.followed(update, choice, proxies.inter, proxies.cluster_sums, features, labels, momentum)
        bank.follow(torch.tensor(features), torch.tensor(labels), clusters)
        np.testing.assert_allclose(bank.rows.numpy(), wanted, atol=2e-6)


def test_a_bank_starts_at_what_was_mined_or_at_the_centroids():
    mined, _, proxies = epoch(1)
    np.testing.assert_array_equal(mined.rows.numpy(), proxies.inter)
    centroid, _, _ = epoch(1, start="centroid")
    np.testing.assert_allclose(centroid.rows.numpy(), unit(proxies.cluster_sums), atol=1e-6)


@pytest.mark.parametrize("update", UPDATES)
def test_an_empty_batch_moves_nothing(update):
    bank, clusters, proxies = epoch(0, update=update)
    bank.follow(torch.empty(0, 8), torch.empty(0, dtype=torch.int64), clusters)
    np.testing.assert_array_equal(bank.rows.numpy(), proxies.inter)


@pytest.mark.parametrize("choice", CHOICES)
def test_with_one_cluster_some_row_is_selected(choice):
    sums = np.array([[2, 0, 0]], np.float32)
    nobody = np.array([0])
    clusters = Clusters.of(Proxies(unit(sums), unit(sums), nobody, nobody, sums), "cpu")
    bank = Bank(start="mined", choice=choice, update="selected", momentum=0.0)
    bank.begin(torch.tensor(unit(sums)), clusters)
    rows = np.array([[0, 1, 0], [0, 0, 1]], np.float32)
    bank.follow(torch.tensor(rows), torch.tensor([0, 0]), clusters)
    np.testing.assert_array_equal(bank.rows.numpy(), rows[:1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 4)), min_size=1, max_size=12))
def test_select_lowest_equals_the_loop_ties_to_the_first_row(pairs):
    chosen = torch.tensor([float(score) for score, _ in pairs])
    labels = torch.tensor([label for _, label in pairs])
    clusters, rows = select_lowest(chosen, labels)
    assert dict(zip(clusters.tolist(), rows.tolist(), strict=True)) == naive.lowest(chosen.tolist(), labels.tolist())
    assert clusters.tolist() == sorted(clusters.tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=12))
def test_rows_come_in_turn_and_means_are_of_their_own(values):
    labels = torch.tensor(values, dtype=torch.int64)
    turns = [rows.tolist() for rows in in_turn(labels)]
    seen = {label: [row for row, one in enumerate(values) if one == label] for label in sorted(set(values))}
    assert turns == [
        [rows[turn] for rows in seen.values() if turn < len(rows)]
        for turn in range(max(map(len, seen.values()), default=0))
    ]
    features = torch.arange(len(values), dtype=torch.float32)[:, None]
    present, found = means(features, labels)
    assert present.tolist() == list(seen)
    np.testing.assert_allclose(found[:, 0].numpy(), [np.mean(rows) for rows in seen.values()], atol=1e-5)

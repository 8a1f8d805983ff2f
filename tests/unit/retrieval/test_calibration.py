"""Thresholds held against pairs that are counted one by one."""

import json

import numpy as np
import pytest

from gracl.errors import ClusteringCollapsed, ConfigError, GraclError
from gracl.retrieval.calibration import Calibration, calibrate

RATES = (0.1, 0.01, 0.001)


@pytest.fixture(scope="module")
def world():
    """40 objects of 10 images each, and 20 images that are noise."""
    dice = np.random.default_rng(0)
    rows = np.repeat(dice.normal(size=(42, 16)), 10, axis=0) + 0.8 * dice.normal(size=(420, 16))
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    labels = np.repeat(np.arange(42), 10)
    labels[400:] = -1
    order = dice.permutation(420)
    return features[order], labels[order]


def pairs(features, labels):
    """Similarities of pairs of two clusters, and of one, counted one by one."""
    other, same = [], []
    for one in range(len(labels)):
        for two in range(one):
            if labels[one] >= 0 and labels[two] >= 0:
                (same if labels[one] == labels[two] else other).append(float(features[one] @ features[two]))
    return np.sort(other)[::-1], np.array(same)


def test_the_threshold_is_where_the_share_of_pairs_is(world):
    found = calibrate(*world, model="m", rates=RATES)
    other, same = pairs(*world)
    assert found.pairs == len(other) == 400 * 390 // 2
    for point in found.points:
        assert np.mean(other >= point.similarity - 1e-6) == pytest.approx(point.rate, rel=0.02)
        assert point.found == pytest.approx(np.mean(same >= point.similarity), abs=0.01)
        assert point.low <= point.similarity <= point.high
    assert [point.rate for point in found.points] == list(RATES)
    assert (found.images, found.clusters, found.by) == (400, 40, "clusters")


def test_the_bounds_hold_the_threshold_of_other_draws_of_the_objects():
    """Of 60 worlds with the same law about as many thresholds lie within the bounds of one as they promise."""
    dice = np.random.default_rng(3)

    def drawn():
        rows = np.repeat(dice.normal(size=(30, 16)), 8, axis=0) + 0.8 * dice.normal(size=(240, 16))
        features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return calibrate(features, np.repeat(np.arange(30), 8), model="m", rates=(0.01,)).points[0]

    points = [drawn() for _ in range(60)]
    truth = np.mean([point.similarity for point in points])
    covered = np.mean([point.low <= truth <= point.high for point in points])
    assert covered >= 0.75
    assert np.std([point.similarity for point in points]) == pytest.approx(
        np.mean([point.high - point.low for point in points]) / 3.92, rel=0.6
    )


def test_it_is_the_same_every_time_and_whatever_the_clusters_are_called(world):
    features, labels = world
    renamed = np.where(labels >= 0, (labels * 7 + 3) % 41 + 100, -1)
    assert len(np.unique(renamed)) == len(np.unique(labels))
    one, other = calibrate(features, labels, model="m"), calibrate(features, renamed, model="m")
    assert [point.similarity for point in one.points] == [point.similarity for point in other.points]
    assert calibrate(features, labels, model="m") == one


def test_rates_that_the_pairs_are_too_few_for_are_left_out(world):
    found = calibrate(*world, model="m")
    assert [point.rate for point in found.points] == [0.1, 0.03, 0.01, 0.003, 0.001, 0.0003]
    with pytest.raises(ConfigError, match=r"a rate from 0.0003 to 0.1, as was measured; came 1e-05"):
        found.threshold(1e-5)


def test_between_two_rates_the_threshold_lies_between(world):
    found = calibrate(*world, model="m", rates=RATES)
    at = found.threshold(0.1**1.5)
    assert at.similarity == pytest.approx((found.points[0].similarity + found.points[1].similarity) / 2)
    assert found.threshold(0.01).similarity == found.points[1].similarity


def test_it_is_kept_and_read_again(world):
    found = calibrate(*world, model="m", rates=RATES, by="identities", flip=True)
    assert Calibration.from_json(found.to_json(), "here") == found


@pytest.mark.parametrize("harm", ["", "[]", "{}", "points", "version", "rates", "word"])
def test_a_torn_one_is_refused(world, harm):
    values = json.loads(calibrate(*world, model="m", rates=RATES).to_json())
    values |= {"points": {"points": []}, "version": {"schema_version": 9}}.get(harm, {})
    if harm == "rates":
        values["points"] = values["points"][::-1]
    if harm == "word":
        values["points"][0]["similarity"] = "high"
    text = harm if harm in ("", "[]", "{}") else json.dumps(values)
    with pytest.raises(GraclError, match="a calibration in here"):
        Calibration.from_json(text.encode(), "here")


def test_clusters_of_single_images_have_no_pairs_to_find(world):
    features, labels = world
    one = np.unique(labels, return_index=True)[1][1:]
    found = calibrate(features[one], np.arange(len(one)), model="m", rates=(0.1,))
    assert found.points[0].found == 0
    assert Calibration.from_json(found.to_json(), "here") == found


def test_too_little_to_calibrate_on_is_refused(world):
    features, labels = world
    with pytest.raises(ClusteringCollapsed, match="two clusters or more"):
        calibrate(features, np.where(labels == 3, 3, -1), model="m")
    few = np.flatnonzero(labels <= 1)[:4]
    with pytest.raises(GraclError, match="200 pairs of different clusters or more"):
        calibrate(features[few], np.array([0, 0, 1, 1]), model="m")

"""What the relation actor does before it works, in this process and without Ray."""

import numpy as np
import pytest

from gracl import measuring
from gracl.errors import ClusteringCollapsed, GraclError
from gracl.relations.relate import relate
from gracl.runtime.relation_actor import RelationActor
from gracl.types import FeatureTable

OPTIONS = {"k1": 3, "k2": 2, "min_samples": 2, "device": "cpu"}


def parts(precision=np.float32):
    rows = np.repeat(np.eye(4, 8, dtype=precision), 5, axis=0)
    return [[FeatureTable(np.arange(first, 20, 2), rows[first::2])] for first in range(2)]


@pytest.mark.parametrize("precision", [np.float32, np.float16])
def test_parts_of_either_precision_are_one_table(precision):
    found = RelationActor(20, wait_s=60.0, options=OPTIONS)._relate(3, parts(precision))
    expect = relate(np.repeat(np.eye(4, 8, dtype=precision), 5, axis=0), epoch=3, **OPTIONS)
    np.testing.assert_array_equal(found.labels, expect.labels)
    assert (found.epoch, found.clusters) == (3, 4)


def test_the_labels_of_the_epoch_before_come_with_the_first_part():
    previous, halves = np.arange(20) % 5, parts()
    halves[0].append(previous)
    actor = RelationActor(
        20, wait_s=60.0, options=OPTIONS | {"eps": 0.001, "min_samples": 30, "on_collapse": "keep_previous"}
    )
    found = actor._relate(3, halves)
    np.testing.assert_array_equal(found.labels, previous)
    assert found.stats["kept_previous"] == 1
    with pytest.raises(ClusteringCollapsed, match="no labels of an epoch before"):
        actor._relate(3, parts())


def test_features_that_do_not_fit_are_refused_before_they_are_gathered(monkeypatch):
    monkeypatch.setattr(measuring, "available_memory", lambda: 100)
    monkeypatch.setattr(FeatureTable, "gather", lambda *_: pytest.fail("they were gathered"))
    with pytest.raises(GraclError, match=r"for the features of 20 images; came .* set relations.precision=float16"):
        RelationActor(20, wait_s=60.0, options=OPTIONS)._relate(0, parts())

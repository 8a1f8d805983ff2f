"""Trainings whose clustering collapses in an epoch, in one process."""

import numpy as np
import pytest

from benchmarks.local_twin import learn
from gracl.errors import ClusteringCollapsed
from gracl.learning.checkpoint import load_state, save_state
from gracl.local import DirectRelator
from gracl.types import FeatureTable
from tests.local.test_fit import assert_same_run
from tests.toy import toy_config


class Collapsing(DirectRelator):
    """In epoch 1 all images look the same."""

    def relate(self, epoch, part, previous=None):
        if epoch == 1:
            part = FeatureTable(part.indices, np.repeat(part.features[:1], len(part.indices), axis=0))
        return super().relate(epoch, part, previous)


def run(root, state=None, **changes):
    return learn(toy_config(root, **changes), kind=Collapsing, state=state)


@pytest.fixture(scope="module")
def kept(toy_shards):
    return run(toy_shards, relations__on_collapse="keep_previous")


def column(state, name):
    return [row.get(name) for row in state.history]


def test_an_epoch_that_collapses_stops_the_run_by_default(toy_shards):
    with pytest.raises(ClusteringCollapsed, match="1 among"):
        run(toy_shards)


def test_kept_labels_are_learnt_once_more_with_other_proxies(kept):
    assert column(kept, "cluster/collapsed") == [0, 1, 0]
    assert column(kept, "cluster/kept_previous") == [None, 1, None]
    labels = column(kept, "check/labels")
    assert labels[0] == labels[1]
    assert column(kept, "cluster/label_age") == [0, 0, 0], "proxies are those of the scan of the epoch"
    assert all(np.isfinite(column(kept, "train/loss")))


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_kept_labels_goes_on_as_if_unbroken(toy_shards, kept, tmp_path, stop):
    first = run(toy_shards, epochs=stop, relations__on_collapse="keep_previous", eval_every=2)
    save_state(first, tmp_path)
    state = load_state(tmp_path)
    assert state.assignment is not None
    again = run(toy_shards, state, relations__on_collapse="keep_previous")
    assert column(again, "check/labels") == column(kept, "check/labels")
    if stop == 2:
        assert_same_run(again, kept)


def test_overlapped_the_labels_that_are_learnt_are_those_that_are_kept(toy_shards):
    state = run(toy_shards, epochs=4, relations__on_collapse="keep_previous", relations__overlap=True)
    assert column(state, "cluster/collapsed") == [0, 0, 1, 0]  # those of scans 0, 0, 1, 2
    labels = column(state, "check/labels")
    assert labels[0] == labels[1] == labels[2]


def test_a_collapse_in_the_first_epoch_has_nothing_to_keep(toy_shards):
    with pytest.raises(ClusteringCollapsed, match="no labels of an epoch before it"):
        run(toy_shards, relations__on_collapse="keep_previous", relations__eps=0.001, relations__min_samples=30)


def test_a_raised_eps_is_that_of_a_run_begun_with_it(toy_shards):
    changes = {
        "epochs": 1,
        "relations__on_collapse": "relax_eps",
        "relations__relax_factor": 2.0,
        "relations__relax_tries": 8,
        "relations__min_samples": 4,  # so that nearly all is noise at the first eps, whatever the machine's rounding
    }
    state = run(toy_shards, relations__eps=0.01, relations__least_clusters=8, **changes)
    assert column(state, "cluster/collapsed") == [1]
    (eps,) = column(state, "cluster/eps")
    assert eps > 0.01
    plain = learn(toy_config(toy_shards, epochs=1, relations__eps=eps, relations__min_samples=4))
    assert column(state, "check/labels") == column(plain, "check/labels")
    assert column(state, "train/loss") == column(plain, "train/loss")

"""Surroundings found by tasks of Ray, and what a run and its doors do with them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.errors import CheckpointError, ShardError
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import load_state
from gracl.local import surroundings_of
from gracl.runtime import surroundings
from gracl.runtime.calibrate import calibrate
from gracl.runtime.runs import prepare
from gracl.runtime.surroundings import FILE, cameras_of_run, find_surroundings
from gracl.runtime.train import train
from gracl.uses import CalibrateConfig
from tests.local.test_fit import assert_same_run
from tests.local.test_surroundings import TAKES
from tests.toy import toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def wanted(toy_shards):
    return surroundings_of(ShardStore.open(toy_shards, "train"), height=32, width=16, groups=5)


@pytest.fixture(scope="module")
def trained(ray_cluster, toy_shards, tmp_path_factory, with_mlflow):
    runs = with_mlflow(tmp_path_factory.mktemp("surrounded"))
    return train(toy_config(toy_shards, runs, name="placed", **TAKES))


def run_of(trained, root):
    return prepare(toy_config(root, Path(trained["checkpoint"]).parents[1], name="placed", **TAKES))


def test_tasks_find_what_one_process_finds(ray_cluster, toy_shards, wanted, monkeypatch):
    monkeypatch.setattr(surroundings, "_BATCH", 3)
    monkeypatch.setattr(surroundings, "_TICKETS", 2)
    found = find_surroundings(toy_shards, "train", None, height=32, width=16, seed=0, wait_s=300.0, groups=5)
    np.testing.assert_array_equal(found, wanted)


def test_what_a_task_refuses_is_raised_as_it_was(ray_cluster, toy_shards, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "manifest.json").write_bytes(Path(toy_shards, "train", "manifest.json").read_bytes())
    with pytest.raises(ShardError):
        find_surroundings(str(tmp_path), "train", None, height=32, width=16, seed=0, wait_s=300.0)


def test_a_run_on_ray_equals_the_local_one_and_keeps_its_groups(trained, toy_shards, wanted):
    assert_same_run(load_state(trained["checkpoint"]), learn(toy_config(toy_shards, **TAKES)))
    kept = Path(trained["checkpoint"]).parent / FILE
    np.testing.assert_array_equal(np.load(kept, allow_pickle=False), wanted)


def test_a_run_that_is_gone_on_with_takes_the_groups_it_kept(trained, toy_shards, wanted):
    """Also where they would be found otherwise by now."""
    kept, run = Path(trained["checkpoint"]).parent / FILE, run_of(trained, toy_shards)
    before = kept.read_bytes()
    try:
        np.save(kept, wanted[::-1].copy())
        np.testing.assert_array_equal(cameras_of_run(run), wanted[::-1])
        for other in (wanted[1:], wanted.astype(np.int32), wanted + 5, wanted - 5):
            np.save(kept, other)
            with pytest.raises(CheckpointError, match="whole numbers below 5"):
                cameras_of_run(run)
        np.save(kept, np.array([{}], object), allow_pickle=True)
        with pytest.raises(CheckpointError, match="groups of surroundings"):
            cameras_of_run(run)
        kept.write_bytes(before[:-9])
        with pytest.raises(CheckpointError, match="groups of surroundings"):
            cameras_of_run(run)
    finally:
        kept.write_bytes(before)


def test_labels_of_a_checkpoint_are_made_with_groups_found_once_more(trained, toy_shards, wanted, monkeypatch):
    """Calibrate and review cluster as the training did: with groups, not with recorded cameras."""
    seen = []
    found = surroundings.find_surroundings
    monkeypatch.setattr(surroundings, "find_surroundings", lambda *a, **k: seen.append(found(*a, **k)) or seen[-1])
    words = {"checkpoint": trained["checkpoint"], "data.root": toy_shards, "data.split": "train"}
    words |= {"scale.worker_cpus": 0.5, "relation_cpus": 0.5, "batch": 16}
    told = calibrate(load_config(CalibrateConfig, [f"{name}={value}" for name, value in words.items()]))
    assert told["clusters"] >= 2
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], wanted)

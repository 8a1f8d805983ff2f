"""A training whose cameras are groups of surroundings: what it takes, and what it does not read."""

import re

import numpy as np
import pytest

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.errors import ConfigError
from gracl.images.shards import ShardStore
from gracl.learning.fit import Splits
from gracl.local import direct_relator, surroundings_of
from gracl.retrieval.card import model_card
from gracl.runtime.runs import prepare
from gracl.runtime.trial import cameras_used
from gracl.types import UNKNOWN
from tests.local.test_fit import assert_same_run
from tests.toy import toy_config

TAKES = {
    "cameras_from": "surroundings",
    "surroundings__groups": 5,
    "camera_balanced": True,
    "relations__centre": "camera",
    "relations__camera_proxies": True,
    "loss__camera_weight": 0.5,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def found(toy_shards):
    return learn(toy_config(toy_shards, **TAKES))


def test_groups_are_taken_as_recorded_cameras_would_be(toy_shards, found, monkeypatch):
    """The twin: the same groups written where cameras are recorded."""
    store = ShardStore.open(toy_shards, "train")
    groups = surroundings_of(store, height=32, width=16, groups=5, threads=2)
    assert len(set(groups.tolist())) == 5
    assert (groups != store.camera_ids()).any()
    recorded = {name: value for name, value in TAKES.items() if "surroundings" not in name and name != "cameras_from"}
    theirs = learn(toy_config(toy_shards, **recorded))
    assert theirs.history[-1]["train/loss"] != found.history[-1]["train/loss"]
    monkeypatch.setattr(ShardStore, "camera_ids", lambda self: groups)
    assert_same_run(learn(toy_config(toy_shards, **recorded)), found)


def test_no_recorded_camera_is_read(toy_shards, found, monkeypatch):
    monkeypatch.setattr(ShardStore, "camera_ids", lambda self: pytest.fail("a camera id was read"))
    assert_same_run(learn(toy_config(toy_shards, **TAKES)), found)


def test_cameras_of_another_split_are_refused(toy_shards):
    stores = {"train": ShardStore.open(toy_shards, "train")}
    with pytest.raises(ConfigError, match=f"a camera for each of {len(stores['train'])} images.*came 3"):
        direct_relator(stores, Splits("train", "", ""), cameras=np.zeros(3, np.int64))


def test_groups_depend_on_the_seed_and_on_nothing_else(toy_shards):
    store = ShardStore.open(toy_shards, "train")
    size = {"height": 32, "width": 16, "groups": 7}
    found = [surroundings_of(store, **size, threads=threads) for threads in (1, 3)]
    np.testing.assert_array_equal(*found)
    assert (found[0] != surroundings_of(store, **size, seed=1)).any()


def test_surroundings_that_nothing_takes_are_refused(toy_shards):
    with pytest.raises(ConfigError, match="cameras_from=surroundings beside something that takes cameras.*") as told:
        toy_config(toy_shards, cameras_from="surroundings")
    advised = re.findall(r"methods/\w+\.yaml", str(told.value))
    words = [f"pipelines/presets/{advised[0]}", f"data.root={toy_shards}"]
    assert load_config(TrainConfig, words).cameras_from == "surroundings"


def test_a_split_without_any_camera_may_be_learnt_from(cameraless, tmp_path):
    """What it is for."""
    assert set(ShardStore.open(cameraless, "train").camera_ids().tolist()) == {UNKNOWN}
    blind = {"data__query": "", "data__gallery": ""}
    assert prepare(toy_config(cameraless, tmp_path, **TAKES | blind)).config.cameras_from == "surroundings"
    with pytest.raises(ConfigError, match="two cameras or more.*or cameras_from=surroundings"):
        prepare(toy_config(cameraless, tmp_path, **TAKES | blind | {"cameras_from": "recorded"}))


def test_what_reads_cameras_is_told_with_what_stood_for_them(toy_shards):
    asked = toy_config(toy_shards, **TAKES)
    assert cameras_used(asked) == "nobody; surroundings: sampler, features, loss"
    card = model_card("a", asked.recipe(), [])
    assert "No camera ids were read: groups of images with like surroundings stood for cameras in: sampler" in card
    recorded = toy_config(toy_shards, **TAKES | {"cameras_from": "recorded"})
    assert cameras_used(recorded) == "sampler, features, loss"
    assert "Camera ids of that split were read by: sampler, loss, features." in model_card("a", recorded.recipe(), [])


def test_more_groups_than_images_are_refused_before_anything_runs(toy_shards, tmp_path):
    with pytest.raises(ConfigError, match=r"surroundings\.groups of at most the \d+ images"):
        prepare(toy_config(toy_shards, tmp_path, **TAKES | {"surroundings__groups": 10**6}))


def test_a_recipe_without_surroundings_is_as_it_was_before(toy_shards):
    recipe = toy_config(toy_shards).recipe()
    assert not [name for name in recipe if "surroundings" in name or name == "cameras_from"]
    asked = toy_config(toy_shards, **TAKES).recipe()
    assert (asked["cameras_from"], asked["surroundings.groups"], asked["surroundings.edge"]) == ("surroundings", 5, 0.1)

"""Surroundings found by tasks of Ray, and what a run and its doors do with them, on pictures without any label."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.errors import CheckpointError, ConfigError, ShardError, WaitedTooLong
from gracl.images.manifests import read_manifest
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import load_state
from gracl.local import surroundings_of
from gracl.randomness import rng
from gracl.relations.relate import relate
from gracl.runtime import surroundings
from gracl.runtime.calibrate import calibrate
from gracl.runtime.relating import labels_of
from gracl.runtime.review import review
from gracl.runtime.runs import prepare
from gracl.runtime.surroundings import FILE, cameras_of_run, cameras_of_state, check_surroundings, find_surroundings
from gracl.runtime.train import train
from gracl.runtime.truth import final_labels
from gracl.sections import Place
from gracl.types import UNKNOWN
from gracl.uses import CalibrateConfig, ReviewConfig
from tests.local.test_fit import assert_same_run
from tests.local.test_surroundings import TAKES
from tests.toy import toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BLIND = TAKES | {"data__query": "", "data__gallery": ""}
HOW = {"height": 32, "width": 16, "seed": 0, "groups": 5}


class Leaving:
    """Whoever unpickles it finds a file."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return open, (self.place, "w")


@pytest.fixture(scope="module")
def wanted(cameraless):
    return surroundings_of(ShardStore.open(cameraless, "train"), **HOW)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, with_mlflow):
    return with_mlflow(tmp_path_factory.mktemp("surrounded"))


@pytest.fixture(scope="module")
def trained(ray_cluster, cameraless, runs):
    return train(toy_config(cameraless, runs, name="placed", **BLIND))


@pytest.fixture
def kept(trained):
    """The file of groups, put back as it was."""
    file = Path(trained["checkpoint"]).parent / FILE
    before = file.read_bytes()
    yield file
    file.write_bytes(before)


def digest_of(root):
    return read_manifest(root, "train").digest


def described(state, images):
    """Unit features of the size that the checkpoint's have."""
    rows = rng(1, "features").normal(size=(images, 64)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def calibrating(checkpoint, root, **more):
    words = {"checkpoint": checkpoint, "data.root": root, "data.split": "train", "batch": 16}
    words |= {"scale.worker_cpus": 0.5, "relation_cpus": 0.5} | more
    return load_config(CalibrateConfig, [f"{name}={value}" for name, value in words.items()])


def test_tasks_find_what_one_process_finds(ray_cluster, cameraless, wanted, monkeypatch):
    monkeypatch.setattr(surroundings, "_BATCH", 3)
    monkeypatch.setattr(surroundings, "_TICKETS", 2)
    how = {"digest": digest_of(cameraless), "cpus": 0.5, "wait_s": 300.0}
    np.testing.assert_array_equal(find_surroundings(cameraless, "train", None, **how, **HOW), wanted)


def test_a_cluster_that_gives_no_answer_is_waited_for_as_long_as_said(ray_cluster, cameraless):
    with pytest.raises(WaitedTooLong, match="surroundings of some images of train within 0.001 s.*scale.wait_s"):
        find_surroundings(cameraless, "train", None, digest=digest_of(cameraless), cpus=0.5, wait_s=0.001, **HOW)


def test_another_split_than_the_runs_is_refused(ray_cluster, cameraless):
    """Also in a task, where it may have been ingested anew meanwhile."""
    with pytest.raises(ShardError, match="ingested anew"):
        find_surroundings(cameraless, "train", None, digest="0" * 64, cpus=0.5, wait_s=300.0, **HOW)


def test_a_run_on_ray_equals_the_local_one_and_keeps_its_groups(trained, cameraless, wanted, runs):
    assert_same_run(load_state(trained["checkpoint"]), learn(toy_config(cameraless, **BLIND)))
    np.testing.assert_array_equal(np.load(Path(runs, "placed", FILE), allow_pickle=False), wanted)


@pytest.mark.long
def test_a_run_that_is_gone_on_with_equals_an_unbroken_one(ray_cluster, cameraless, runs):
    train(toy_config(cameraless, runs, name="longer", **BLIND | {"epochs": 1}))
    longer = train(toy_config(cameraless, runs, name="longer", **BLIND))
    assert_same_run(load_state(longer["checkpoint"]), learn(toy_config(cameraless, **BLIND)))


def test_a_run_takes_the_groups_that_it_kept(trained, cameraless, wanted, runs, kept):
    """Also where they would be found otherwise by now; what is no such file is refused, and nothing is unpickled."""
    run = prepare(toy_config(cameraless, runs, name="placed", **BLIND))
    np.save(kept, wanted[::-1].copy())
    np.testing.assert_array_equal(cameras_of_run(run), wanted[::-1])
    for other in (wanted[1:], wanted.astype(np.int32), wanted + 5, wanted - 5):
        np.save(kept, other)
        with pytest.raises(CheckpointError, match="whole numbers below 5.*made anew"):
            cameras_of_run(run)
    np.save(kept, wanted)
    whole = kept.read_bytes()
    few, many = f"({len(wanted)},)".encode(), b"(1152921504606846976,)"  # a header that claims more than there is
    claiming = whole.replace(few, many).replace(b" " * (len(many) - len(few)) + b"\n", b"\n")
    assert len(claiming) == len(whole)
    assert many in claiming
    np.save(kept, np.array([Leaving(kept.with_name("left"))] * len(wanted), object), allow_pickle=True)
    for content in (kept.read_bytes(), whole[:-9], whole + b"\0" * 8, b"", b"PK\x03\x04 no archive", claiming):
        kept.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{len(content)} bytes that are not.*made anew"):
            cameras_of_run(run)
    assert not kept.with_name("left").exists()


def test_labels_of_a_checkpoint_are_made_with_groups(trained, cameraless, wanted):
    """What calibrate and review cluster with, and what a comparison judges in the end."""
    state, config = load_state(trained["checkpoint"]), calibrating(trained["checkpoint"], cameraless)
    features = described(state, len(wanted))
    ours = labels_of(config, state, features, Place(root=cameraless), "train")
    options = toy_config(cameraless, **BLIND).relations.options()
    theirs = relate(features, cameras=wanted, epoch=state.epoch, **options)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(ours.camera_proxies.cameras, theirs.camera_proxies.cameras)
    assert len(set(ours.camera_proxies.cameras.tolist())) > 1


def test_calibrate_and_the_final_labels_of_a_comparison_agree(trained, cameraless, runs):
    told = calibrate(calibrating(trained["checkpoint"], cameraless))
    run = prepare(toy_config(cameraless, runs, name="placed", **BLIND))
    labels = final_labels(run, trained["checkpoint"])
    assert told["clusters"] == labels.max() + 1 >= 2


def test_a_review_of_pictures_without_labels(trained, cameraless, tmp_path):
    words = {"checkpoint": trained["checkpoint"], "data.root": cameraless, "data.query": "", "data.gallery": ""}
    words |= {"out": tmp_path / "page.html", "batch": 16, "scale.worker_cpus": 0.5, "log": "false"}
    told = review(load_config(ReviewConfig, [f"{name}={value}" for name, value in words.items()]))
    assert told["clusters"] == calibrate(calibrating(trained["checkpoint"], cameraless))["clusters"]
    assert "<td>cameras_from</td><td>surroundings</td>" in (tmp_path / "page.html").read_text()


def test_what_a_checkpoint_asks_of_a_split_is_refused_before_anything_runs(trained, cameraless, toy_shards):
    state = load_state(trained["checkpoint"])
    assert check_surroundings(state, 5) == {**HOW, "edge": 0.1}
    with pytest.raises(ConfigError, match="at least 5 images"):
        check_surroundings(state, 4)
    for name, wrong in (("surroundings.groups", "many"), ("surroundings.edge", None), ("seed", "0")):
        with pytest.raises(CheckpointError, match="surroundings this version knows"):
            check_surroundings(state.__class__(**vars(state) | {"recipe": {**state.recipe, name: wrong}}), 100)
    sampled = {"relations.centre": "none", "relations.camera_proxies": False}
    blind = state.__class__(**vars(state) | {"recipe": {**state.recipe, **sampled}})
    scale = calibrating(trained["checkpoint"], cameraless).scale
    assert check_surroundings(blind, 2) == {}
    assert set(cameras_of_state(blind, Place(root=toy_shards), "train", scale).tolist()) == {UNKNOWN}
    recorded = {name: value for name, value in state.recipe.items() if not name.startswith(("cameras_", "surr"))}
    plain = state.__class__(**vars(state) | {"recipe": recorded})
    assert check_surroundings(plain, 2) == {}
    known = cameras_of_state(plain, Place(root=toy_shards), "train", scale)
    np.testing.assert_array_equal(known, ShardStore.open(toy_shards, "train").camera_ids())

"""A calibration through Ray: the clusters of a split give the thresholds that they give here."""

import json
from pathlib import Path

import numpy as np
import pytest

import gracl
from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import load_encoder, save_state
from gracl.learning.identity import model_digest
from gracl.relations.relate import relate
from gracl.retrieval.calibration import Calibration
from gracl.retrieval.calibration import calibrate as thresholds
from gracl.runtime.calibrate import calibrate
from gracl.runtime.calibrated import calibration_of
from gracl.uses import CalibrateConfig
from tests.toy import toy_config

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def learnt(toy_shards, tmp_path_factory):
    config = toy_config(toy_shards, epochs=2)
    state = learn(config)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_state(state, folder)
    return config, str(folder)


def run(checkpoint: str, root: str, **asked: object) -> dict:
    given = {"checkpoint": checkpoint, "data.root": root, "batch": 8, "scale.worker_cpus": 0.5, "relation_cpus": 0.5}
    return calibrate(load_config(CalibrateConfig, [f"{name}={value}" for name, value in {**given, **asked}.items()]))


def described(checkpoint: str, root: str, split: str) -> tuple[np.ndarray, ShardStore]:
    store = ShardStore.open(root, split)
    return gracl.embed(checkpoint, [bytes(image) for image in store.read(np.arange(len(store)))]), store


def same(one: Calibration, other: Calibration) -> None:
    assert (one.pairs, one.clusters, one.model, one.by) == (other.pairs, other.clusters, other.model, other.by)
    for point, wanted in zip(one.points, other.points, strict=True):
        seen, due = dict(vars(point)), dict(vars(wanted))
        # A share of a few hundred pairs, of which one may lie at the very threshold: rounding then moves it across.
        assert seen.pop("found") == pytest.approx(due.pop("found"), abs=0.01)
        assert seen == pytest.approx(due, abs=1e-3)


def test_thresholds_are_those_of_the_clusters_that_the_training_would_find(ray_cluster, toy_shards, learnt):
    config, checkpoint = learnt
    result = run(checkpoint, toy_shards)
    digest = model_digest(*load_encoder(checkpoint))
    kept = calibration_of(checkpoint, digest, False)
    features, store = described(checkpoint, toy_shards, "train")
    found = relate(features, cameras=store.camera_ids(), epoch=2, **config.relations.options())
    same(kept, thresholds(features, found.labels, model=digest))
    assert json.loads(json.dumps(result)) == result
    assert Path(result["out"]) == Path(checkpoint, "calibration.json")


def test_identities_are_read_where_they_are_asked_for(ray_cluster, toy_shards, learnt):
    _, checkpoint = learnt
    run(checkpoint, toy_shards, identities=True, **{"data.split": "gallery"})
    digest = model_digest(*load_encoder(checkpoint))
    features, store = described(checkpoint, toy_shards, "gallery")
    wanted = thresholds(features, store.identities().object_ids, model=digest, by="identities")
    same(calibration_of(checkpoint, digest, False), wanted)

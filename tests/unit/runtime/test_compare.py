"""What a comparison decides before and after its runs, without Ray."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from mlflow import MlflowClient

from gracl.errors import ClusteringCollapsed, ConfigError
from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.runtime import many
from gracl.runtime.compare import checked, under, unrecorded
from gracl.runtime.grid import Trial
from gracl.runtime.many import demand_of, leave
from gracl.runtime.runs import prepare
from gracl.runtime.trial import cameras_used, describe_run, recorded
from gracl.runtime.truth import label_figures
from gracl.runtime.tuning import reason
from tests.toy import toy_config

HISTORY = [
    {"epoch": 1.0, "untrained/mAP": 0.1, "untrained/rank1": 0.2, "time/epoch_s": 9.0, "time/judge_s": 1.0},
    {"epoch": 2.0, "val/mAP": 0.5, "val/rank1": 0.7, "time/epoch_s": 5.0, "time/judge_s": 2.0},
    {"epoch": 3.0, "val/mAP": 0.4, "val/rank1": 0.7, "time/epoch_s": 6.0, "time/judge_s": 2.0},
]


@pytest.fixture
def trial(toy_shards, tmp_path):
    return Trial("plain", "toy", 0, toy_config(toy_shards, tmp_path / "runs", name="plain-toy-s0"))


@pytest.mark.parametrize(
    ("metric", "best", "epoch", "untrained"), [("val/mAP", 0.5, 2, 0.1), ("val/rank1", 0.7, 3, 0.2)]
)
def test_a_run_is_described_by_its_last_epoch_and_the_best_beside_it(trial, metric, best, epoch, untrained):
    record = describe_run(trial, HISTORY, metric)
    assert (record.mean_ap, record.rank1, record.reached(metric)) == (0.4, 0.7, HISTORY[-1][metric])
    assert (record.best, record.best_epoch, record.untrained) == (best, epoch, untrained)
    assert (record.epochs, record.epoch_seconds) == (3, 4.0)
    assert describe_run(trial, HISTORY[1:], metric).untrained is None


def test_the_use_of_cameras_is_told(toy_shards):
    assert cameras_used(toy_config(toy_shards)) == ""
    both = toy_config(toy_shards, camera_balanced=True, relations__camera_aware=True)
    assert cameras_used(both) == "sampler, distances"
    centred = {"relations__centre": "camera", "relations__camera_proxies": True, "loss__camera_weight": 1.0}
    assert cameras_used(toy_config(toy_shards, **centred)) == "features, loss"
    assert cameras_used(toy_config(toy_shards, relations__centre="local")) == ""


def write(trial, record):
    storage.write_bytes(f"{trial.config.runs}/{trial.name}/compared.json", json.dumps(record).encode())


def test_a_record_counts_for_the_same_recipe_length_and_metric(trial):
    assert recorded(trial, "val/mAP") is None
    record = describe_run(trial, HISTORY, "val/mAP")
    write(trial, asdict(record))
    assert recorded(trial, "val/mAP") == record
    assert unrecorded([trial], "val/mAP", {}) == []
    assert recorded(trial, "val/rank1") is None
    longer = replace(trial, config=trial.config.model_copy(update={"epochs": 4}))
    other = replace(trial, config=trial.config.model_copy(update={"clip_norm": 1.0}))
    assert recorded(longer, "val/mAP") is recorded(other, "val/mAP") is None
    assert unrecorded([longer, other], "val/mAP", {longer.name: "failed"}) == []
    write(trial, {"arm": "of another version"})
    assert recorded(trial, "val/mAP") is None
    assert unrecorded([trial], "val/mAP", {}) == ["plain-toy-s0"]


def test_a_run_that_is_longer_already_is_refused(trial):
    folder = Path(trial.config.runs, trial.name)
    (folder / "epoch-0003").mkdir(parents=True)
    assert checked(trial).config.runs == trial.config.runs
    (folder / "epoch-0004").mkdir()
    with pytest.raises(ConfigError, match="plain-toy-s0 of at most 3 epochs.*one of 4"):
        checked(trial)


def test_what_a_training_refuses_is_refused_with_the_name_of_the_run(trial):
    data = trial.config.data.model_copy(update={"train": "nowhere"})
    lost = replace(trial, config=trial.config.model_copy(update={"data": data}))
    with pytest.raises(ConfigError, match="run plain-toy-s0: expected a split named 'nowhere'"):
        checked(lost)


def test_mlflow_hears_of_runs_that_were_stopped_in_the_middle(trial, monkeypatch):
    stopped, status = [], {"id1": "RUNNING", "id0": "FAILED"}

    class Client(MlflowClient):
        def __init__(self):
            pass  # a client of no server

        def get_run(self, run_id):
            return SimpleNamespace(info=SimpleNamespace(status=status[run_id]))

        def set_terminated(self, run_id, status):
            stopped.append((run_id, status))

    monkeypatch.setattr(many, "attempt", lambda uri, write, what: write(Client()))
    leave([trial.config], "uri")  # it has not begun
    for finished in (3, 1, 0):  # done, at work, failed before
        place = f"{trial.config.runs}/{trial.name}/run.json"
        storage.write_bytes(
            place, json.dumps({"mlflow_run_id": f"id{finished}", "finished": finished, "recipe": {}}).encode()
        )
        leave([trial.config], "uri")
    assert stopped == [("id1", "KILLED")]


def test_the_demand_is_that_of_the_largest_runs_at_a_time(trial):
    scale = trial.config.scale.model_copy(update={"workers": 2, "worker_gpus": 1.0})
    large = replace(trial, config=trial.config.model_copy(update={"scale": scale}))
    one, two = (
        demand_of([trial.config, large.config, trial.config], 1),
        demand_of([trial.config, large.config, trial.config], 2),
    )
    assert (one.cpus, one.gpus) == pytest.approx((2.01, 2))
    assert (two.cpus, two.gpus) == pytest.approx((3.52, 2))
    assert demand_of([trial.config], 5).cpus == pytest.approx(1.51)
    assert "2 runs at a time, each of 2 workers" in two.parts
    assert two.largest == (1.0, 0.5)


def elastic(trial, **changes):
    scale = {"workers": 3, "min_workers": 1, "worker_cpus": 1.0, "worker_gpus": 1.0, "relation_cpus": 0.5}
    scale = trial.config.scale.model_copy(update={**scale, "stream": "mapped", **changes})
    return trial.config.model_copy(update={"scale": scale})


def test_elastic_runs_side_by_side_count_with_all_workers_that_they_ask_for(trial):
    config = elastic(trial)
    fixed = config.model_copy(update={"scale": config.scale.model_copy(update={"min_workers": 0})})
    both = demand_of([config] * 4, 2)
    assert (both.cpus, both.gpus, both.elastic) == (pytest.approx(7.02), 6, None)
    assert both.cpus == demand_of([fixed] * 4, 2).cpus
    assert "each of 1 to 3 workers" in both.parts


def test_elastic_runs_one_at_a_time_ask_for_what_they_ask_at_their_own_doors(trial):
    config = elastic(trial)
    for alone in (demand_of([config], 5), demand_of([config] * 4, 1)):
        assert (alone.cpus, alone.gpus, alone.elastic) == (pytest.approx(1.51), 1, (1, 3, 1.0, 1.0))
        assert alone.cpus_at_most() == pytest.approx(3.51)
    mixed = demand_of([config, elastic(trial, workers=2)], 1)  # of two ways there is no one way to be elastic
    assert (mixed.cpus, mixed.gpus, mixed.elastic) == (pytest.approx(3.51), 3, None)


def test_children_know_their_parent(trial):
    (child,) = under([trial], "abc")
    assert child.config.tracking.parent == "abc"
    assert child.config.fingerprint() == trial.config.fingerprint()


def test_a_reason_is_the_first_error_and_not_the_way_it_came():
    refusal = ClusteringCollapsed("expected clusters")
    assert reason(refusal) == "ClusteringCollapsed: expected clusters"
    assert reason(ray.exceptions.RayTaskError("f", "traceback", refusal)) == "ClusteringCollapsed: expected clusters"
    assert reason(None) == "its process ended without a word"


def test_labels_are_judged_by_the_identities_of_the_train_split(trial):
    truth = ShardStore.open(trial.config.data.root, "train").identities().object_ids
    _, labels = np.unique(truth, return_inverse=True)
    labels[0] = -1
    figures = label_figures(prepare(trial.config), labels)
    assert (figures["clusters"], figures["objects"], figures["ari"], figures["purity"]) == (16, 16, 1, 1)
    assert figures["noise"] == pytest.approx(1 / len(labels))
    assert figures["ari_all"] < 1


def test_a_run_of_another_recipe_tells_what_to_do_here(trial):
    place = f"{trial.config.runs}/{trial.name}/run.json"
    storage.write_bytes(place, json.dumps({"recipe": {"seed": 9}, "mlflow_run_id": "x", "finished": 0}).encode())
    with pytest.raises(ConfigError, match=f"name the arm anew, or delete .*{trial.name}"):
        checked(trial)


def test_a_run_that_was_not_judged_at_its_end_is_refused(trial):
    history = [{"epoch": 1.0, "time/epoch_s": 1.0, "time/judge_s": 0.0}]
    with pytest.raises(ConfigError, match="judged at its last epoch"):
        describe_run(trial, history, "val/mAP")

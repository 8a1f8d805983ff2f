"""Training through Ray, held against the twin in one process."""

import json
from pathlib import Path

import mlflow
import pytest
import torch

from benchmarks.local_twin import learn
from gracl.errors import CheckpointError, ClusteringCollapsed, ConfigError
from gracl.learning.checkpoint import load_state
from gracl.runtime.train import train
from tests.local.test_fit import assert_same_run, assert_same_state
from tests.ray.test_survival import Killer
from tests.toy import toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


# Views made where the network is: held against a twin whose threads make them.
LATE = {"scale__views_on": "device", "views__jitter": 0.2}
# All that may join the two terms, and all that reads cameras.
EXTRAS = {
    "camera_balanced": True,
    "relations__centre": "camera",
    "relations__camera_proxies": True,
    "relations__instances": 3,
    "relations__consensus": 3,
    "loss__camera_weight": 0.5,
    "loss__instance_weight": 0.5,
    "loss__smoothing": 0.2,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, with_mlflow):
    return with_mlflow(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def reference(toy_shards):
    return learn(toy_config(toy_shards))


@pytest.fixture(scope="module")
def one_worker(ray_cluster, toy_shards, runs):
    return train(toy_config(toy_shards, runs, name="one"))


@pytest.fixture(scope="module")
def two_workers(ray_cluster, toy_shards, runs):
    return train(toy_config(toy_shards, runs, name="two", scale__workers=2))


def test_one_worker_equals_the_local_run_bit_for_bit(one_worker, reference):
    assert_same_run(load_state(one_worker["checkpoint"]), reference)


def test_two_workers_learn_the_same_within_rounding(two_workers, reference):
    state = load_state(two_workers["checkpoint"])
    first, wanted = state.history[0], reference.history[0]
    assert (first["check/labels"], first["check/plan"]) == (wanted["check/labels"], wanted["check/plan"])
    assert first["cluster/number"] == wanted["cluster/number"]
    assert first["cluster/noise_fraction"] == wanted["cluster/noise_fraction"]
    assert first["untrained/mAP"] == pytest.approx(wanted["untrained/mAP"], abs=1e-6)
    losses = [[row["train/loss"] for row in history] for history in (state.history, reference.history)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    # Later epochs cluster features that differ in rounding; they stay close on this world.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.long
def test_four_workers_learn_the_same_within_rounding_with_all_terms(ray_cluster, toy_shards, runs):
    # Not adam, whose first steps are as long for a gradient that is mere rounding as for any other.
    changes = EXTRAS | {"encoder__bn_group": 4, "epochs": 1, "eval_untrained": False, "optim__optimizer": "sgd"}
    state = load_state(train(toy_config(toy_shards, runs, name="four", scale__workers=4, **changes))["checkpoint"])
    wanted = learn(toy_config(toy_shards, **changes))
    for name in ("check/labels", "check/plan", "cluster/number"):
        assert state.history[0][name] == wanted.history[0][name], name
    for term in ("loss", "inter_loss", "intra_loss", "instance_loss", "camera_loss"):
        assert state.history[0][f"train/{term}"] == pytest.approx(wanted.history[0][f"train/{term}"], rel=1e-4), term
        assert state.history[0][f"train/{term}"] > 0


def test_the_result_says_what_a_script_needs(one_worker, runs):
    assert json.loads(json.dumps(one_worker)) == one_worker
    assert Path(one_worker["checkpoint"]) == runs / "one" / "epoch-0003"
    assert Path(one_worker["pictures"]).is_file()
    assert one_worker["epochs"] == 3
    assert one_worker["final"]["mAP"] <= one_worker["best"]["mAP"]
    assert set(one_worker["seconds"]) >= {"scan", "relate", "train", "judge", "epoch"}


def test_mlflow_holds_every_parameter_and_every_epoch(one_worker, toy_shards, runs):
    client = mlflow.MlflowClient(one_worker["tracking_uri"])
    run = client.get_run(one_worker["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    wanted = toy_config(toy_shards, runs, name="one").flat()
    assert {name: run.data.params[name] for name in wanted} == {name: str(value) for name, value in wanted.items()}
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in losses] == [1, 2, 3]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/mAP")] == [2, 3]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "untrained/mAP")] == [0]
    assert "ranked.png" in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


def test_a_run_that_is_done_is_not_done_again(one_worker, toy_shards, runs):
    again = train(toy_config(toy_shards, runs, name="one"))
    assert again == one_worker


def test_a_run_stopped_after_an_epoch_and_resumed_equals_an_unbroken_one(ray_cluster, toy_shards, runs, reference):
    first = train(toy_config(toy_shards, runs, name="broken", epochs=2))
    assert first["epochs"] == 2
    resumed = train(toy_config(toy_shards, runs, name="broken"))
    state = load_state(resumed["checkpoint"])
    assert resumed["mlflow_run_id"] == first["mlflow_run_id"]
    for name, tensor in state.model.items():
        torch.testing.assert_close(tensor, reference.model[name], rtol=0, atol=0, msg=name)
    assert_same_state(state.optimizer, reference.optimizer)
    plans = [[(row["check/labels"], row["check/plan"]) for row in run.history] for run in (state, reference)]
    assert plans[0] == plans[1]


@pytest.mark.long
def test_another_run_goes_on_from_a_checkpoint_with_other_settings(one_worker, toy_shards, runs):
    changes = {"epochs": 5, "loss__inter_temperature": 0.2, "start": one_worker["checkpoint"]}
    result = train(toy_config(toy_shards, runs, name="from-one", **changes))
    config = toy_config(toy_shards, **changes)
    begun = load_state(one_worker["checkpoint"]).elsewhere(config.recipe(), height=32, width=16)
    state = load_state(result["checkpoint"])
    assert_same_run(state, learn(config, state=begun))
    assert state.recipe["start"] == "one/epoch-0003"
    assert (state.best_epoch, result["epochs"]) in {(4, 5), (5, 5)}
    assert result["seconds"]["train"] == pytest.approx(
        sum(row["time/train_s"] for row in state.history[3:]), abs=0.01
    ), "seconds are meant to be those of this run"
    points = mlflow.MlflowClient(result["tracking_uri"]).get_metric_history(result["mlflow_run_id"], "train/loss")
    assert [point.step for point in points] == [1, 2, 3, 4, 5], "the curve is meant to be whole"


@pytest.mark.long
def test_overlapped_one_worker_that_is_killed_and_resumed_equals_the_local_run(ray_cluster, toy_shards, runs):
    """Threads that ask, labels that wait in the checkpoint, and the group that takes them up from there."""
    changes = {"relations__overlap": True, "epochs": 4}
    killer = Killer(runs / "overlap", 2)
    killer.start()
    result = train(toy_config(toy_shards, runs, name="overlap", **changes))
    killer.join(10)
    assert killer.killed, "no worker was killed: this run proves nothing"
    assert_same_run(load_state(result["checkpoint"]), learn(toy_config(toy_shards, **changes)))


@pytest.mark.long
def test_overlapped_two_workers_have_the_labels_of_one(ray_cluster, toy_shards, runs):
    changes = {"relations__overlap": True, "scale__workers": 2}
    state = load_state(train(toy_config(toy_shards, runs, name="overlap-two", **changes))["checkpoint"])
    wanted = learn(toy_config(toy_shards, relations__overlap=True))
    for name in ("check/labels", "check/plan", "cluster/number", "cluster/label_age"):
        rows = [[row[name] for row in run.history] for run in (state, wanted)]
        assert rows[0][:2] == rows[1][:2], name  # both epochs on the first scan; later ones differ in rounding
    assert [row["train/loss"] for row in state.history] == pytest.approx(
        [row["train/loss"] for row in wanted.history], rel=0.05
    )


def test_another_recipe_under_the_same_name_is_refused(one_worker, toy_shards, runs):
    with pytest.raises(CheckpointError, match="loss.momentum: 0.9 in the checkpoint, 0.5 now"):
        train(toy_config(toy_shards, runs, name="one", epochs=5, loss__momentum=0.5))


def test_a_refusal_from_the_relation_actor_reaches_the_driver_once(ray_cluster, toy_shards, runs):
    config = toy_config(
        toy_shards, runs, name="noise", relations__eps=0.001, relations__min_samples=30, eval_untrained=False
    )
    with pytest.raises(ClusteringCollapsed, match="eps"):
        train(config)


def test_a_split_that_is_not_there_is_refused_before_ray(toy_shards, runs):
    with pytest.raises(ConfigError, match="a split named 'nowhere'"):
        train(toy_config(toy_shards, runs, data__train="nowhere"))


def test_a_cluster_that_can_never_hold_the_run_is_refused_with_the_sum(ray_cluster, toy_shards, runs):
    config = toy_config(toy_shards, runs, name="large", scale__worker_cpus=64)
    with pytest.raises(ConfigError, match=r"a cluster with 65 CPUs and 0 GPUs.*one with 4 CPUs"):
        train(config)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(
            "shards",
            {"relations__shards": 2, "scale__shard_cpus": 0.25, "relations__precision": "float16"},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "cameras",
            {
                "relations__camera_aware": True,
                "relations__inter_rule": "nearest_centroids",
                "relations__clustering": "hdbscan",
                "relations__min_cluster_size": 3,
            },
            marks=pytest.mark.long,
        ),
        ("extras", EXTRAS | {"scale__stream": "mapped", "scale__keep_pixels": True, "eval_stability": 1} | LATE),
        pytest.param(
            "taught",
            {
                "teacher_decay": 0.9,
                "loss__inter_update": "every",
                "loss__negatives": "both",
                "scale__keep_pixels": "auto",
            }
            | LATE,
            marks=pytest.mark.long,
        ),
    ],
)
def test_runs_of_other_kinds_equal_the_local_run(ray_cluster, toy_shards, runs, name, changes):
    changes |= {"epochs": 1, "eval_untrained": False, "data__cache": f"{runs}/cache"}
    result = train(toy_config(toy_shards, runs, name=name, **changes))
    state = load_state(result["checkpoint"])
    kept = [path.name for path in Path(runs, "cache").glob("*.pixels")]
    assert len(kept) == (3 if changes.get("scale__keep_pixels") else 0)  # train, query and gallery
    wanted = learn(toy_config(toy_shards, **changes | {"scale__views_on": "cpu"}))
    assert_same_run(state, wanted)
    assert_same_state(state.teacher, wanted.teacher)
    assert 0 <= state.history[0]["cluster/camera_entropy"] <= 1  # the root is local, and its cameras known

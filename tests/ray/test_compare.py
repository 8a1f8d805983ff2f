"""A comparison through Ray Tune: runs equal those of their own door, none is done twice, failures are told."""

import csv
import io
import json
from pathlib import Path

import mlflow
import pytest

from benchmarks.local_twin import learn
from gracl.errors import ConfigError, TrainingFailed
from gracl.experiments import CompareConfig
from gracl.learning.checkpoint import load_state
from gracl.runtime import compare as door
from gracl.runtime.compare import compare
from gracl.runtime.train import train
from tests.local.test_fit import assert_same_run
from tests.toy import TOY, toy_config

# Four trainings are one fixture.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
SHORT = {"epochs": 2, "eval_every": 1}
ARMS = {"plain": [], "cameras": ["camera_balanced=true"]}
COLLAPSES = ["relations.eps=0.001", "relations.min_samples=30"]
# Set by the arms, since what is common wins over them.
OWN = [f"{name}={TOY[name]}" for name in ("relations.eps", "relations.min_samples")]
# Other tests have the stream; without it a training has fewer processes to wait for.
SETTINGS = TOY | SHORT | {"scale.stream": "mapped"}
COMMON = [f"{name}={value}" for name, value in SETTINGS.items() if f"{name}={value}" not in OWN]


def comparison(root, out, *, arms=ARMS, **changes):
    given = {
        "presets": {name: [*OWN, *arguments] for name, arguments in arms.items()},
        "data": {"toy": f"data.root={root}"},
        "common": COMMON,
        "seeds": [0],
        "out": str(out),
        "concurrent": 2,
    }
    return CompareConfig(**(given | changes))


@pytest.fixture(scope="module")
def out(tmp_path_factory, with_mlflow):
    return with_mlflow(tmp_path_factory.mktemp("compared") / "toy" / "runs").parent


@pytest.fixture(scope="module")
def begun(ray_cluster, toy_shards, out):
    """The run of an arm, stopped after its first epoch."""
    short = {"eval_every": 1, "epochs": 1, "camera_balanced": True}
    return train(toy_config(toy_shards, out / "runs", name="cameras-toy-s0", **short))


@pytest.fixture(scope="module")
def broken(begun, toy_shards, out):
    """The error of a comparison with an arm whose clusters collapse, and its table."""
    with pytest.raises(TrainingFailed) as caught:
        compare(comparison(toy_shards, out, arms=ARMS | {"collapses": COLLAPSES}))
    return f"{caught.value}\n{(out / 'table.md').read_text()}"


@pytest.fixture(scope="module")
def again(broken, toy_shards, out):
    """The result of the same comparison without that arm, of which no run may be begun."""

    def begin(*args, **kwargs):
        raise AssertionError("a run that is done was begun again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "learn", begin)
        return compare(comparison(toy_shards, out))


def record(out, name):
    return json.loads((out / "runs" / name / "compared.json").read_text())


def test_a_failed_run_is_told_with_its_reason_and_the_others_go_on(broken, out):
    assert "3 runs that end well; came 1 that failed (collapses-toy-s0)" in broken
    assert f"{out / 'table.md'}; the same command" in broken
    assert "ClusteringCollapsed: expected at least 2 clusters" in broken, "the table is meant to tell why"
    assert {record(out, f"{arm}-toy-s0")["epochs"] for arm in ARMS} == {2}
    assert not (out / "runs" / "collapses-toy-s0" / "compared.json").exists()


@pytest.mark.parametrize(("arm", "changes"), [("plain", {}), ("cameras", {"camera_balanced": True})])
def test_a_run_of_a_comparison_equals_the_local_run_also_one_that_was_begun(broken, toy_shards, out, arm, changes):
    state = load_state(out / "runs" / f"{arm}-toy-s0" / "epoch-0002")
    assert_same_run(state, learn(toy_config(toy_shards, **SHORT, **changes)))
    row, found = state.history[-1], record(out, f"{arm}-toy-s0")
    assert (found["mean_ap"], found["rank1"]) == (row["val/mAP"], row["val/rank1"])
    assert found["untrained"] == state.history[0]["untrained/mAP"]


def test_labels_are_judged_after_the_training(broken, out):
    found = record(out, "plain-toy-s0")
    assert found["objects"] == 16
    assert found["clusters"] >= 2
    assert 0 <= found["noise"] < 1
    assert 1 / found["clusters"] <= found["purity"] <= 1
    assert found["ari_all"] <= found["ari"] <= 1


def test_what_is_done_is_not_done_again(again, out):
    assert json.loads(json.dumps(again)) == again
    assert again["done"] == 2
    assert [(one["arm"], one["seeds"]) for one in again["arms"]] == [("plain", [0]), ("cameras", [0])]
    rows = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert [(row["arm"], row["cameras"], row["failed"]) for row in rows] == [
        ("plain", "", ""),
        ("cameras", "sampler", ""),
    ]
    gap = float(rows[1]["mean_ap"]) - float(rows[0]["mean_ap"])
    assert again["arms"][1]["difference"] == pytest.approx(gap)
    assert "| cameras | sampler | 0 |" in Path(again["table"]).read_text()
    assert not (out / "tune").exists()


def test_mlflow_has_one_parent_and_a_child_for_each_run(begun, again):
    client = mlflow.MlflowClient(again["tracking_uri"])
    parent = client.get_run(again["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    wanted = {"table.md", "runs.csv", "arms.csv", "chart.png", "comparison.yaml"}
    assert {one.path for one in client.list_artifacts(parent.info.run_id)} == wanted
    assert parent.data.metrics["toy/plain/mean"] == again["arms"][0]["mean"]
    under = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], under)
    status = {run.info.run_name: run.info.status for run in children}
    finished = {f"{arm}-toy-s0": "FINISHED" for arm in ARMS}
    assert status == finished | {"collapses-toy-s0": "FAILED"}
    # The run that was begun by itself goes on in its own MLflow run, now under the comparison.
    assert begun["mlflow_run_id"] in {run.info.run_id for run in children}


def test_more_at_a_time_than_the_cluster_holds_is_refused_before_anything_is_written(ray_cluster, toy_shards, tmp_path):
    config = comparison(toy_shards, tmp_path / "none", concurrent=9, seeds=[0, 1, 2])
    with pytest.raises(ConfigError, match=r"a cluster with 6.06 CPUs .*6 runs at a time.*one with 4 CPUs.*concurrent"):
        compare(config)
    assert not (tmp_path / "none").exists()

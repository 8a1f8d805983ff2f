"""A sweep through Ray Tune: trials equal the trainings of their own door, none is done twice, failures are told."""

import csv
import json
from pathlib import Path

import mlflow
import pytest

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.config import TrainConfig, TuneConfig
from gracl.errors import ConfigError, TrainingFailed
from gracl.learning.checkpoint import load_state
from gracl.runtime import sweep as door
from gracl.runtime.points import config_of, name_of
from gracl.runtime.sweep import sweep
from gracl.runtime.sweep_trial import Point, Sweep
from gracl.runtime.train import train
from tests.local.test_fit import assert_same_run
from tests.toy import TOY

# A few trainings are one fixture.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
COLLAPSES, WELL, ALSO = {"relations.eps": 0.001}, {"relations.eps": 0.7}, {"relations.eps": 0.65}


def asked(root, out, **changes):
    settings = TOY | {"data.root": root, "epochs": 2, "eval_every": 1}
    settings.pop("relations.eps")
    given = {
        "base": [f"{name}={value}" for name, value in settings.items()],
        "space": {"relations.eps": {"choice": [0.7, 0.65, 0.001]}},
        "search": "grid",
        "out": str(out),
        "concurrent": 2,
    }
    return TuneConfig(**(given | changes))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("searched") / "toy"


@pytest.fixture(scope="module")
def found(ray_cluster, toy_shards, out):
    """The result of a sweep of which one trial had been begun and stopped, and one collapses."""
    config = asked(toy_shards, out)
    began = config_of(config, ALSO, str(out / "runs")).model_copy(update={"epochs": 1})
    train(began)
    records = Sweep(config, str(out / "runs"), str(out / "trials"))
    records.write(Point(name_of(ALSO), ALSO))
    return sweep(config)


def record(out, values):
    return json.loads((out / "trials" / f"{name_of(values)}.json").read_text())


def test_trials_equal_local_runs_also_one_that_was_begun(found, toy_shards, out):
    for values in (WELL, ALSO):
        state = load_state(out / "runs" / name_of(values) / "epoch-0002")
        assert_same_run(state, learn(config_of(asked(toy_shards, out), values, "")))
        told = record(out, values)
        assert (told["state"], told["epochs"]) == ("done", 2)
        assert told["history"][-1]["val/mAP"] == state.history[-1]["val/mAP"]


def test_a_failed_trial_is_told_and_the_others_go_on(found, out):
    assert found["trials"] == {"done": 2, "stopped": 0, "failed": 1}
    assert "ClusteringCollapsed: expected at least 2 clusters" in record(out, COLLAPSES)["why"]
    assert "ClusteringCollapsed" in Path(found["table"]).read_text()
    rows = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["done", "done", "failed"]


def test_the_best_is_a_preset_that_the_training_door_takes(found, toy_shards, out):
    reached = {name_of(values): record(out, values)["history"][-1]["val/mAP"] for values in (WELL, ALSO)}
    assert found["best"]["run"] == max(reached, key=reached.get)
    assert found["best"]["val/mAP"] == max(reached.values())
    preset = load_config(TrainConfig, [found["best_preset"], f"data.root={toy_shards}"])
    assert preset.recipe() == config_of(asked(toy_shards, out), found["best"]["values"], "").recipe()
    assert {"metric.png", "parallel.png", "trials.csv", "sweep.yaml"} <= {path.name for path in out.iterdir()}
    assert not (out / "tune").exists()


def test_mlflow_has_the_sweep_over_its_trials(found):
    client = mlflow.MlflowClient(found["tracking_uri"])
    parent = client.get_run(found["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space.relations.eps"] == "choice [0.7, 0.65, 0.001]"
    assert parent.data.metrics["best/val/mAP"] == pytest.approx(found["best"]["val/mAP"])
    assert {"table.md", "metric.png", "best.yaml"} <= {one.path for one in client.list_artifacts(parent.info.run_id)}
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert sorted(child.info.status for child in children) == ["FAILED", "FINISHED", "FINISHED"]


def test_only_what_failed_is_tried_again(found, toy_shards, out, monkeypatch):
    begun = []

    def begin(swept, listed, known, left, uri):
        begun.extend(listed)

    monkeypatch.setattr(door, "_learn", begin)
    again = sweep(asked(toy_shards, out))
    assert begun == [COLLAPSES]
    assert again["best"] == found["best"]
    assert again["mlflow_run_id"] == found["mlflow_run_id"]


def test_another_sweep_in_the_same_place_is_refused(found, toy_shards, out):
    with pytest.raises(ConfigError, match="another metric; choose another out="):
        sweep(asked(toy_shards, out, metric="val/rank1"))


def test_a_sweep_without_any_result_fails_and_says_where_the_reasons_are(ray_cluster, toy_shards, tmp_path):
    space = {"relations.eps": {"choice": [0.001]}}
    with pytest.raises(
        TrainingFailed, match=r"a trial that does all its epochs; came none; .*table\.md has the reasons"
    ):
        sweep(asked(toy_shards, tmp_path, space=space))
    assert "ClusteringCollapsed" in (tmp_path / "table.md").read_text()


def test_a_trial_that_falls_behind_is_stopped_and_proposals_go_on_from_what_is_known(ray_cluster, toy_shards, tmp_path):
    pytest.importorskip("optuna")
    well = {"relations.eps": 0.7, "optim.rate": 0.00035}
    given = asked(
        toy_shards,
        tmp_path,
        search="tpe",
        trials=2,
        scheduler="asha",
        grace=1,
        reduction=2,
        concurrent=1,
        space={"relations.eps": {"uniform": [0.6, 0.75]}, "optim.rate": {"loguniform": [0.0001, 0.3]}},
    )
    records = Sweep(given, str(tmp_path / "runs"), str(tmp_path / "trials"))
    # What stands for trials of before: one that is known to be perfect, and one that was begun and is proposed first.
    perfect = [{"epoch": 2.0, "val/mAP": 1.0}]
    records.write(Point("t-perfect", {"relations.eps": 0.61, "optim.rate": 0.2}, "done", 2, perfect))
    records.write(Point(name_of(well), well))
    found = sweep(given)
    assert found["trials"] == {"done": 2, "stopped": 0, "failed": 0}
    assert record(tmp_path, well)["state"] == "done"
    bad = well | {"optim.rate": 0.3}
    records.write(Point(name_of(bad), bad))
    more = sweep(given.model_copy(update={"trials": 3}))
    assert sum(more["trials"].values()) == 3
    assert record(tmp_path, bad)["state"] in ("done", "stopped")

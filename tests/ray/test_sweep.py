"""A sweep through Ray Tune: trials equal the trainings of their own door, none is done twice, failures are told."""

import csv
import json
import time
from pathlib import Path

import mlflow
import pytest

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.errors import ConfigError, TrainingFailed
from gracl.experiments import TuneConfig
from gracl.learning.checkpoint import load_state
from gracl.runtime import sweep as door
from gracl.runtime.points import base_of, config_of, name_of
from gracl.runtime.sweep import sweep
from gracl.runtime.sweep_trial import Point, Sweep
from gracl.runtime.train import train
from tests.local.test_fit import assert_same_run
from tests.toy import TOY

# A few trainings are one fixture.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
COLLAPSES, WELL, ALSO = {"relations.min_samples": 60}, {"relations.min_samples": 2}, {"relations.min_samples": 3}


def asked(root, out, epochs=2, **changes):
    # Other tests have the stream; without it a training has fewer processes to wait for.
    settings = TOY | {"data.root": root, "epochs": epochs, "eval_every": 1, "scale.stream": "mapped"}
    settings.pop("relations.min_samples")
    preset = Path(root).parent / "sweep_base.yaml"
    preset.write_text(f"epochs: {settings.pop('epochs')}")
    given = {
        "base": [str(preset), *(f"{name}={value}" for name, value in settings.items())],
        "space": {"relations.min_samples": {"choice": [2, 3, 60]}},
        "search": "grid",
        "out": str(out),
        "concurrent": 2,
    }
    return TuneConfig(**(given | changes))


@pytest.fixture(scope="module")
def out(tmp_path_factory, with_mlflow):
    return with_mlflow(tmp_path_factory.mktemp("searched") / "toy" / "runs").parent


@pytest.fixture(scope="module")
def found(ray_cluster, toy_shards, out):
    """The result of a sweep of which one trial had been begun and stopped, and one collapses.

    Its presets and shards are named as one types them, from the folder where one stands: Tune's trials have their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(toy_shards).parent)
        return swept_from_here(toy_shards, out)


def swept_from_here(toy_shards, out):
    config = asked(toy_shards, out)
    config = config.model_copy(
        update={"base": ("sweep_base.yaml", *config.base[1:], f"data.root={Path(toy_shards).name}")}
    )
    records = Sweep(config, base_of(config), str(out / "runs"), str(out / "trials"))
    train(records.training(ALSO).model_copy(update={"epochs": 1}))
    records.write(Point(name_of(ALSO), ALSO))
    return sweep(config)


def record(out, values):
    return json.loads((out / "trials" / f"{name_of(values)}.json").read_text())


def kept(out, values):
    return {path.name for path in (out / "runs" / name_of(values)).glob("epoch-*")}


def test_trials_equal_local_runs_also_one_that_was_begun(found, toy_shards, out):
    for values in (WELL, ALSO):
        state = load_state(out / "runs" / name_of(values) / "epoch-0002")
        assert_same_run(state, learn(config_of(base_of(asked(toy_shards, out)), values)))
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
    assert preset.recipe() == config_of(base_of(asked(toy_shards, out)), found["best"]["values"]).recipe()
    assert {"metric.png", "parallel.png", "trials.csv", "sweep.yaml"} <= {path.name for path in out.iterdir()}
    assert not (out / "tune").exists()


def test_mlflow_has_the_sweep_over_its_trials(found):
    client = mlflow.MlflowClient(found["tracking_uri"])
    parent = client.get_run(found["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space.relations.min_samples"] == "choice [2, 3, 60]"
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


def test_another_preset_under_the_same_name_is_another_sweep(found, toy_shards, out):
    with pytest.raises(ConfigError, match="another base; choose another out="):
        sweep(asked(toy_shards, out, epochs=3))


@pytest.mark.long
def test_a_sweep_without_any_result_fails_and_says_where_the_reasons_are(ray_cluster, toy_shards, tmp_path):
    space = {"relations.min_samples": {"choice": [60]}}
    with pytest.raises(
        TrainingFailed, match=r"a trial that does all its epochs; came none; .*table\.md has the reasons"
    ):
        sweep(asked(toy_shards, tmp_path, space=space))
    assert "ClusteringCollapsed" in (tmp_path / "table.md").read_text()


@pytest.mark.long
def test_a_trial_that_falls_behind_is_stopped_and_proposals_begin_with_what_was_begun(
    ray_cluster, toy_shards, tmp_path
):
    pytest.importorskip("optuna")
    swept = asked(
        toy_shards,
        tmp_path,
        epochs=6,
        search="tpe",
        trials=3,
        scheduler="asha",
        grace=1,
        reduction=2,
        concurrent=1,
        space={"relations.min_samples": {"integers": [2, 3]}, "optim.rate": {"loguniform": [0.0001, 0.3]}},
    )
    records = Sweep(swept, base_of(swept), str(tmp_path / "runs"), str(tmp_path / "trials"))
    # What stands for trials of before: one that is done, and two that were begun and are proposed first, by name.
    one = {"relations.min_samples": 2, "optim.rate": 0.00035}
    known = [{"epoch": 6.0, "val/mAP": 0.6, "time/epoch_s": 1.0}]
    values = one | {"optim.rate": 0.001}
    records.write(Point(name_of(values), values, "done", 6, known))
    spoils = [one | {"optim.rate": rate} for rate in (0.03, 0.029, 0.028, 0.027, 0.026)]
    bad = next(values for values in spoils if name_of(values) > name_of(one))
    for values in (one, bad):
        records.write(Point(name_of(values), values))
    found = sweep(swept)
    assert found["trials"] == {"done": 2, "stopped": 1, "failed": 0}
    assert (record(tmp_path, one)["state"], record(tmp_path, one)["epochs"]) == ("done", 6)
    assert (record(tmp_path, bad)["state"], record(tmp_path, bad)["epochs"]) == ("stopped", 1)
    assert found["best"]["run"] == name_of(one), "the toy is meant to get further than 0.6"
    done = kept(tmp_path, bad)
    time.sleep(5)
    assert kept(tmp_path, bad) == done <= {"epoch-0001", "epoch-0002", "epoch-0003"}, "its training goes on"
    client = mlflow.MlflowClient(found["tracking_uri"])
    (stopped,) = client.search_runs(
        [client.get_run(found["mlflow_run_id"]).info.experiment_id], f"tags.`mlflow.runName` = '{name_of(bad)}'"
    )
    assert (stopped.info.status, stopped.data.tags["gracl.stopped_early"]) == ("KILLED", "1")


@pytest.mark.long
def test_a_population_exchanges_and_its_copies_equal_local_runs_that_go_on(ray_cluster, toy_shards, tmp_path):
    swept = asked(
        toy_shards,
        tmp_path,
        epochs=2,
        search="random",
        trials=2,
        scheduler="pbt",
        exchange_every=1,
        space={"optim.rate": {"loguniform": [0.0001, 0.001]}},
    )
    swept = swept.model_copy(update={"base": (*swept.base, "relations.min_samples=2")})
    found = sweep(swept)
    assert found["trials"] == {"done": 2, "stopped": 1, "failed": 0}
    base, records = base_of(swept), Sweep(swept, base_of(swept), str(tmp_path / "runs"), str(tmp_path / "trials"))
    known = records.known()
    (copy,) = (point for point in known if "start" in point.values)
    (ended,) = (point for point in known if point.state == "stopped")
    (donor,) = (point for point in known if point not in (copy, ended))
    assert copy.values["start"] == f"{donor.name}/start-0001"
    assert ended.history[0]["val/mAP"] <= donor.history[0]["val/mAP"]
    assert [row["epoch"] for row in donor.history] == [row["epoch"] for row in copy.history] == [1.0, 2.0]
    config = config_of(base, copy.values)
    first = learn(config_of(base, donor.values).model_copy(update={"epochs": 1}))
    begun = first.elsewhere(config.recipe(), height=32, width=16)
    assert_same_run(load_state(tmp_path / "runs" / copy.name / "epoch-0002"), learn(config, state=begun))
    assert not list((tmp_path / "runs").glob("*/start-*"))
    page = Path(found["table"]).read_text()
    assert "| stopped |  |\n" in page
    assert f"{donor.name}/start-0001 |" in page
    preset = load_config(TrainConfig, [found["best_preset"], f"data.root={toy_shards}"])
    assert preset.start is None
    assert preset.optim.rate == found["best"]["values"]["optim.rate"]
    again = sweep(swept)
    assert (again["best"], again["trials"]) == (found["best"], found["trials"])

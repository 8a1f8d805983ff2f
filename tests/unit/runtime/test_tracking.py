import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gracl.errors import ConfigError
from gracl.runtime.tracking import (
    DataSplit,
    MlflowCallback,
    attempt,
    closing,
    is_complete,
    mend,
    plain,
    reopen_run,
    start_run,
    tracking_uri,
)

DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("tracked") / "runs"


@pytest.fixture(scope="module")
def uri(runs):
    """One SQLite file for all: its first migration takes seconds."""
    return tracking_uri(None, str(runs))


@pytest.fixture(scope="module")
def client(uri, run_id):
    return MlflowClient(uri)


@pytest.fixture(scope="module")
def run_id(uri, runs):
    return begin(uri, runs, "first")


def begin(uri, runs, name):
    return start_run(
        uri,
        experiment="gracl",
        name=name,
        artifacts=str(runs / "artifacts"),
        parameters={"loss.momentum": 0.1, "data.cache": None, "resize": [64, 32]},
        tags={"gracl.fingerprint": "abc"},
        splits=[DataSplit("train", "train", "/shards/train", "f" * 64, {"images": 12, "cameras": 3})],
    )


def test_without_a_uri_a_file_beside_the_runs_is_used(tmp_path):
    assert tracking_uri(None, str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    "uri",
    [
        "http://server:5000",
        "https://me@server:5000/a:b@c",
        "mysql://me@host:3306/mlflow",
        "sqlite:////data/mlflow.db",
        "databricks",
    ],
)
def test_a_uri_that_means_the_same_everywhere_is_taken_as_it_is(uri):
    assert tracking_uri(uri, "s3://bucket/runs") == uri


def test_remote_runs_need_a_uri():
    with pytest.raises(ConfigError, match="tracking.uri beside remote runs; came none, runs=s3://bucket/runs"):
        tracking_uri(None, "s3://bucket/runs")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://me:secret@server:5000", "came http://...; set MLFLOW_TRACKING_USERNAME"),
        ("postgresql+psycopg2://me:secret@host/mlflow", r"came postgresql\+psycopg2://...; .*pgpass"),
        ("postgresql://me:a/secret@host/mlflow", "without a password"),
        ("postgresql://me:#secret[@host/mlflow", "without a password"),
        ("mysql://host/mlflow?user=me&password=secret", "without a password"),
    ],
)
def test_a_password_in_the_uri_is_refused_and_not_repeated(uri, told):
    with pytest.raises(ConfigError, match=told) as refused:
        tracking_uri(uri, "/runs")
    assert "secret" not in str(refused.value)


def test_a_relative_file_is_refused():
    with pytest.raises(ConfigError, match=r"an absolute SQLite path .*; came sqlite:///mlflow.db"):
        tracking_uri("sqlite:///mlflow.db", "/runs")


def test_a_run_begins_with_parameters_tags_and_the_kind_of_its_experiment(client, run_id, runs):
    run = client.get_run(run_id)
    assert run.data.params == {"loss.momentum": "0.1", "data.cache": "None", "resize": "[64, 32]"}
    assert run.data.tags["gracl.fingerprint"] == "abc"
    assert {"gracl.version", "gracl.torch", "gracl.ray", "gracl.python"} <= set(run.data.tags)
    assert (run.info.run_name, run.info.status) == ("first", "RUNNING")
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "gracl"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert Path(experiment.artifact_location.removeprefix("file://")) == runs / "artifacts"


def test_a_second_run_joins_the_experiment(client, uri, run_id, runs):
    other = client.get_run(begin(uri, runs, "second"))
    assert other.info.run_id != run_id
    assert other.info.experiment_id == client.get_run(run_id).info.experiment_id


def test_an_epoch_is_written_at_its_step_and_the_untrained_figures_at_zero(client, uri, run_id):
    callback = MlflowCallback(uri, run_id)
    for epoch in (1, 2):
        figures = {"epoch": float(epoch), "train/loss": 1.0 / epoch, "untrained/mAP": 0.25, "check/plan": 7.0}
        callback.after_report(run_context=None, metrics=[figures, {}], checkpoint=None)
    losses = [(point.step, point.value) for point in client.get_metric_history(run_id, "train/loss")]
    assert losses == [(1, 1.0), (2, 0.5)]
    assert {point.step for point in client.get_metric_history(run_id, "untrained/mAP")} == {0}
    assert client.get_metric_history(run_id, "check/plan") == []


def test_the_loss_of_each_step_goes_on_from_epoch_to_epoch_in_pieces_that_mlflow_takes(client, uri, runs):
    run_id = begin(uri, runs, "steps")
    callback, many = MlflowCallback(uri, run_id), 1500
    for epoch in (1, 2):
        report = {"epoch": float(epoch), "step_losses": [epoch + step / 4096 for step in range(many)]}
        callback.after_report(run_context=None, metrics=[report], checkpoint=None)
    # In pages, which the SQLite store of MLflow leaves to the asker.
    points = {point.step: point.value for point in client.get_metric_history(run_id, "step/loss")}
    assert points == {(epoch - 1) * many + step + 1: epoch + step / 4096 for epoch in (1, 2) for step in range(many)}


def test_what_every_node_did_stands_with_the_epoch(client, uri, runs):
    run_id = begin(uri, runs, "nodes")
    reports = [
        {"epoch": 2.0, "system": {"system/node0/cpu_utilization_percentage": 40.0}},
        {"system": {}},
        {"system": {"system/node1/cpu_utilization_percentage": 60.0}},
    ]
    MlflowCallback(uri, run_id).after_report(run_context=None, metrics=reports, checkpoint=None)
    told = client.get_run(run_id).data.metrics
    assert told == {
        "epoch": 2.0,
        "system/node0/cpu_utilization_percentage": 40.0,
        "system/node1/cpu_utilization_percentage": 60.0,
    }


def test_the_figures_of_an_epoch_are_plain_numbers():
    report = {"epoch": 1.0, "val/mAP": 0.5, "step_losses": [1.0], "system": {"system/node0/x": 1.0}}
    assert plain(report) == {"epoch": 1.0, "val/mAP": 0.5}


def test_a_run_is_complete_when_it_is_finished_with_its_last_epoch(client, uri, runs, impatient, caplog):
    run_id, history = begin(uri, runs, "complete"), [{"epoch": 1.0}, {"epoch": 2.0}]
    mend(uri, run_id, history)
    assert not is_complete(uri, run_id, history)
    client.set_terminated(run_id, status="FINISHED")
    assert is_complete(uri, run_id, history)
    assert not is_complete(uri, run_id, [*history, {"epoch": 3.0}])
    assert not is_complete(DEAD, run_id, history)


def test_a_server_that_does_not_answer_at_the_start_is_waited_for_and_then_refused(impatient, capsys):
    with pytest.raises(ConfigError, match=f"an MLflow server at {DEAD}; came .*; start it, or mend tracking.uri"):
        start_run(DEAD, experiment="e", name="n", artifacts="", parameters={}, tags={}, wait_s=1.5)
    assert f"MLflow at {DEAD} does not answer; waiting for it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "page"), [(200, b"<html>another server</html>"), (401, b"You are not authenticated.")]
)
def test_a_server_that_is_no_mlflow_or_lets_nobody_in_is_not_waited_for(code, page, capsys):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(ConfigError, match="an MLflow server at"):
            start_run(uri, experiment="e", name="n", artifacts="", parameters={}, tags={}, wait_s=300.0)
        server.shutdown()
    assert "waiting" not in capsys.readouterr().err


def test_the_data_stands_among_the_inputs(client, run_id):
    (given,) = client.get_run(run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("train", "f" * 36)
    assert json.loads(given.dataset.profile) == {"images": 12, "cameras": 3}
    assert json.loads(given.dataset.source) == {"uri": "/shards/train"}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "train")]


def test_epochs_that_mlflow_did_not_hear_of_are_written_at_the_end(client, uri, runs):
    run_id = begin(uri, runs, "away")
    history = [{"epoch": float(epoch), "train/loss": epoch / 2, "untrained/mAP": 0.1} for epoch in range(1, 5)]
    MlflowCallback(uri, run_id).after_report(run_context=None, metrics=[history[1]], checkpoint=None)
    assert mend(uri, run_id, history) == [1, 3, 4]
    assert mend(uri, run_id, history) == []
    losses = sorted((point.step, point.value) for point in client.get_metric_history(run_id, "train/loss"))
    assert losses == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert {point.step for point in client.get_metric_history(run_id, "untrained/mAP")} == {0}


def test_nothing_fails_where_mlflow_is_away_still(impatient, caplog):
    with caplog.at_level(logging.ERROR, logger="gracl.tracking"):
        assert mend(DEAD, "run", [{"epoch": 1.0}]) is None
    assert "did not take the epochs that it lacks" in said(caplog)[0]


def test_lost_workers_become_a_tag(client, uri, run_id):
    MlflowCallback(uri, run_id).after_exception(
        run_context=None, worker_exceptions={1: RuntimeError("gone"), 0: RuntimeError("gone")}
    )
    tags = client.get_run(run_id).data.tags
    assert [value for name, value in tags.items() if name.startswith("gracl.lost_workers.")] == ["[0, 1]"]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "gracl.tracking"]


def test_a_server_that_does_not_answer_is_logged_and_fails_nothing(impatient, caplog):
    callback = MlflowCallback(DEAD, "run")
    with caplog.at_level(logging.ERROR, logger="gracl.tracking"):
        callback.after_report(run_context=None, metrics=[{"epoch": 3.0, "train/loss": 1.0}], checkpoint=None)
        callback.after_exception(run_context=None, worker_exceptions={0: RuntimeError("gone")})
    assert said(caplog) == [f"MLflow at {DEAD} did not take the figures of epoch 3; it is kept and tried again"]


def test_a_training_that_is_done_ends_well_though_the_server_is_gone(impatient, caplog):
    with caplog.at_level(logging.ERROR, logger="gracl.tracking"), closing(DEAD, "run"):
        pass
    assert said(caplog) == [f"MLflow at {DEAD} did not take the status FINISHED; the run's folder holds it"]


def test_a_training_that_failed_keeps_its_own_error_though_the_server_is_gone(impatient, caplog):
    with pytest.raises(ZeroDivisionError), closing(DEAD, "run"):
        raise ZeroDivisionError
    assert "the status FAILED" in said(caplog)[0]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_status_says_how_the_run_ended(client, uri, runs, error, status):
    run_id = begin(uri, runs, status)

    def work():
        with closing(uri, run_id):
            attempt(uri, lambda client: client.log_dict(run_id, {"seed": 0}, "config.yaml"), "the settings")
            if error:
                raise error

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert client.get_run(run_id).info.status == status
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["config.yaml"]


def test_a_resumed_run_goes_on_and_says_so(client, uri, runs):
    run_id = begin(uri, runs, "resumed")
    client.set_terminated(run_id, status="KILLED")
    reopen_run(uri, run_id)
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert int(run.data.tags["gracl.resumed"]) > 0

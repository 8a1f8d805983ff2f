"""A cluster whose head is gone under a run: said as that, whatever it looks like from the driver, and else not."""

from contextlib import nullcontext

import pytest
import ray

from gracl.errors import ConfigError, TrainingFailed
from gracl.runtime import train as training
from gracl.runtime.runs import Run
from gracl.runtime.train import ControllerLost, learn_on
from tests.toy import toy_config

HEAD = "192.0.2.1:6379"


@pytest.fixture
def run(monkeypatch):
    """Learns on a cluster of a test's own: what `ends` says is what the training ends with, one after the other."""
    ends, sessions = [], []

    def learn(*_):
        raise ends.pop(0)

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Context", (), {"gcs_address": HEAD}))
    monkeypatch.setattr(training, "session", lambda demand: sessions.append(demand) or nullcontext())
    monkeypatch.setattr(training, "register", lambda run, uri: run)
    monkeypatch.setattr(training, "prepare", lambda config: one)
    monkeypatch.setattr(training, "set_torn_aside", lambda folder: [])
    monkeypatch.setattr(training, "closing", lambda uri, run_id: nullcontext())
    monkeypatch.setattr(training, "learn", learn)
    config = toy_config("nowhere", scale__keep_pixels=True, scale__max_failures=1)
    one = Run(config, "headless", "runs", "nowhere", {}, {}, {"mlflow_run_id": "0"})
    return one, ends, sessions


@pytest.mark.parametrize(
    "end",
    [
        ControllerLost("it died"),
        TrainingFailed("mend the cause"),
        ConfigError("nobody answers"),
        ConnectionError("no connection"),
        ray.exceptions.RaySystemError(OSError("lost")),
    ],
)
def test_a_head_that_is_gone_is_said(run, end, monkeypatch):
    one, ends, _ = run
    ends.append(end)
    monkeypatch.setattr(training, "unreachable", lambda address: "refused" if address == HEAD else None)
    with pytest.raises(TrainingFailed, match=rf"the Ray cluster at {HEAD} to stay; came refused; .* name=headless"):
        learn_on(one, "")


def test_a_lost_controller_of_a_cluster_that_is_there_is_followed_as_often_as_allowed(run, monkeypatch, capfd):
    one, ends, sessions = run
    ends += [ControllerLost("it died"), ControllerLost("and again")]
    monkeypatch.setattr(training, "unreachable", lambda address: None)
    with pytest.raises(ControllerLost, match="and again"):
        learn_on(one, "")
    assert len(sessions) == 2
    assert "it died: so this one does, the 1. time" in capfd.readouterr().err


@pytest.mark.parametrize("end", [TrainingFailed("mend the cause"), ConfigError("too small")])
def test_another_end_of_a_cluster_that_is_there_is_left_as_it_is(run, end, monkeypatch):
    one, ends, sessions = run
    ends.append(end)
    monkeypatch.setattr(training, "unreachable", lambda address: None)
    with pytest.raises(type(end), match=str(end)):
        learn_on(one, "")
    assert len(sessions) == 1


def test_without_a_cluster_nobody_is_looked_for(run, monkeypatch):
    one, ends, _ = run
    ends.append(TrainingFailed("mend the cause"))
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(training, "unreachable", lambda address: pytest.fail(f"asked for {address}"))
    with pytest.raises(TrainingFailed, match="mend the cause"):
        learn_on(one, "")

"""A run loses a raylet, relation actor and controller and ends as an unbroken one; `make chaos` kills everywhere."""

import pytest

from benchmarks.local_twin import learn
from benchmarks.rehearse_jobs import wait_until
from gracl.learning.checkpoint import load_state
from tests.chaos.kills import chaos, recorded
from tests.local.test_fit import assert_same_run
from tests.toy import TOY, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]

# Long enough for a phase to be seen; one worker, to which the twin in one process is equal to the last bit.
TRAINED = {**TOY, "epochs": 5, "sampling.steps": 40}


@pytest.mark.long
def test_a_run_that_loses_parts_of_it_goes_on_and_ends_as_an_unbroken_one(toy_shards, tmp_path, with_mlflow):
    runs = with_mlflow(tmp_path / "runs")
    settings = {**TRAINED, "data.root": toy_shards, "scale.workers": 1}
    wanted = [("raylet", "pick"), ("relation actor", "pick"), ("controller", "pick")]
    with chaos(runs, tuple(f"{name}={value}" for name, value in settings.items()), seed=0) as running:
        result = running.disturb("killed", wanted)
        assert wait_until(lambda: not running.busy(), 30), running.busy()
    assert [(kill.victim, kill.went_on) for kill in running.kills] == [
        ("raylet", "by itself"),
        ("relation actor", "by itself"),
        ("controller", "by itself"),
    ]
    assert [kill.repeated for kill in running.kills] == [0, 0, 0]
    assert_same_run(load_state(result["checkpoint"]), learn(toy_config(toy_shards, epochs=5, sampling__steps=40)))
    assert recorded(result) == [1, 2, 3, 4, 5]
    assert wait_until(lambda: not running.left(), 30), running.left()
    assert not [place.name for place in (runs / "tmp").iterdir() if place.name.startswith("gracl-")]

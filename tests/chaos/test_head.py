"""The head of a cluster dies under a run: the driver says so and ends; the same command goes on on another cluster."""

import os
import re
import signal

import pytest

from benchmarks.local_twin import learn
from benchmarks.rehearse_jobs import local_cluster, wait_until
from benchmarks.watched import Driver, children
from gracl.learning.checkpoint import load_state
from tests.chaos.elastic import finished, follow
from tests.chaos.kills import recorded
from tests.local.test_fit import assert_same_run
from tests.toy import TOY, toy_config

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.long
def test_a_run_whose_cluster_loses_its_head_goes_on_on_another_cluster(toy_shards, tmp_path, with_mlflow):
    runs = with_mlflow(tmp_path / "runs")
    settings = {**TOY, "data.root": toy_shards, "scale.workers": 1, "runs": runs, "name": "headless"}
    command = tuple(f"{name}={value}" for name, value in settings.items())
    with local_cluster(nodes=2) as cluster:
        driver = Driver(cluster.driving(), command)
        follow(driver, lambda: driver.done() >= 1, "an epoch")
        seen = [child for raylet in cluster.raylets for child in children(raylet.pid)]
        for child in children(cluster.raylets[0].pid):
            child.kill()
        os.killpg(cluster.raylets[0].pid, signal.SIGKILL)
        assert wait_until(driver.ended, 120), driver.text[-3000:]
        assert driver.process.communicate()[0] == ""
        assert driver.process.returncode == 1
        said = (
            f"TrainingFailed: expected the Ray cluster at {cluster.address} to stay; came .*refused; start it again, .*"
        )
        assert re.search(rf"{said} and resume with name=headless\r?\n$", driver.text), driver.text[-3000:]
    assert wait_until(lambda: not [one for one in seen if one.is_running() and one.status() != "zombie"], 120)
    with local_cluster(nodes=1) as cluster:
        result = finished(Driver(cluster.driving(), command))
    assert_same_run(load_state(result["checkpoint"]), learn(toy_config(toy_shards)))
    assert recorded(result) == [1, 2, 3]

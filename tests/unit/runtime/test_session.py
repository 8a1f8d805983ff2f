import os
import signal
import socket
import sys
import threading
import time

import pytest
import ray

from gracl.errors import ConfigError
from gracl.runtime import session as sessions
from gracl.runtime.session import Demand, interruptible, quieten, session, unreachable

DEMAND = Demand(cpus=2.5, gpus=1.0, parts="2 workers and more")


@pytest.fixture
def environment(monkeypatch):
    """The environment as it is, and as it was again afterwards."""
    for name in list(os.environ):
        if name.startswith("RAY_"):
            monkeypatch.delenv(name)
    before = dict(os.environ)
    yield monkeypatch
    for name in set(os.environ) - set(before):
        if name.startswith("RAY_"):
            del os.environ[name]


@pytest.fixture
def calls(environment):
    """A Ray that only notes what is asked of it, with 3 CPUs and a GPU."""
    noted = []
    environment.setattr(sessions, "unreachable", lambda address: None)
    environment.setattr(ray, "is_initialized", lambda: False)
    environment.setattr(ray, "init", lambda **options: noted.append(("init", options)))
    environment.setattr(ray, "shutdown", lambda: noted.append(("shutdown", {})))
    environment.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0, "GPU": 1.0, "memory": 1e9})
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}}]
    environment.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}])
    return noted


def test_quieten_sets_what_is_not_set_and_leaves_what_is(environment):
    environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    quieten()
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] == "1"


@pytest.mark.parametrize(("elastic", "seconds"), [(False, "300"), (True, "90")])
def test_an_elastic_run_waits_less_for_a_group_that_does_not_come_about(environment, elastic, seconds):
    quieten(elastic=elastic)
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == seconds


def test_a_cluster_of_our_own_has_room_for_all_workers_of_an_elastic_run(calls):
    with pytest.raises(ConfigError), session(Demand(cpus=2.0, gpus=0.0, parts="", elastic=(1, 40, 1.0, 0.0))):
        pytest.fail("the Ray of this test stays as small as it is")
    assert calls[0][1]["num_cpus"] == max(os.cpu_count() or 1, 42)


def test_workers_that_ray_would_begin_without_room_for_the_others_are_refused(calls):
    """Nodes of 2 and 1 CPUs: Ray begins three workers of one CPU each, and nothing is left for the relation actor."""
    sessions._check(Demand(cpus=2.0, gpus=0.0, parts="", elastic=(1, 2, 1.0, 0.0)))
    with pytest.raises(ConfigError, match=r"4 CPUs and 0 GPUs: Ray will begin 3 workers .*; came a cluster with 3"):
        sessions._check(Demand(cpus=2.0, gpus=0.0, parts="", elastic=(1, 8, 1.0, 0.0)))


def test_a_cluster_of_our_own_is_as_large_as_the_run_and_ends_with_it(calls):
    with session(DEMAND):
        assert [name for name, _ in calls] == ["init"]
    assert [name for name, _ in calls] == ["init", "shutdown"]
    options = calls[0][1]
    assert options["num_cpus"] == max(os.cpu_count() or 1, 3)
    assert options["address"] == "local", "a cluster that somebody else began is not ours"
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


METRICS, TASKS = "RAY_enable_metrics_collection", "RAY_task_events_max_num_task_in_gcs"


def test_a_cluster_of_our_own_keeps_no_metrics_of_the_data_sets_that_ran(calls, environment):
    at_init = []
    environment.setattr(ray, "init", lambda **options: at_init.append((os.environ[METRICS], os.environ[TASKS])))
    with session(DEMAND):
        assert at_init == [("0", "10000")]


WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


def test_a_cluster_of_our_own_has_nobody_who_asks_whether_its_node_is_taken_away(calls, environment):
    environment.delenv(WATCHER, raising=False)
    at_init = []
    environment.setattr(ray, "init", lambda **options: at_init.append(os.environ[WATCHER]))
    with session(DEMAND):
        assert at_init == ["0"]
    assert WATCHER not in os.environ, "a cluster that is joined later may need it"


def test_whoever_wants_the_watcher_has_it(calls, environment):
    environment.setenv(WATCHER, "1")
    with session(DEMAND):
        assert os.environ[WATCHER] == "1"
    assert os.environ[WATCHER] == "1"


def test_a_cluster_of_somebody_else_is_watched(calls, environment):
    environment.delenv(WATCHER, raising=False)
    environment.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with session(DEMAND):
        assert WATCHER not in os.environ


def test_whoever_wants_metrics_of_a_cluster_of_our_own_has_them(calls, environment):
    environment.setenv(METRICS, "1")
    with session(DEMAND):
        assert os.environ[METRICS] == "1"


def test_on_a_cluster_of_somebody_else_metrics_are_his_to_set(calls, environment):
    environment.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with session(DEMAND):
        assert METRICS not in os.environ
        assert TASKS not in os.environ


def test_a_cluster_of_our_own_ends_when_the_verb_fails(calls):
    with pytest.raises(KeyError), session(DEMAND):
        raise KeyError
    assert calls[-1] == ("shutdown", {})


def test_the_cluster_of_ray_address_is_joined(calls, environment):
    environment.setenv("RAY_ADDRESS", "somewhere:6379")
    with session(DEMAND):
        assert "num_cpus" not in calls[0][1]
    assert calls[-1] == ("shutdown", {})
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "localhost:{}"])
def test_somebody_who_listens_is_reachable_and_nobody_is_not(address):
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = address.format(server.getsockname()[1])
        assert unreachable(place) is None
    assert "refused" in unreachable(place, seconds=0.1)


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:1", "127.0.0.1", "fe80::1", ""])
def test_other_forms_of_address_are_left_to_ray(address):
    assert unreachable(address) is None


def test_an_address_of_six_stands_in_brackets(environment):
    asked = []

    def refuses(place, timeout):
        asked.append(place)
        raise TimeoutError("timed out")

    environment.setattr(socket, "create_connection", refuses)
    assert unreachable("[::1]:6379") == "timed out"
    assert asked == [("::1", 6379)]


def test_a_name_that_is_none_is_not_tried_again():
    begun = time.monotonic()
    assert unreachable("no-such-host.invalid:6379", seconds=60.0)
    assert unreachable("a..b:6379", seconds=60.0)
    assert time.monotonic() - begun < 30


def test_a_cluster_where_nobody_answers_is_refused_before_ray_tries_for_minutes(calls, environment):
    environment.setenv("RAY_ADDRESS", "127.0.0.1:9")
    environment.setattr(sessions, "unreachable", lambda address: f"{address} refused")
    with pytest.raises(ConfigError, match="RAY_ADDRESS=127.0.0.1:9; came 127.0.0.1:9 refused; start"), session(DEMAND):
        pytest.fail("nobody is there")
    assert calls == []


def test_a_ray_that_runs_already_is_used_and_left_running(calls, environment):
    environment.setattr(ray, "is_initialized", lambda: True)
    with session(DEMAND):
        pass
    assert calls == []
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


@pytest.mark.parametrize("short", [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 3.0}, {}])
def test_a_cluster_that_is_too_small_is_refused_with_both_sums(calls, environment, short):
    environment.setattr(ray, "cluster_resources", lambda: short)
    has = rf"one with {short.get('CPU', 0):g} CPUs and {short.get('GPU', 0):g} GPUs"
    with (
        pytest.raises(ConfigError, match=r"2\.5 CPUs and 1 GPUs \(2 workers and more\); came " + has),
        session(DEMAND),
    ):
        pytest.fail("the block is not meant to begin")
    assert calls[-1] == ("shutdown", {})


def test_a_cluster_that_grows_is_not_refused(calls, environment):
    environment.setattr(ray, "cluster_resources", lambda: {})
    with session(Demand(cpus=8.0, gpus=8.0, parts="many", waits=True)):
        calls.append(("block", {}))
    assert [name for name, _ in calls] == ["init", "block", "shutdown"]


def test_a_cluster_that_just_suffices_is_taken(calls):
    sessions._check(Demand(cpus=3.0, gpus=1.0, parts=""))
    with pytest.raises(ConfigError):
        sessions._check(Demand(cpus=3.1, gpus=1.0, parts=""))


def test_a_part_that_fits_on_no_node_is_refused(calls):
    sessions._check(Demand(cpus=3.0, gpus=1.0, parts="", largest=(1.0, 1.0)))
    for largest in ((1.0, 2.0), (0.0, 2.5), (2.0, 0.0)):
        with pytest.raises(ConfigError, match=r"for the largest part of the run; came nodes with 2 and 0, 1 and 1;"):
            sessions._check(Demand(cpus=3.0, gpus=1.0, parts="", largest=largest))


def test_what_ray_train_makes_of_ctrl_c_is_an_interrupt_again():
    before = signal.getsignal(signal.SIGINT)

    def fit():
        signal.signal(signal.SIGINT, lambda number, frame: sys.exit(0))
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        fit()
    assert isinstance(caught.value.__cause__, SystemExit)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_endings_pass_and_the_handler_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ConfigError), interruptible():
        raise ConfigError("as it is")


def test_in_a_thread_it_does_nothing():
    ended = []

    def work():
        with interruptible():
            pass
        ended.append("well")  # setting a handler here would raise ValueError

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == ["well"]

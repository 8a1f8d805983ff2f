import logging
import threading
import time

import pytest

from benchmarks.rehearse_jobs import wait_until
from gracl.runtime.nodes import CPUMonitor, NodeMonitor

CPU, MEMORY = "system/node3/cpu_utilization_percentage", "system/node3/system_memory_usage_percentage"


class Counting:
    def __init__(self) -> None:
        self.values: list[float] = []
        self.next = 0

    def collect_metrics(self) -> None:
        self.next += 1
        self.values.append(self.next)

    def aggregate_metrics(self) -> dict[str, float]:
        return {"count": sum(self.values) / len(self.values)}

    def clear_metrics(self) -> None:
        self.values.clear()


def test_a_node_says_how_busy_it_was_under_its_name():
    monitor = NodeMonitor("node3", every=0.01)
    seen = monitor.taken()
    assert {CPU, MEMORY, "system/node3/system_memory_usage_megabytes"} <= set(seen)
    assert 0 <= seen[CPU] <= 100
    assert 0 < seen[MEMORY] <= 100


def test_processors_and_memory_have_the_names_and_figures_of_mlflows_own_monitor():
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor as Theirs

    found = []
    for monitor in (CPUMonitor(), Theirs()):
        monitor.collect_metrics()
        monitor.collect_metrics()
        found.append(monitor.aggregate_metrics())
        monitor.clear_metrics()
        assert not monitor.metrics
    ours, theirs = found
    assert list(ours) == list(theirs)
    for name in list(ours)[1:]:  # of memory: what a processor did between two looks is another thing each time
        assert ours[name] == pytest.approx(theirs[name], rel=0.05)


def test_a_busy_node_is_not_called_idle_from_the_first_look_on():
    monitor = NodeMonitor("node3", every=1000.0)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    assert monitor.taken()[CPU] > 0


def test_what_cannot_be_asked_is_said_once_and_left_out(caplog):
    class Lost(Counting):
        def collect_metrics(self) -> None:
            raise OSError("the card fell off the bus")

    monitor = NodeMonitor("node3", every=1000.0)
    monitor._monitors = [Lost(), Counting()]
    with caplog.at_level(logging.ERROR, logger="gracl.nodes"):
        assert monitor.taken() == {"system/node3/count": 1.0}
        assert monitor.taken() == {"system/node3/count": 2.0}
    assert [record.getMessage() for record in caplog.records] == ["Lost cannot be asked on node3 and is left out"]


def test_what_is_told_is_the_mean_since_it_was_told_last():
    monitor = NodeMonitor("node3", every=1000.0)
    counting = Counting()
    monitor._monitors = [counting]
    assert monitor.taken() == {"system/node3/count": 1.0}
    counting.collect_metrics()
    assert monitor.taken() == {"system/node3/count": 2.5}


def test_its_thread_looks_by_itself_and_keeps_no_process_from_ending():
    before = set(threading.enumerate())
    monitor = NodeMonitor("node0", every=0.01)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    cpu = monitor._monitors[0]
    assert wait_until(lambda: len(cpu.metrics["cpu_utilization_percentage"]) >= 3, 10)

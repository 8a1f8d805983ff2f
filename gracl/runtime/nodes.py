"""What a node's processors and memory do while it trains, for MLflow's page of system metrics.

It watches and never fails a training: what cannot be asked is said once and left out. Cards are asked by MLflow's own
monitor; where there are none MLflow is not loaded, which takes a rank a second.
"""

import logging
import threading
from collections import defaultdict
from typing import Protocol, runtime_checkable

import psutil

LOG = logging.getLogger("gracl.nodes")
# The name under which an epoch's figures of nodes are reported.
SYSTEM = "system"


@runtime_checkable
class Monitor(Protocol):
    """What MLflow's monitors can do."""

    def collect_metrics(self) -> None:
        """Looks."""
        ...

    def aggregate_metrics(self) -> dict[str, float]:
        """The mean of what was seen, by name."""
        ...

    def clear_metrics(self) -> None:
        """Forgets it."""
        ...


class CPUMonitor:
    """How busy processors and memory are, under the names that MLflow's own monitor has for it."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = defaultdict(list)

    def collect_metrics(self) -> None:
        """Looks; what processors did is counted from the look before in the same thread."""
        memory = psutil.virtual_memory()
        self.metrics["cpu_utilization_percentage"].append(psutil.cpu_percent())
        self.metrics["system_memory_usage_megabytes"].append(memory.used / 1e6)
        self.metrics["system_memory_usage_percentage"].append(memory.used / memory.total * 100)

    def aggregate_metrics(self) -> dict[str, float]:
        """The means, to a tenth."""
        return {name: round(sum(values) / len(values), 1) for name, values in self.metrics.items()}

    def clear_metrics(self) -> None:
        """Forgets all looks."""
        self.metrics.clear()


class NodeMonitor:
    """Looks at a node again and again from a thread; one for each node.

    Args:
        name: of the node among the figures' names.
        every: seconds from look to look.
    """

    def __init__(self, name: str, *, every: float = 5.0) -> None:
        self._name, self._every = name, every
        self._monitors: list[Monitor] = [CPUMonitor(), *_gpus()]
        self._lock = threading.Lock()
        self._look()  # what processors did is counted from the look before, in each thread by itself
        self._forget()
        threading.Thread(target=self._watch, name="node-monitor", daemon=True).start()

    def taken(self) -> dict[str, float]:
        """The means since the last call, such as `system/node0/cpu_utilization_percentage`; MLflow's own names."""
        with self._lock:
            self._look()
            found = {
                f"system/{self._name}/{name}": float(value)
                for monitor in self._monitors
                for name, value in monitor.aggregate_metrics().items()
            }
            self._forget()
        return found

    def _look(self) -> None:
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
            except Exception:  # of the driver of a card, whatever it is
                LOG.exception("%s cannot be asked on %s and is left out", type(monitor).__name__, self._name)
                self._monitors.remove(monitor)

    def _forget(self) -> None:
        for monitor in self._monitors:
            monitor.clear_metrics()

    def _watch(self) -> None:
        CPUMonitor().collect_metrics()  # as above, for this thread
        pause = threading.Event()
        while not pause.wait(self._every):
            with self._lock:
                self._look()


def _gpus() -> list[Monitor]:
    """The GPUs of this node; none where there is no card, or no nvidia-ml-py to ask it with."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return []
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

        return [GPUMonitor()]
    except Exception:  # a card that is there and cannot be asked
        LOG.exception("the GPUs of this node cannot be asked what they do")
        return []

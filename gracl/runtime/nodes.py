"""What a node's processors and memory do while it trains, for MLflow's page of system metrics."""

import threading

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor


class NodeMonitor:
    """Looks at a node again and again from a thread; one for each node.

    Args:
        name: of the node among the figures' names.
        every: seconds from look to look.
    """

    def __init__(self, name: str, *, every: float = 5.0) -> None:
        self._name, self._every = name, every
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), *_gpus()]
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="node-monitor", daemon=True).start()

    def taken(self) -> dict[str, float]:
        """The means since the last call, such as `system/node0/cpu_utilization_percentage`; MLflow's own names."""
        with self._lock:
            for monitor in self._monitors:
                monitor.collect_metrics()
            found = {
                f"system/{self._name}/{name}": float(value)
                for monitor in self._monitors
                for name, value in monitor.aggregate_metrics().items()
            }
            for monitor in self._monitors:
                monitor.clear_metrics()
        return found

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._every):
            with self._lock:
                for monitor in self._monitors:
                    monitor.collect_metrics()


def _gpus() -> list[BaseMetricsMonitor]:
    """The GPUs of this node; none where there is no card, or no nvidia-ml-py to ask it with."""
    try:
        return [GPUMonitor()]
    except (ImportError, RuntimeError):
        return []

"""What a node's processors and memory do while it trains, for MLflow's page of system metrics.

It watches and never fails a training: what cannot be asked is said once and left out.
"""

import logging
import threading

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

LOG = logging.getLogger("gracl.nodes")


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


def _gpus() -> list[BaseMetricsMonitor]:
    """The GPUs of this node; none where there is no card, or no nvidia-ml-py to ask it with."""
    try:
        return [GPUMonitor()]
    except (ImportError, RuntimeError):
        return []
    except Exception:  # a card that is there and cannot be asked
        LOG.exception("the GPUs of this node cannot be asked what they do")
        return []

"""Writes to MLflow that wait for a server which is away, and hold up nobody."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

LOG = logging.getLogger("gracl.tracking")

Write = Callable[[MlflowClient], Any]


def client_of(uri: str) -> MlflowClient:
    """MLflow's client; by itself it asks a server that is away for four minutes, and trying again is our business."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    return MlflowClient(uri)


def is_refusal(error: Exception) -> bool:
    """Whether a server answered and will not take it, however often it is asked."""
    if not isinstance(error, MlflowException):
        return False
    code = error.get_http_status_code()
    return 400 <= code < 500 and code not in (408, 429)


@dataclass
class _Kept:
    write: Write
    what: str
    taken: threading.Event = field(default_factory=threading.Event)


class Buffer:
    """Writes in order, from a thread of its own; each is tried again until MLflow takes it, or refuses it for good.

    What is still kept when the process ends is lost, so whoever can must look at the end what MLflow lacks.

    Args:
        uri: of MLflow.
        patience: seconds that `put` waits for MLflow, so that with one that answers nothing is pending.
        pause: seconds to the second try; twice as many to each later one, a minute at most.
    """

    def __init__(self, uri: str, *, patience: float = 5.0, pause: float = 2.0) -> None:
        self._uri, self._patience, self._pause = uri, patience, pause
        self._kept = SimpleQueue[_Kept]()
        self._last: _Kept | None = None
        threading.Thread(target=self._work, name="mlflow-writes", daemon=True).start()

    def put(self, write: Write, what: str) -> None:
        """Keeps a write; back when it is done, or after `patience`, at once behind others that wait already."""
        behind = self._last is not None and not self._last.taken.is_set()
        self._last = _Kept(write, what)
        self._kept.put(self._last)
        self._last.taken.wait(0 if behind else self._patience)

    def _work(self) -> None:
        while True:
            kept, tries = self._kept.get(), 0
            while not self._written(kept, tries):
                time.sleep(min(self._pause * 2**tries, 60))
                tries += 1
            if tries:
                LOG.warning("MLflow at %s took %s at try %d", self._uri, kept.what, tries + 1)
            kept.taken.set()

    def _written(self, kept: _Kept, tries: int) -> bool:
        try:
            kept.write(client_of(self._uri))
        except Exception as error:  # a server that is away, busy, or full: whatever it is, training goes on
            if is_refusal(error):
                LOG.exception("MLflow at %s refuses %s; the run's folder holds it", self._uri, kept.what)
                return True
            if tries:
                LOG.warning("MLflow at %s still does not take %s: %s", self._uri, kept.what, error)
            else:
                LOG.exception("MLflow at %s did not take %s; it is kept and tried again", self._uri, kept.what)
            return False
        return True

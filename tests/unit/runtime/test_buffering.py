import logging
import threading
import time

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from benchmarks.rehearse_jobs import wait_until
from gracl.runtime.buffering import Buffer


class Server:
    """Takes what is written once it is there; counts how often it was asked."""

    def __init__(self, *, there: bool) -> None:
        self.there, self.asked, self.taken = there, 0, list[str]()
        self.all_taken = threading.Event()

    def writing(self, what: str, last: bool = False):
        def write(client: object) -> None:
            self.asked += 1
            if not self.there:
                raise ConnectionError("away")
            self.taken.append(what)
            if last:
                self.all_taken.set()

        return write


URI = "http://127.0.0.1:9"  # nobody asks there: the writes of these tests do not


def test_what_a_server_refuses_for_good_is_said_and_holds_nothing_up(caplog):
    def refused(client: object) -> None:
        raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)

    server, buffer = Server(there=True), Buffer(URI, pause=60.0)
    with caplog.at_level(logging.WARNING, logger="gracl.tracking"):
        buffer.put(refused, "the figures of epoch 1")
        buffer.put(server.writing("two"), "two")
    assert server.taken == ["two"]
    assert [record.getMessage() for record in caplog.records] == [
        f"MLflow at {URI} refuses the figures of epoch 1; the run's folder holds it"
    ]


def test_with_a_server_that_answers_a_write_is_done_on_return():
    server, buffer = Server(there=True), Buffer(URI)
    for what in ("one", "two", "three"):
        buffer.put(server.writing(what), what)
        assert server.taken[-1] == what


def test_what_a_server_did_not_take_while_it_was_away_it_gets_in_order_and_once(caplog):
    server, buffer = Server(there=False), Buffer(URI, patience=0.05, pause=0.01)
    names = [str(number) for number in range(5)]
    with caplog.at_level(logging.WARNING, logger="gracl.tracking"):
        for name in names:
            buffer.put(server.writing(name, last=name == names[-1]), f"number {name}")
            assert wait_until(lambda: server.asked > 0, 10)
        assert server.taken == []
        server.there = True
        assert server.all_taken.wait(10)
    assert server.taken == names
    assert server.asked > len(names)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [f"MLflow at {URI} did not take number 0; it is kept and tried again"]


def test_behind_a_write_that_waits_nobody_waits():
    server, buffer = Server(there=False), Buffer(URI, patience=0.2, pause=60.0)
    buffer.put(server.writing("first"), "first")
    assert wait_until(lambda: server.asked > 0, 10)
    begun = time.monotonic()
    for _ in range(100):
        buffer.put(server.writing("later"), "later")
    assert time.monotonic() - begun < 100 * 0.2 / 2  # half of what it would be if each waited
    assert server.asked == 1

"""Whole epochs with doll ports, and the relation that goes on while an epoch trains."""

import threading
import time

import pytest
import torch

from gracl.errors import ClusteringCollapsed
from gracl.learning.checkpoint import TrainState, load_state, save_state
from gracl.learning.epoch_report import PHASES
from gracl.learning.fit import Splits
from gracl.types import (
    EpochReport,
)
from tests.dolls import Dolls, hand_in_hand, labels_of


def test_each_epoch_scans_relates_plans_and_trains():
    dolls = Dolls()
    state = dolls.fit(epochs=2, splits=Splits("train", "query", "gallery"), eval_every=1)
    judged = ["scan query", "scan gallery"]
    assert dolls.calls == [
        *[*judged, "judge 0"],
        *["scan train", "relate 0", "train 0", *judged, "judge 1"],
        *["scan train", "relate 1", "train 1", *judged, "judge 2"],
    ]
    assert {thread.name for thread in dolls.threads} == {threading.current_thread().name}
    assert [labels.tolist() for labels in dolls.planned] == [labels_of(0).tolist(), labels_of(1).tolist()]
    assert dolls.figures("cluster/label_age") == [0, 0]
    assert state.assignment is None


def test_stability_is_looked_at_before_the_training_and_at_the_last_epoch():
    dolls, plain = Dolls(), Dolls()
    state = dolls.fit(epochs=3, eval_stability=2)
    assert dolls.calls == [
        *["scan train", "relate 0", "train 0"],
        *["scan train", "relate 1", "again 1", "stability 1", "train 1"],
        *["scan train", "relate 2", "again 2", "stability 2", "train 2"],
    ]
    assert [row.get("cluster/stability") for row in state.history] == [None, 0.1, 0.2]
    for name, weight in plain.fit(epochs=3).model.items():
        torch.testing.assert_close(state.model[name], weight, rtol=0, atol=0)


def test_overlapped_an_epoch_trains_on_the_scan_before_it_while_its_own_is_related():
    dolls = hand_in_hand(4)
    state = dolls.fit(overlap=True, splits=Splits("train", "query", "gallery"), eval_every=1, eval_untrained=False)
    judged = ["scan query", "scan gallery"]
    assert dolls.calls == [
        *["scan train", "relate 0", "train 0", *judged, "judge 1"],
        *["scan train", "train 1", "relate 1", *judged, "judge 2"],
        *["scan train", "train 2", "relate 2", *judged, "judge 3"],
        *["train 3", *judged, "judge 4"],
    ]
    learnt = [0, 0, 1, 2]
    assert [labels.tolist() for labels in dolls.planned] == [labels_of(scan).tolist() for scan in learnt]
    assert dolls.figures("cluster/scanned") == learnt
    assert dolls.figures("cluster/label_age") == [0, 1, 1, 1]
    assert len(set(dolls.figures("check/labels"))) == 3
    assert [kept.assignment and kept.assignment.epoch for kept in dolls.states] == [0, 1, 2, None]
    assert state.assignment is None


def test_the_clock_shows_the_waiting_for_labels_and_zero_for_what_was_not_done():
    trained = threading.Semaphore(0)

    def relating(epoch: int) -> None:
        for _ in range(2 * epoch):  # until epoch 1 has trained too
            assert trained.acquire(timeout=30)
        time.sleep(0.3)

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "train":
            trained.release()

    dolls = Dolls(relating=relating)
    dolls.fit(overlap=True, epochs=3, progress=progress)
    waited = dolls.figures("time/relate_s")
    assert waited[0] >= 0.3
    assert waited[1] > 0.1
    assert waited[2] < 0.1
    assert dolls.figures("time/scan_s")[2] == 0
    for report in dolls.reports:
        phases = [report.seconds[phase] for phase in PHASES if phase != "epoch"]
        assert sum(phases) == pytest.approx(report.seconds["epoch"])


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_overlapped_a_run_that_is_stopped_goes_on_as_if_unbroken(tmp_path, stop):
    class Stopped(Exception):
        pass

    unbroken, dolls, rest = Dolls(), Dolls(), Dolls()
    wanted = unbroken.fit(overlap=True)

    def keep(report: EpochReport, state: TrainState) -> None:
        save_state(state, tmp_path)
        if state.epoch == stop:
            raise Stopped

    dolls.report = keep
    with pytest.raises(Stopped):
        dolls.fit(overlap=True)
    state = rest.fit(load_state(tmp_path), overlap=True)
    for name, tensor in wanted.model.items():
        assert torch.equal(tensor, state.model[name]), name
    assert [row["train/loss"] for row in state.history] == unbroken.figures("train/loss")
    assert [row["check/labels"] for row in state.history] == unbroken.figures("check/labels")


def test_a_run_that_was_done_relates_first_when_it_is_made_longer():
    dolls = Dolls()
    done = dolls.fit(overlap=True, epochs=2)
    dolls.calls.clear()
    dolls.fit(done, overlap=True, epochs=4)
    assert dolls.calls[:3] == ["scan train", "relate 2", "train 2"]
    assert dolls.figures("cluster/label_age") == [0, 1, 0, 1]
    assert dolls.figures("cluster/scanned") == [0, 0, 2, 2]


def test_without_overlap_labels_of_the_epoch_before_are_left_alone():
    dolls = Dolls()
    dolls.fit(overlap=True, epochs=3)
    assert dolls.states[1].assignment
    state = dolls.fit(dolls.states[1], epochs=3)
    assert dolls.reports[-1].stats["label_age"] == 0
    assert state.assignment is None


def test_what_the_relator_refuses_while_an_epoch_trains_ends_the_run():
    def refuse(epoch: int) -> None:
        if epoch == 1:
            raise ClusteringCollapsed("one cluster")

    dolls = Dolls(relating=refuse)
    with pytest.raises(ClusteringCollapsed, match="one cluster"):
        dolls.fit(overlap=True)
    assert [state.epoch for state in dolls.states] == [1]
    assert dolls.calls[-1] == "train 1"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_training_does_not_wait_for_the_relation(error):
    asked, release = threading.Event(), threading.Event()

    def relating(epoch: int) -> None:
        if epoch == 1:
            asked.set()
            assert release.wait(30)

    def training(epoch: int) -> None:
        if epoch == 1:
            assert asked.wait(30)
            raise error("in the training")

    dolls = Dolls(training=training, relating=relating)
    with pytest.raises(error, match="in the training"):
        dolls.fit(overlap=True)
    worker = dolls.threads[1]
    assert worker.is_alive()
    release.set()
    worker.join(10)
    assert not worker.is_alive()


def test_how_many_threads_torch_has_is_a_matter_of_the_thread_that_asks():
    """The search sets it in the thread of the relation; the training beside it must keep its own, and its rounding."""
    before, inside, done = torch.get_num_threads(), threading.Event(), threading.Event()

    def work() -> None:
        torch.set_num_threads(before + 1)
        inside.set()
        done.wait(30)
        torch.set_num_threads(before)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(30)
    during = torch.get_num_threads()
    done.set()
    thread.join()
    assert during == torch.get_num_threads() == before

"""The clock of an epoch: how long the network waited for its pictures."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from gracl.learning.epoch_report import Clock
from gracl.local import OneRank
from gracl.types import Batch, Plan
from tests.dolls import Dolls


class Hands:
    """What stands for the machine's clock: it goes on when somebody is busy."""

    def __init__(self) -> None:
        self.now = 100.0

    def work(self, seconds: float) -> None:
        self.now += seconds

    def batches(self, closed: list[str]) -> Iterator[Batch]:
        """Three: the first comes late, the others at once, and the last takes a while to end."""
        try:
            for number in range(3):
                self.work(8.0 if number == 0 else 0.5)
                yield Batch(number, 0, np.arange(2), np.zeros((2, 4, 4, 3), np.uint8), decoding_s=1.5)
            self.work(2.0)
        finally:
            closed.append("closed")


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    made = Hands()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


def test_only_the_waiting_counts_and_the_first_wait_apart(hands):
    clock = Clock()
    for _ in clock.fed("train", hands.batches([])):
        hands.work(30.0)  # the network's own
    assert clock.seconds["train_wait"] == 8.0 + 0.5 + 0.5 + 2.0
    assert clock.seconds["train_first"] == 8.0
    assert clock.seconds["train_decode"] == 4.5
    assert clock.seconds["scan_wait"] == clock.seconds["scan_decode"] == clock.seconds["train"] == 0.0
    clock.lap("train")
    assert clock.seconds["train"] == clock.seconds["epoch"] == 3 * 30.0 + 11.0


def test_a_scan_has_its_own_and_nobody_asks_for_its_first(hands):
    clock = Clock()
    assert len(list(clock.fed("scan", hands.batches([])))) == 3
    assert clock.seconds["scan_wait"] == 11.0
    assert clock.seconds["train_wait"] == 0.0
    assert "scan_first" not in clock.seconds


def test_letting_go_lets_go_of_the_batches(hands):
    closed: list[str] = []
    fed = Clock().fed("train", hands.batches(closed))
    next(fed)
    assert closed == []
    del fed
    assert closed == ["closed"]


def test_shared_is_the_mean_over_the_ranks_of_the_feeding_alone(hands):
    clock = Clock()
    clock.seconds |= {"train_wait": 2.0, "scan_decode": 6.0, "train": 9.0}
    clock.share(lambda mine: mine / 2, torch.device("cpu"))  # of two ranks, the other of which waited for nothing
    assert clock.seconds["train_wait"] == 1.0
    assert clock.seconds["scan_decode"] == 3.0
    assert clock.seconds["train"] == 9.0


def test_an_epoch_that_is_taken_up_goes_on_counting(hands):
    clock = Clock()
    clock.take_up({"train": 3.0, "train_wait": 2.0, "epoch": 5.0})
    list(clock.fed("train", hands.batches([])))
    assert clock.seconds["train_wait"] == 2.0 + 11.0


class Fed(Dolls):
    """Dolls whose pictures took their time."""

    def scan(self, split: str) -> Iterator[Batch]:
        return (replace(batch, decoding_s=3.0) for batch in super().scan(split))

    def picks(self, plan: Plan, first: int = 0) -> Iterator[Batch]:
        return (replace(batch, decoding_s=5.0) for batch in super().picks(plan, first))

    def again(self, epoch: int) -> Iterator[Batch]:
        return (replace(batch, decoding_s=7.0) for batch in super().again(epoch))


def test_an_epoch_counts_scan_both_looks_and_training():
    dolls = Fed()
    dolls.fit(epochs=2, eval_stability=2)
    assert dolls.figures("time/scan_decode_s") == [3.0, 10.0]
    assert dolls.figures("time/train_decode_s") == [5.0, 5.0]
    for waited, first, trained in zip(
        *(dolls.figures(f"time/train{part}_s") for part in ("_wait", "_first", "")), strict=True
    ):
        assert 0 < first <= waited <= trained


def test_an_epoch_says_the_mean_over_the_ranks(monkeypatch):
    monkeypatch.setattr(OneRank, "average", lambda self, values: values / 2)  # the other of two did nothing
    dolls = Fed()
    dolls.fit(epochs=1)
    assert dolls.figures("time/scan_decode_s") == [1.5]
    assert dolls.figures("time/train_decode_s") == [2.5]

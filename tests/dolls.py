"""Small stand-ins for `learning.fit`: an encoder, an assignment, and ports that hold no images and no Ray."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gracl.learning.checkpoint import TrainState
from gracl.learning.encoder import Encoder
from gracl.learning.fit import Splits, fit
from gracl.learning.losses import ProxyContrast
from gracl.learning.optim import build_optimizer
from gracl.local import OneRank
from gracl.types import (
    Assignment,
    Batch,
    EpochReport,
    FeatureTable,
    Plan,
    Proxies,
    RetrievalReport,
)


def pixels(rows: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 8, 4, 3), dtype=np.uint8)


def small_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        torch.nn.Conv2d(3, 5, 3), torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), width=5
    )


def assignment(labels: np.ndarray, dim: int = 5) -> Assignment:
    rows = np.eye(labels.max() + 1, dim, dtype=np.float32)
    images = np.array([int(np.flatnonzero(labels == label)[0]) for label in range(labels.max() + 1)])
    return Assignment(0, labels, Proxies(rows, rows.copy(), images, images, rows.copy()))


def quiet(phase: str, done: int, total: int) -> None:
    """Says nothing."""


IMAGES = 8


def labels_of(epoch: int) -> np.ndarray:
    """What the doll relator answers to the scan of an epoch: other labels each time."""
    return np.roll(np.repeat(np.arange(2), IMAGES // 2), epoch)


class Dolls:
    """Ports that write down who was called, and run a hook in each training and in each relation."""

    def __init__(self, *, training: Callable[[int], object] = int, relating: Callable[[int], object] = int) -> None:
        self.calls: list[str] = []
        self.reports: list[EpochReport] = []
        self.states: list[TrainState] = []
        self.planned: list[np.ndarray] = []
        self.previous: list[np.ndarray | None] = []
        self.threads: list[threading.Thread] = []
        self._training, self._relating = training, relating

    def images(self, split: str) -> int:
        return IMAGES

    def scan(self, split: str) -> Iterator[Batch]:
        self.calls.append(f"scan {split}")
        yield Batch(0, 0, np.arange(IMAGES), pixels(IMAGES))

    def picks(self, plan: Plan, first: int = 0) -> Iterator[Batch]:
        self.calls.append(f"train {plan.epoch}")
        self._training(plan.epoch)
        yield Batch(0, plan.epoch, plan.tickets[0], pixels(IMAGES, seed=plan.epoch))

    def again(self, epoch: int) -> Iterator[Batch]:
        self.calls.append(f"again {epoch}")
        yield Batch(0, epoch, np.arange(IMAGES), pixels(IMAGES, seed=epoch))

    def stability(self, epoch: int, part: FeatureTable, labels: np.ndarray) -> float:
        self.calls.append(f"stability {epoch}")
        np.testing.assert_array_equal(labels, labels_of(epoch))
        return epoch / 10

    def relate(self, epoch: int, part: FeatureTable, previous: np.ndarray | None = None) -> Assignment:
        self.previous.append(previous)
        self.threads.append(threading.current_thread())
        self._relating(epoch)
        self.calls.append(f"relate {epoch}")
        return replace(assignment(labels_of(epoch)), epoch=epoch, stats={"scanned": float(epoch)})

    def judge(self, epoch: int, query: FeatureTable, gallery: FeatureTable) -> RetrievalReport:
        self.calls.append(f"judge {epoch}")
        return RetrievalReport(0.5, 0.5, {1: 0.5}, 1, 0, *np.ones((2, 1), np.float32), np.ones(1, bool))

    def plan(self, epoch: int, labels: np.ndarray) -> Plan:
        self.planned.append(labels)
        return Plan(epoch, np.arange(IMAGES)[None])

    def report(self, report: EpochReport, state: TrainState) -> None:
        self.reports.append(report)
        self.states.append(state)

    def fit(self, state: TrainState | None = None, **options: Any) -> TrainState:
        encoder = small_encoder()
        return fit(
            state or TrainState.fresh(encoder, {}, height=8, width=4),
            encoder=encoder,
            criterion=ProxyContrast(),
            optimizer=build_optimizer(encoder.parameters()),
            batches=self,
            relator=self,
            ranks=OneRank(),
            planner=self.plan,
            rate=lambda epoch: 1e-2,
            reporter=self.report,
            **{"splits": Splits(), "epochs": 4, "progress": quiet} | options,
        )

    def figures(self, name: str) -> list[float]:
        return [report.metrics()[name] for report in self.reports]


def hand_in_hand(epochs: int) -> Dolls:
    """Dolls that get past the relation of an epoch only while it trains, and the other way round."""
    meeting = threading.Barrier(2)

    def meet(epoch: int) -> None:
        if 0 < epoch < epochs - 1:
            meeting.wait(30)

    return Dolls(training=meet, relating=meet)

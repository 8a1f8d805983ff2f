"""The epoch with doll ports: no images, no Ray."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gracl.errors import ClusteringCollapsed, NonFiniteLoss
from gracl.learning.checkpoint import TrainState, load_state, save_state
from gracl.learning.encoder import Encoder
from gracl.learning.fit import Splits, autocast, encode, fit, normalise, train_epoch, watched
from gracl.learning.losses import ProxyContrast
from gracl.learning.optim import build_optimizer
from gracl.local import OneRank
from gracl.types import (
    IMAGENET_MEAN,
    IMAGENET_STD,
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


def begin(labels: np.ndarray) -> tuple[Encoder, ProxyContrast, torch.optim.Optimizer]:
    encoder, criterion = small_encoder(), ProxyContrast()
    criterion.begin_epoch(assignment(labels), "cpu")
    return encoder, criterion, build_optimizer(encoder.parameters())


def quiet(phase: str, done: int, total: int) -> None:
    """Says nothing."""


def test_normalise_is_the_formula_and_free_of_copies():
    images = torch.from_numpy(pixels())
    floats = normalise(images)
    wanted = (images.double() / 255 - torch.tensor(IMAGENET_MEAN).double()) / torch.tensor(IMAGENET_STD).double()
    assert torch.allclose(floats.double(), wanted.permute(0, 3, 1, 2), atol=1e-5)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert normalise(images[:0]).shape == (0, 3, 8, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_normalise_on_the_gpu_is_normalise_on_the_cpu():
    images = torch.from_numpy(pixels())
    assert torch.allclose(normalise(images.cuda()).cpu(), normalise(images), atol=1e-6)


def test_encode_keeps_each_index_with_its_feature():
    encoder, pictures = small_encoder(), pixels(6)
    whole = encode(encoder, iter([Batch(0, 0, np.arange(6), pictures)]), nullcontext(), lambda done: None)
    parts = [
        Batch(0, 0, np.array([4, 1]), pictures[[4, 1]]),
        Batch(1, 0, np.array([0, 5, 3, 2]), pictures[[0, 5, 3, 2]]),
    ]
    mixed = encode(encoder, iter(parts), nullcontext(), lambda done: None)
    np.testing.assert_array_equal(mixed.indices, [4, 1, 0, 5, 3, 2])
    np.testing.assert_allclose(mixed.features, whole.features[mixed.indices], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whole.features, axis=1), 1, atol=1e-5)


def test_an_empty_share_gives_an_empty_table():
    table = encode(small_encoder(), iter([]), nullcontext(), lambda done: None)
    assert table.features.shape == (0, 5)


def test_a_training_epoch_moves_weights_and_bank_and_counts_its_steps():
    labels = np.array([0, 0, 1, 1])
    encoder, criterion, optimizer = begin(labels)
    before, bank, seen = encoder.trunk.weight.detach().clone(), criterion.inter.clone(), []
    picks = (Batch(step, 0, np.arange(4), pixels(seed=step)) for step in range(3))
    targets = torch.from_numpy(np.stack([labels] * 3))
    losses = train_epoch(
        encoder, criterion, optimizer, picks, targets, OneRank(), nullcontext(), 0.0, lambda *now: seen.append(now)
    )
    assert seen == [("train", 1, 3), ("train", 2, 3), ("train", 3, 3)]
    assert losses[0] == pytest.approx(float(losses[1] + losses[2]), rel=1e-5)
    assert not torch.equal(encoder.trunk.weight, before)
    assert not torch.equal(criterion.inter, bank)


def test_a_non_finite_loss_stops_before_the_step():
    labels = np.array([0, 0, 1, 1])
    encoder, criterion, optimizer = begin(labels)
    criterion.intra[0] = float("nan")
    before = {name: tensor.clone() for name, tensor in encoder.named_parameters()}
    picks = iter([Batch(0, 7, np.arange(4), pixels())])
    with pytest.raises(NonFiniteLoss, match="epoch 7, step 0"):
        train_epoch(
            encoder, criterion, optimizer, picks, torch.from_numpy(labels[None]), OneRank(), nullcontext(), 0.0, quiet
        )
    for name, tensor in encoder.named_parameters():
        assert torch.equal(tensor, before[name]), name


def test_gradients_are_clipped_to_the_norm_asked_for():
    labels = np.array([0, 0, 1, 1])
    encoder, criterion, _ = begin(labels)
    optimizer = build_optimizer(encoder.parameters(), optimizer="sgd", rate=1.0, weight_decay=0.0)
    before = torch.cat([weight.detach().clone().flatten() for weight in encoder.parameters()])
    picks = iter([Batch(0, 0, np.arange(4), pixels())])
    train_epoch(
        encoder, criterion, optimizer, picks, torch.from_numpy(labels[None]), OneRank(), nullcontext(), 1e-3, quiet
    )
    after = torch.cat([weight.detach().flatten() for weight in encoder.parameters()])
    assert (after - before).norm() <= 1e-3 * 1.01


def test_a_plan_that_is_cut_short_is_our_mistake():
    labels = np.array([0, 0, 1, 1])
    encoder, criterion, optimizer = begin(labels)
    with pytest.raises(RuntimeError, match="2 steps, 1 came"):
        train_epoch(
            encoder,
            criterion,
            optimizer,
            iter([Batch(0, 0, np.arange(4), pixels())]),
            torch.from_numpy(np.stack([labels] * 2)),
            OneRank(),
            nullcontext(),
            0.0,
            quiet,
        )


def test_bfloat16_is_taken_when_asked_for():
    cpu = torch.device("cpu")
    assert isinstance(autocast(cpu, "auto"), nullcontext)
    assert isinstance(autocast(cpu, "float32"), nullcontext)
    assert autocast(cpu, "bfloat16").fast_dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_takes_bfloat16_by_itself():
    gpu = torch.device("cuda")
    assert autocast(gpu, "auto").fast_dtype == torch.bfloat16
    assert isinstance(autocast(gpu, "float32"), nullcontext)


def test_progress_of_one_rank_stands_for_all():
    seen = []
    tell = watched(lambda *now: seen.append(now), "scan", 10, 4)
    tell(2)
    tell(3)
    assert seen == [("scan", 8, 10), ("scan", 10, 10)]


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
        self.threads: list[threading.Thread] = []
        self._training, self._relating = training, relating

    def images(self, split: str) -> int:
        return IMAGES

    def scan(self, split: str) -> Iterator[Batch]:
        self.calls.append(f"scan {split}")
        yield Batch(0, 0, np.arange(IMAGES), pixels(IMAGES))

    def picks(self, plan: Plan) -> Iterator[Batch]:
        self.calls.append(f"train {plan.epoch}")
        self._training(plan.epoch)
        yield Batch(0, plan.epoch, plan.tickets[0], pixels(IMAGES, seed=plan.epoch))

    def relate(self, epoch: int, part: FeatureTable) -> Assignment:
        self.threads.append(threading.current_thread())
        self._relating(epoch)
        self.calls.append(f"relate {epoch}")
        return replace(assignment(labels_of(epoch)), epoch=epoch, stats={"scanned": float(epoch)})

    def judge(self, epoch: int, query: FeatureTable, gallery: FeatureTable) -> RetrievalReport:
        self.calls.append(f"judge {epoch}")
        return RetrievalReport(0.5, {1: 0.5}, 1, 0, np.ones(1, np.float32), np.ones(1, bool))

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
        phases = [seconds for phase, seconds in report.seconds.items() if phase != "epoch"]
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

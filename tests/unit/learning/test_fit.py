"""The epoch with doll ports: no images, no Ray."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from gracl.errors import NonFiniteLoss
from gracl.learning.encoder import Encoder
from gracl.learning.encoding import encode
from gracl.learning.fit import goes_ahead, train_epoch, watched
from gracl.learning.losses import ProxyContrast
from gracl.learning.optim import build_optimizer
from gracl.learning.pixels import normalise
from gracl.learning.sameness import held_tensors
from gracl.learning.teacher import Teacher
from gracl.local import OneRank
from gracl.types import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
)
from tests.dolls import assignment, pixels, quiet, small_encoder


def begin(labels: np.ndarray) -> tuple[Encoder, ProxyContrast, torch.optim.Optimizer]:
    encoder, criterion = small_encoder(), ProxyContrast()
    criterion.begin_epoch(assignment(labels), "cpu")
    return encoder, criterion, build_optimizer(encoder.parameters())


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
    tickets = torch.arange(4).expand(3, 4)
    losses = train_epoch(
        encoder, criterion, optimizer, picks, tickets, OneRank(), nullcontext(), 0.0, lambda *now: seen.append(now)
    )
    assert seen == [("train", 1, 3), ("train", 2, 3), ("train", 3, 3)]
    assert losses.shape == (3, 5)
    torch.testing.assert_close(losses[:, 0], losses[:, 1] + losses[:, 2])
    assert losses[0, 0] != losses[2, 0]
    assert not torch.equal(encoder.trunk.weight, before)
    assert not torch.equal(criterion.inter, bank)


def test_a_non_finite_loss_stops_before_the_step():
    labels = np.array([0, 0, 1, 1])
    encoder, criterion, optimizer = begin(labels)
    criterion.intra[0] = float("nan")
    before = {name: tensor.clone() for name, tensor in encoder.named_parameters()}
    picks = iter([Batch(0, 7, np.arange(4), pixels())])
    with pytest.raises(NonFiniteLoss, match="epoch 7, step 0"):
        train_epoch(encoder, criterion, optimizer, picks, torch.arange(4)[None], OneRank(), nullcontext(), 0.0, quiet)
    for name, tensor in encoder.named_parameters():
        assert torch.equal(tensor, before[name]), name


def test_gradients_are_clipped_to_the_norm_asked_for():
    labels = np.array([0, 0, 1, 1])
    encoder, criterion, _ = begin(labels)
    optimizer = build_optimizer(encoder.parameters(), optimizer="sgd", rate=1.0, weight_decay=0.0)
    before = torch.cat([weight.detach().clone().flatten() for weight in encoder.parameters()])
    picks = iter([Batch(0, 0, np.arange(4), pixels())])
    train_epoch(encoder, criterion, optimizer, picks, torch.arange(4)[None], OneRank(), nullcontext(), 1e-3, quiet)
    after = torch.cat([weight.detach().flatten() for weight in encoder.parameters()])
    assert (after - before).norm() <= 1e-3 * 1.01


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


class Breaks(ProxyContrast):
    """Its loss is none from the call on that it is told."""

    calls, last = 0, 99

    def __call__(self, features, images):
        terms = super().__call__(features, images)
        self.calls += 1
        return replace(terms, loss=terms.loss * (float("nan") if self.calls > self.last else 1))


def learnt(steps: int, *, ahead: bool, optimizer: str, device: str = "cpu", last: int = 99, **options: str):
    """Every number that so many steps leave behind, and the error with which they ended."""
    labels, dice = np.array([0, 0, 1, 1, 2, 2]), np.random.default_rng(5)
    encoder, criterion = small_encoder().to(device), Breaks(**options)
    criterion.last = last
    criterion.begin_epoch(assignment(labels), device)
    trained = build_optimizer(encoder.parameters(), optimizer=optimizer, rate=0.01)
    tickets = np.stack([dice.permutation(6)[:4] for _ in range(steps)])
    picks = (Batch(step, 0, tickets[step], pixels(seed=step)) for step in range(steps))
    teacher, error = Teacher(encoder, 0.9), None
    try:
        losses = train_epoch(
            encoder,
            criterion,
            trained,
            picks,
            torch.from_numpy(tickets),
            OneRank(),
            nullcontext(),
            0.5,
            quiet,
            [partial(teacher.follow, encoder, 0)],
            ahead=ahead,
        )
    except NonFiniteLoss as refused:
        losses, error = torch.zeros(0), str(refused)
    moments = held_tensors(encoder, trained)
    return {"losses": losses, **moments, **criterion.moved(), **encoder.state_dict()}, teacher.encoder, error


@pytest.mark.parametrize("update", ["selected", "every", "mean"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("device", DEVICES)
def test_going_ahead_changes_no_bit(device, optimizer, update, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    options = {"device": device, "optimizer": optimizer, "inter_update": update, "intra_update": update}
    one, other = (learnt(5, ahead=ahead, **options) for ahead in (False, True))
    assert one[2] is other[2] is None
    assert len(one[0]["losses"]) == 5
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name
    for name, tensor in one[1].state_dict().items():
        assert torch.equal(tensor, other[1].state_dict()[name]), name


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("last", [0, 1, 3, 4])
def test_going_ahead_learns_no_step_that_is_none(last, device, optimizer, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    # The first step, before which an optimizer has no moments; one on the way; the last, which no other one finds out.
    options = {"device": device, "optimizer": optimizer, "last": last}
    one, other = (learnt(5, ahead=ahead, **options) for ahead in (False, True))
    assert f"step {last} " in one[2]
    assert other[2] == one[2]
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # of one forward pass more, and never kept
    for name, tensor in one[0].items():
        assert name.endswith(statistics) or torch.equal(tensor, other[0][name]), name


def test_who_goes_ahead_by_himself():
    encoder, cpu, card = small_encoder(), torch.device("cpu"), torch.device("cuda")
    plain = torch.optim.SGD(encoder.parameters(), lr=0.1)
    for kind in ("adam", "sgd"):
        fused = build_optimizer(encoder.parameters(), optimizer=kind)
        assert goes_ahead(card, fused, None)
        assert not goes_ahead(cpu, fused, None)
        assert not goes_ahead(card, fused, lambda rows, steps: None)
    assert not goes_ahead(card, plain, None)


def test_what_cannot_be_done_ahead_is_refused():
    encoder, criterion, _ = begin(np.array([0, 0, 1, 1]))
    given = [iter([]), torch.arange(4)[None], OneRank(), nullcontext(), 0.0, quiet]
    with pytest.raises(ValueError, match=r"a fused optimizer for ahead=True; came SGD"):
        train_epoch(encoder, criterion, torch.optim.SGD(encoder.parameters(), lr=0.1), *given, ahead=True)
    kept = {"kept": lambda rows, steps: None}
    with pytest.raises(ValueError, match=r"nothing kept within the epoch for ahead=True"):
        train_epoch(encoder, criterion, build_optimizer(encoder.parameters()), *given, ahead=True, **kept)
    given[1] = given[1].to("meta")
    with pytest.raises(ValueError, match="tickets on the host; came meta"):
        train_epoch(encoder, criterion, build_optimizer(encoder.parameters()), *given)


def test_an_optimizer_takes_steps_again_after_a_bad_one():
    for kind in ("adam", "sgd"):
        encoder, criterion = small_encoder(), Breaks()
        criterion.last = 1
        criterion.begin_epoch(assignment(np.array([0, 0, 1, 1])), "cpu")
        optimizer = build_optimizer(encoder.parameters(), optimizer=kind, rate=0.01)
        picks = (Batch(step, 0, np.arange(4), pixels(seed=step)) for step in range(3))
        with pytest.raises(NonFiniteLoss):
            train_epoch(
                encoder,
                criterion,
                optimizer,
                picks,
                torch.arange(4).expand(3, 4),
                OneRank(),
                nullcontext(),
                0.0,
                quiet,
                ahead=True,
            )
        before = encoder.trunk.weight.detach().clone()
        encoder(torch.ones(4, 3, 8, 4)).sum().backward()
        encoder.trunk.weight.grad = torch.ones_like(before)
        optimizer.step()
        assert not torch.equal(encoder.trunk.weight, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("update", ["selected", "every", "mean"])
def test_nothing_in_a_step_waits_for_the_gpu(update, monkeypatch):
    options = {"device": "cuda", "optimizer": "adam", "inter_update": update, "intra_update": update}
    learnt(2, ahead=True, **options)  # constants are sent, kernels loaded
    plain = train_epoch

    def strict(*given, **more):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return plain(*given, **more)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setitem(globals(), "train_epoch", strict)
    assert learnt(5, ahead=True, **options)[2] is None


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


def test_progress_of_one_rank_stands_for_all():
    seen = []
    tell = watched(lambda *now: seen.append(now), "scan", 10, 4)
    tell(2)
    tell(3)
    assert seen == [("scan", 8, 10), ("scan", 10, 10)]

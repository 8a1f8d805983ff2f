"""Numbers that are none stop the step on every rank, and are left for study."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from gracl.errors import NonFiniteLoss, NonFiniteValue
from gracl.images.storage import write_bytes
from gracl.learning import guards
from gracl.learning.determinism import be_deterministic
from gracl.learning.fit import train_epoch
from gracl.learning.guarded import GuardedRelator
from gracl.learning.guards import Study, bad_features, check_assignment, check_weights, guarded_loss
from gracl.learning.losses import ProxyContrast, Terms
from gracl.learning.optim import build_optimizer
from gracl.local import OneRank
from gracl.randomness import rng
from gracl.types import Assignment, Batch, CameraProxies, FeatureTable, Instances
from tests.dolls import Dolls, assignment, pixels, quiet, small_encoder

LABELS = np.array([0, 0, 1, 1])
BAD = [float("nan"), float("inf"), -float("inf")]


def whole_assignment() -> Assignment:
    """With everything that a term may ask for."""
    plain = assignment(LABELS)
    rows = np.eye(4, 5, dtype=np.float32)
    ids = np.array([0, 0, 1, 1])
    shown = Instances(np.array([[0, 1], [2, 3]]), rows)
    seen = CameraProxies(rows.copy(), ids, np.array([0, 1, 0, 1]), np.arange(4))
    return Assignment(0, LABELS, plain.proxies, instances=shown, camera_proxies=seen)


def begin(**options):
    encoder, criterion = small_encoder(), ProxyContrast(instance_weight=1.0, camera_weight=1.0, **options)
    criterion.begin_epoch(whole_assignment(), "cpu")
    return encoder, criterion, build_optimizer(encoder.parameters())


def train(encoder, criterion, optimizer, ranks=None, study=guards.NOWHERE, tickets=None):
    """Step 0 of epoch 7."""
    tickets = torch.arange(4)[None] if tickets is None else tickets
    ranks = ranks or OneRank()
    part = tickets.shape[1] // ranks.size
    indices = tickets[0, ranks.rank * part : (ranks.rank + 1) * part].numpy()
    picks = iter([Batch(0, 7, indices, pixels(part))])
    train_epoch(encoder, criterion, optimizer, picks, tickets, ranks, nullcontext(), 0.0, quiet, study=study)


def test_a_loss_that_is_sound_is_itself_bit_for_bit():
    features = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    grads = []
    for guard in (False, True):
        rows = features.clone().requires_grad_()
        loss = (rows**3).sum().exp()
        told = loss.detach()
        terms = Terms(loss, told, told, torch.zeros(()), -torch.zeros(()))
        (guarded_loss(terms, rows) if guard else loss).backward()
        grads.append((loss.detach(), rows.grad))
    assert torch.equal(grads[0][0], guarded_loss(terms, rows).detach())
    assert torch.equal(grads[0][1], grads[1][1])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", ["loss", "inter", "intra", "instance", "camera", "features"])
def test_whatever_is_none_makes_the_whole_gradient_none(place, bad):
    weight = torch.ones(3, requires_grad=True)
    values = dict.fromkeys(guards.TERMS, torch.ones(()))
    if place not in ("loss", "features"):
        values[place] = torch.tensor(bad)
    # An infinite loss has a gradient of ones here: it would go unseen.
    values["loss"] = weight.sum() + (bad if place == "loss" else 0)
    features = torch.ones(2, 3)
    if place == "features":
        features[1, 2] = bad
    guarded_loss(Terms(**values), features).backward()
    assert weight.grad.isnan().all()


@pytest.mark.parametrize("weights", [{}, {"inter_weight": 0.0}, {"intra_weight": 0.0}, {"negatives": "both"}])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("bank", "rows"), [("inter", 2), ("intra", 2), ("instances", 4), ("cameras", 4)])
def test_a_bad_proxy_anywhere_stops_before_the_step(bank, rows, bad, weights, tmp_path):
    for row in range(rows):
        encoder, criterion, optimizer = begin(**weights)
        criterion.moved()[bank][row, 3] = bad
        before = {name: tensor.clone() for name, tensor in encoder.named_parameters()}
        study = Study(str(tmp_path), write_bytes, LABELS)
        with pytest.raises(NonFiniteLoss, match=rf"epoch 7, step 0 .*proxies \[{row}\] of bank {bank}") as error:
            train(encoder, criterion, optimizer, study=study)
        for name, tensor in encoder.named_parameters():
            assert torch.equal(tensor, before[name]), name
        place = tmp_path / "non_finite-epoch-0007-step-0000.json"
        assert f"kept for study in {place}" in str(error.value)
        assert json.loads(place.read_text())["bad_proxies"] == {bank: [row]}


class TwoRanks(OneRank):
    """The second of two; the first one's features are none."""

    rank, size = 1, 2

    def gather(self, rows):
        other = rows.clone()
        other[1, 0] = float("nan")
        return torch.cat([other, rows])


def test_the_record_has_the_batch_of_every_rank_whoever_writes_it(tmp_path):
    encoder, criterion, optimizer = begin()
    tickets = torch.tensor([[3, 1, 0, 2]])
    wanted = criterion(torch.eye(4, 5)[:2], tickets[0, 2:])  # only for the names of its terms
    encoder.trunk.weight.register_hook(lambda grad: grad * float("nan"))  # as the mean over both ranks has it
    study = Study(str(tmp_path), write_bytes, LABELS)
    with pytest.raises(NonFiniteLoss, match=r"step 0 \(rank 1\); bad: features of images \[1\] of rank 0"):
        train(encoder, criterion, optimizer, TwoRanks(), study, tickets)
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (found["epoch"], found["step"], found["bad_ranks"], found["gradient_norm"]) == (7, 0, [0], "nan")
    first, second = found["ranks"]
    assert (first["images"], first["labels"], first["bad_features"]) == ([3, 1], [1, 0], [1])
    assert (second["images"], second["labels"], second["bad_features"]) == ([0, 2], [0, 1], [])
    assert first["loss"] == first["inter"] == "nan"
    assert np.isfinite([second[name] for name in guards.TERMS]).all()
    assert set(guards.TERMS) == {name for name in vars(wanted)}
    assert found["bad_weights"] == []


def test_a_store_that_takes_nothing_does_not_hide_the_error():
    def full(place, content):
        raise OSError("no space left")

    encoder, criterion, optimizer = begin()
    criterion.inter[0] = float("nan")
    with pytest.raises(NonFiniteLoss, match="could not be kept at runs/one/non_finite.*OSError: no space left"):
        train(encoder, criterion, optimizer, study=Study("runs/one", full))


def test_weights_that_broke_in_the_last_step_are_not_kept():
    encoder = small_encoder()
    check_weights(encoder, 3)
    with torch.no_grad():
        encoder.trunk.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(
        NonFiniteLoss, match=r"finite weights after epoch 4; came .*1 tensors, among them \['trunk.weight'\]"
    ):
        check_weights(encoder, 3)


@pytest.mark.parametrize("seed", range(20))
def test_bad_features_are_found_as_by_looking_at_each(seed, monkeypatch):
    monkeypatch.setattr(guards, "_ROWS", 3)
    dice = rng(seed, "bad features")
    rows = int(dice.integers(0, 12))
    features, indices = dice.standard_normal((rows, 4)).astype(np.float32), dice.permutation(50)[:rows]
    for _ in range(int(dice.integers(0, 4)) if rows else 0):
        features[dice.integers(rows), dice.integers(4)] = dice.choice(BAD)
    wanted = sorted(
        int(index) for index, row in zip(indices, features, strict=True) if not all(map(np.isfinite, row.tolist()))
    )
    assert bad_features(FeatureTable(indices, features)).tolist() == wanted


@pytest.mark.parametrize("table", ["inter", "intra", "cluster_sums", "instances", "camera_proxies"])
def test_proxies_that_are_none_are_refused(table):
    found = whole_assignment()
    check_assignment(found)
    rows = getattr(found.proxies, table) if hasattr(found.proxies, table) else getattr(found, table).rows
    rows[1, 2] = np.inf
    with pytest.raises(NonFiniteValue, match=rf"1 rows of {table}, among them \[1\]"):
        check_assignment(found)


class Refusing(Dolls):
    """Refuses what is not finite, as `relate` and `evaluate_retrieval` do."""

    def relate(self, epoch, part, previous=None):
        self.look(part)
        return super().relate(epoch, part, previous)

    def judge(self, epoch, query, gallery):
        self.look(query)
        self.look(gallery)
        return super().judge(epoch, query, gallery)

    def stability(self, epoch, part, labels):
        self.look(part)
        return super().stability(epoch, part, labels)

    def look(self, part):
        if not np.isfinite(part.features).all():
            raise NonFiniteValue("expected finite features")


def table(bad=False):
    features = np.eye(8, 5, dtype=np.float32)
    features[3, 1] = np.nan if bad else 0
    return FeatureTable(np.arange(8)[::-1].copy(), features)


ASK = {
    "scan": lambda door, bad: door.relate(2, table(bad)),
    "gallery": lambda door, bad: door.judge(2, table(), table(bad)),
    "again": lambda door, bad: door.stability(2, table(bad), np.roll(np.repeat(np.arange(2), 4), 2)),
}


@pytest.mark.parametrize("phase", ASK)
def test_a_bad_feature_of_a_scan_is_left_before_the_others_are_told(phase, tmp_path):
    study = Study(str(tmp_path), write_bytes)
    ASK[phase](GuardedRelator(Refusing(), study), False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        NonFiniteValue, match=f"epoch 2; kept for study in {tmp_path}/non_finite-epoch-0002-{phase}-rank-1"
    ):
        ASK[phase](GuardedRelator(Refusing(), study, rank=1), True)
    found = json.loads((tmp_path / f"non_finite-epoch-0002-{phase}-rank-1.json").read_text())
    assert found == {"epoch": 2, "phase": phase, "rank": 1, "images": [4]}


def test_a_rank_without_bad_features_says_where_the_others_are(tmp_path):
    class Told(Refusing):
        def look(self, part):
            raise NonFiniteValue("expected finite features")

    with pytest.raises(NonFiniteValue, match=r"lies in .*/non_finite-epoch-0002-scan-rank-\*.json"):
        ASK["scan"](GuardedRelator(Told(), Study(str(tmp_path), write_bytes)), False)
    assert list(tmp_path.iterdir()) == []


def test_proxies_of_an_answer_are_looked_at():
    class Broken(Dolls):
        def relate(self, epoch, part, previous=None):
            found = super().relate(epoch, part, previous)
            found.proxies.intra[0] = np.nan
            return found

    with pytest.raises(NonFiniteValue, match="finite proxies of epoch 2; came NaN or infinity in 1 rows of intra"):
        GuardedRelator(Broken(), guards.NOWHERE).relate(2, table())


def test_previous_labels_reach_the_relator_where_they_are_asked_for():
    plain, asked = Dolls(), Dolls()
    plain.fit(epochs=3)
    assert plain.previous == [None, None, None]
    state = asked.fit(epochs=3, fall_back=True)
    assert asked.previous[0] is None
    for before, labels in zip(asked.previous[1:], asked.planned, strict=False):
        np.testing.assert_array_equal(before, labels)
    np.testing.assert_array_equal(state.assignment.labels, asked.planned[-1])
    assert state.assignment.stats == {}


def test_overlapped_the_previous_labels_are_those_that_are_learnt():
    dolls = Dolls()
    dolls.fit(epochs=4, overlap=True, fall_back=True)
    assert dolls.previous[0] is None
    assert len(dolls.previous) == 3
    for before, labels in zip(dolls.previous[1:], dolls.planned[1:], strict=False):
        np.testing.assert_array_equal(before, labels)


def test_deterministic_algorithms_are_switched_on(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        be_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
        encoder, criterion, optimizer = begin()
        train(encoder, criterion, optimizer)
    finally:
        torch.use_deterministic_algorithms(before)

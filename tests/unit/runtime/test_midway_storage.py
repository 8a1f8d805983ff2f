"""Checkpoints within an epoch on their storage, without Ray."""

import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gracl.errors import CheckpointError
from gracl.images import storage
from gracl.learning.checkpoint import STATE_FILE, Midway, TrainState
from gracl.learning.optim import build_optimizer
from gracl.runtime import midway
from gracl.runtime.checkpoints import load_any_state, load_run_state
from gracl.runtime.midway import MidwayCallback, clear_midways, find_midway, going_on, keep_midway
from tests.dolls import assignment, labels_of, small_encoder


def state_at(epoch: int, step: int) -> TrainState:
    encoder = small_encoder()
    state = replace(TrainState.fresh(encoder, {"seed": 0}, height=8, width=4), epoch=epoch)
    under_way = Midway(step, assignment(labels_of(0)), {"inter": torch.ones(2, 5)}, torch.zeros(1, step, 5), {})
    return state.within(under_way, encoder=encoder, optimizer=build_optimizer(encoder.parameters()))


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    return str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def alone(monkeypatch):
    """One rank, so nothing is sent."""
    monkeypatch.setattr(midway, "broadcast_from_rank_zero", lambda value: value)


class FakeBoard:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.note = SimpleNamespace(remote=self.notes.append)


def test_the_newest_alone_is_kept_and_rank_0_alone_writes(folder):
    for step in (3, 6, 12):
        keep_midway(folder, 1, state_at(2, step))
    assert storage.names_in(folder) == []
    for step in (3, 6, 12):
        keep_midway(folder, 0, state_at(2, step))
    assert storage.names_in(folder) == ["epoch-0002-step-000012"]
    place = find_midway(folder, 2)
    assert place == storage.join(folder, "epoch-0002-step-000012")
    assert load_any_state(place).midway.step == 12


def test_only_one_within_the_epoch_that_follows_counts_and_only_where_it_is_whole(folder):
    keep_midway(folder, 0, state_at(2, 6))
    assert find_midway(folder, 1) is None
    assert find_midway(folder, 3) is None
    storage.write_bytes(storage.join(folder, "epoch-0002-step-000009", f".{STATE_FILE}.x.part"), b"half of it")
    assert find_midway(folder, 2) == storage.join(folder, "epoch-0002-step-000006")
    assert find_midway(storage.join(folder, "nowhere"), 0) is None


def test_what_an_epoch_left_goes_when_its_own_checkpoint_is_there(folder):
    kept = ["epoch-0003", "epoch-0003-step-000004", "run.json", "start-0002"]
    for name in (*kept, "epoch-0001-step-000004", "epoch-0002-step-000008"):
        storage.write_bytes(storage.join(folder, name, STATE_FILE), b"")
    MidwayCallback(folder).after_report(None, [{"epoch": 3.0}, {}], None)
    assert storage.names_in(folder) == kept


def test_what_cannot_be_removed_is_logged_and_fails_no_run(monkeypatch, caplog):
    def fails(folder: str, **_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(midway, "clear_midways", fails)
    MidwayCallback("somewhere").after_report(None, [{"epoch": 3.0}], None)
    assert "left in somewhere" in caplog.text


def test_a_run_goes_on_from_its_own_step_and_says_so(alone, folder):
    keep_midway(folder, 0, state_at(2, 6))
    board, ended = FakeBoard(), replace(state_at(2, 1), midway=None)
    assert going_on(board, folder, ended, 0).midway.step == 6
    assert board.notes == ["goes on within epoch 3, after step 6"]
    assert going_on(board, folder, replace(ended, epoch=1), 0).midway is None
    assert len(board.notes) == 1


def test_a_step_of_other_settings_is_refused(alone, folder):
    keep_midway(folder, 0, state_at(0, 6))
    other = replace(state_at(0, 1), midway=None, recipe={"seed": 1})
    with pytest.raises(CheckpointError, match="seed: 0 in the checkpoint, 1 now"):
        going_on(FakeBoard(), folder, other, 0)


def test_other_ranks_hear_from_rank_0_where_to_go_on(monkeypatch, tmp_path):
    keep_midway(str(tmp_path), 0, state_at(2, 6))
    place, asked = find_midway(str(tmp_path), 2), []
    monkeypatch.setattr(midway, "broadcast_from_rank_zero", lambda value: asked.append(value) or place)
    monkeypatch.setattr(midway, "find_midway", lambda *_: pytest.fail("rank 1 looked by itself"))
    board = FakeBoard()
    assert going_on(board, str(tmp_path), replace(state_at(2, 1), midway=None), 1).midway.step == 6
    assert (asked, board.notes) == ([None], [])


def test_it_is_no_checkpoint_of_an_epochs_end(tmp_path: Path):
    keep_midway(str(tmp_path), 0, state_at(2, 6))
    place = find_midway(str(tmp_path), 2)
    with pytest.raises(CheckpointError, match="one from within epoch 3, after step 6"):
        load_run_state(place)


def test_clearing_touches_nothing_else(tmp_path: Path):
    names = ["epoch-0001", "epoch-0001-step-1", "epoch-0001-step-000001.old", "my-epoch-0001-step-000001"]
    for name in names:
        (tmp_path / name).mkdir()
    clear_midways(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)

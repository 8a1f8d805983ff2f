"""Checkpoints and lists that are torn: found, named, set aside; the last whole epoch is gone on from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gracl.errors import CheckpointError
from gracl.learning.checkpoint import STATE_FILE, Midway, TrainState, load_state, save_state
from gracl.learning.optim import build_optimizer
from gracl.runtime.midway import find_midway
from gracl.runtime.runs import epochs_in
from gracl.runtime.salvage import SNAPSHOT, is_whole, set_torn_aside
from tests.chaos.torn import damage, listed, run_of, small
from tests.dolls import assignment, labels_of, small_encoder


def test_no_flipped_bit_of_a_checkpoint_is_learnt_from(tmp_path: Path) -> None:
    """Every second byte of the file: refused with its name, or in a place that nobody reads."""
    file = save_state(small(), tmp_path)
    good, wanted, refused = file.read_bytes(), str(load_state(tmp_path)), 0
    for place in range(0, len(good), 2):
        file.write_bytes(good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :])
        try:
            found = str(load_state(tmp_path))
        except CheckpointError as error:
            found, refused = wanted if str(file) in str(error) else str(error), refused + 1
        assert found == wanted, place
    assert refused > len(good) // 4


def test_no_part_of_a_checkpoint_is_taken_for_the_whole(tmp_path: Path) -> None:
    file = save_state(small(), tmp_path)
    good = file.read_bytes()
    for size in range(0, len(good), 7):
        file.write_bytes(good[:size])
        with pytest.raises(CheckpointError, match=str(file)):
            load_state(tmp_path)
    file.write_bytes(good[:-512] + bytes(512))  # as after a power cut: the size is there, the last pages are not
    with pytest.raises(CheckpointError, match=str(file)):
        load_state(tmp_path)


def test_a_run_goes_on_from_the_last_epoch_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 5, finished=5)
    assert set_torn_aside(str(folder)) == []
    assert capsys.readouterr().err == ""
    assert listed(folder) == (["epoch-0003", "epoch-0005"], "epoch-0005", 5)
    damage(folder / "epoch-0005" / STATE_FILE)
    assert not is_whole(str(folder))
    assert set_torn_aside(str(folder)) == [5]
    said = capsys.readouterr().err
    assert str(folder / "epoch-0005" / STATE_FILE) in said
    assert "checksum" in said
    assert f"it is {folder / 'torn-epoch-0005' / STATE_FILE} now; going on after epoch 3" in said
    assert is_whole(str(folder))
    assert listed(folder) == (["epoch-0003"], "epoch-0003", 3)
    assert json.loads((folder / "run.json").read_text())["finished"] == 3
    assert (folder / "torn-epoch-0005" / STATE_FILE).exists()
    assert not (folder / "epoch-0005").exists()


def test_what_a_killed_upload_left_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 4)
    (folder / "epoch-0005").mkdir()
    (folder / "epoch-0005" / STATE_FILE).write_bytes(b"PK half of it")
    (folder / "epoch-0006").mkdir()
    assert set_torn_aside(str(folder)) == [5, 6]
    assert listed(folder) == (["epoch-0003", "epoch-0004"], "epoch-0004", 4)
    assert "going on after epoch 4" in capsys.readouterr().err
    damage(folder / "epoch-0004" / STATE_FILE)
    damage(folder / "epoch-0003" / STATE_FILE)
    with pytest.raises(CheckpointError, match=f"a whole checkpoint among those in {folder}.*delete {folder} to begin"):
        set_torn_aside(str(folder))
    assert (folder / "epoch-0004").exists()


def test_the_very_first_upload_that_was_killed_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    (folder / "epoch-0001").mkdir(parents=True)
    (folder / "epoch-0001" / STATE_FILE).write_bytes(b"PK half of it")
    assert set_torn_aside(str(folder)) == [1]
    assert "going on after epoch 0" in capsys.readouterr().err


def test_a_checkpoint_that_was_kept_and_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 5)
    shutil.rmtree(folder / "epoch-0003")
    assert set_torn_aside(str(folder)) == []
    assert "epoch-0003, which was kept, is gone" in capsys.readouterr().err
    assert listed(folder) == (["epoch-0005"], "epoch-0005", 5)


def within(epoch: int, step: int) -> TrainState:
    """A state some steps into the epoch after so many."""
    encoder = small_encoder()
    moved = {"inter": torch.ones(2, 5)}
    midway = Midway(step, assignment(labels_of(0)), moved, torch.zeros(1, step, 5), {})
    state = replace(TrainState.fresh(encoder, {}, height=8, width=4), epoch=epoch)
    return state.within(midway, encoder=encoder, optimizer=build_optimizer(encoder.parameters()))


def test_a_torn_state_within_an_epoch_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 1, 2)
    torn = save_state(within(2, 7), folder / "epoch-0002-step-000007")
    torn.write_bytes(torn.read_bytes()[:-99])
    save_state(within(2, 5), folder / "epoch-0002-step-000005")
    assert set_torn_aside(str(folder)) == []
    assert find_midway(str(folder), 2) == f"{folder}/epoch-0002-step-000005"
    assert f"{folder}/torn-epoch-0002-step-000007/{STATE_FILE} now" in capsys.readouterr().err


def test_states_within_epochs_that_follow_on_a_torn_one_go(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1, 2)
    save_state(within(2, 7), folder / "epoch-0002-step-000007")
    damage(folder / "epoch-0002" / STATE_FILE)
    assert set_torn_aside(str(folder)) == [2]
    assert find_midway(str(folder), 2) is None


def test_folders_of_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1, 2)
    for name in ("epoch-5", "epoch-00007", "epoch-\u00b2", "epoch-99", "epoch-0003-copy"):
        (folder / name).mkdir()
    assert epochs_in(str(folder)) == [1, 2]
    assert set_torn_aside(str(folder)) == []


def test_a_checkpoint_of_another_epoch_is_none_of_this(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 5)
    shutil.copy(folder / "epoch-0003" / STATE_FILE, folder / "epoch-0005" / STATE_FILE)
    assert set_torn_aside(str(folder)) == [5]
    assert "the checkpoint of epoch 5 at" in capsys.readouterr().err


def test_a_torn_list_of_ray_train_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 5)
    whole = (folder / SNAPSHOT).read_text()
    (folder / SNAPSHOT).write_text(whole[: len(whole) // 2])
    assert set_torn_aside(str(folder)) == []
    assert f"{folder / SNAPSHOT} is torn" in capsys.readouterr().err
    assert listed(folder) == (["epoch-0005"], "epoch-0005", 5)

"""A run that is stopped within an epoch and goes on from there equals an unbroken one, bit for bit."""

from functools import cache, partial
from pathlib import Path

import pytest
import torch

from benchmarks.local_twin import learn
from gracl.images.batches import MappedBatches
from gracl.learning.checkpoint import TrainState, load_state, save_state
from tests.local.test_fit import assert_same_run, assert_same_state
from tests.toy import toy_config

WAYS = {
    "plain": {},
    "taught": {"teacher_decay": 0.9, "optim__optimizer": "sgd"},
    "all terms": {
        "relations__instances": 3,
        "loss__instance_weight": 0.5,
        "relations__camera_proxies": True,
        "loss__camera_weight": 0.5,
        "relations__consensus": 4,
        "loss__smoothing": 0.2,
        "loss__inter_start": "centroid",
        "loss__inter_update": "every",
        "loss__momentum": 0.5,
    },
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, taught": {"precision": "bfloat16", "teacher_decay": 0.9, "loss__intra_update": "mean"},
    "overlapped": {"relations__overlap": True},
}


class Stopped(Exception):
    pass


def stopping(folder: Path, epoch: int, step: int, state: TrainState) -> None:
    """Keeps a state within an epoch; after the one that is asked for the process is gone."""
    save_state(state, folder)
    if (state.epoch, state.midway.step) == (epoch, step):
        raise Stopped


@pytest.fixture(scope="module")
def unbroken(toy_shards):
    return cache(lambda way: learn(toy_config(toy_shards, **WAYS[way])))


@pytest.mark.parametrize(
    ("way", "epoch", "step"),
    [
        ("plain", 0, 1),
        ("plain", 1, 2),
        ("plain", 2, 3),
        ("taught", 1, 1),
        ("all terms", 1, 2),
        ("bfloat16", 1, 3),
        ("bfloat16, taught", 0, 2),
    ],
)
def test_a_run_stopped_within_an_epoch_and_resumed_equals_an_unbroken_one(
    toy_shards, tmp_path, unbroken, way, epoch, step
):
    config = toy_config(toy_shards, checkpoint__every_steps=1, **WAYS[way])
    with pytest.raises(Stopped):
        learn(config, keeper=partial(stopping, tmp_path, epoch, step))
    state = load_state(tmp_path)
    assert (state.epoch, state.midway.step, len(state.history)) == (epoch, step, epoch)
    later = []
    assert_same_run(learn(config, state=state, keeper=lambda state: later.append(state.midway.step)), unbroken(way))
    assert later[:1] == ([step + 1] if step < 3 else [1][: 2 - epoch]), "the steps before were taken once more"


@pytest.mark.parametrize("epoch", [pytest.param(0, marks=pytest.mark.long), 1, pytest.param(2, marks=pytest.mark.long)])
def test_an_overlapped_run_keeps_no_state_without_the_labels_that_the_next_epoch_learns(
    toy_shards, tmp_path, unbroken, epoch
):
    """The relation of the scan may take as long as it likes: at the last step at the latest it is waited for here."""
    config = toy_config(toy_shards, checkpoint__every_steps=1, sampling__steps=12, **WAYS["overlapped"])

    def stop(state: TrainState) -> None:
        save_state(state, tmp_path)
        if state.epoch == epoch:
            raise Stopped

    with pytest.raises(Stopped):
        learn(config, keeper=stop)
    state = load_state(tmp_path)
    # The last epoch relates nothing, and the first waits for its own labels.
    assert (state.assignment is None) == (epoch == 2)
    assert state.midway.assignment.epoch == max(0, epoch - 1)
    wanted = learn(toy_config(toy_shards, sampling__steps=12, **WAYS["overlapped"]))
    assert_same_run(learn(config, state=state), wanted)


def test_a_run_stopped_twice_in_one_epoch_equals_an_unbroken_one(toy_shards, tmp_path, unbroken):
    config, state = toy_config(toy_shards, checkpoint__every_steps=1), None
    for step in (1, 3):
        with pytest.raises(Stopped):
            learn(config, state=state, keeper=partial(stopping, tmp_path, 1, step))
        state = load_state(tmp_path)
    assert_same_run(learn(config, state=state), unbroken("plain"))


def test_states_come_every_so_many_steps_and_change_nothing(toy_shards, unbroken):
    steps = []
    config = toy_config(toy_shards, checkpoint__every_steps=2, sampling__steps=4)
    state = learn(config, keeper=lambda state: steps.append((state.epoch, state.midway.step)))
    assert steps == [(0, 2), (1, 2), (2, 2)], "none after the last step, whose epoch is kept anyway"
    assert state.midway is None
    assert_same_run(state, unbroken("plain"))


def test_minutes_are_counted_from_the_checkpoint_before(toy_shards):
    steps, always, never = [], 1e-9, 1e9
    for every in (always, never):
        config = toy_config(toy_shards, epochs=1, checkpoint__every_minutes=every)
        learn(config, keeper=lambda state: steps.append(state.midway.step))
    assert steps == [1, 2, 3]


def test_off_by_default(toy_shards):
    learn(toy_config(toy_shards, epochs=1), keeper=lambda state: pytest.fail("nobody asked for it"))


def test_the_figures_before_the_training_are_told_once(toy_shards, tmp_path, unbroken):
    config = toy_config(toy_shards, checkpoint__every_steps=1)
    with pytest.raises(Stopped):
        learn(config, keeper=partial(stopping, tmp_path, 0, 1))
    state = learn(config, state=load_state(tmp_path))
    told = ["untrained/mAP" in row for row in state.history]
    assert told == [True, False, False]


def test_an_epoch_that_is_gone_on_with_makes_neither_scan_nor_relation_nor_a_step_again(
    toy_shards, tmp_path, monkeypatch
):
    config = toy_config(toy_shards, epochs=1, checkpoint__every_steps=1, data__query="", data__gallery="")
    with pytest.raises(Stopped):
        learn(config, keeper=partial(stopping, tmp_path, 0, 3))
    read = []
    picks = MappedBatches.picks

    def watched(self, plan, first=0):
        for batch in picks(self, plan, first):
            read.append(batch.ticket)
            yield batch

    monkeypatch.setattr(MappedBatches, "picks", watched)
    monkeypatch.setattr(MappedBatches, "scan", lambda *_: pytest.fail("it was scanned again"))
    learn(config, state=load_state(tmp_path))
    assert read == [3]


def test_seconds_go_on_where_they_were(toy_shards, tmp_path):
    config = toy_config(toy_shards, epochs=1, checkpoint__every_steps=1)
    with pytest.raises(Stopped):
        learn(config, keeper=partial(stopping, tmp_path, 0, 3))
    before = load_state(tmp_path).midway.seconds
    after = learn(config, state=load_state(tmp_path)).history[0]
    assert before["scan"] > 0
    assert after["time/scan_s"] == before["scan"], "no scan was made after it"
    assert after["time/train_s"] > before["train"]
    parts = sum(after[f"time/{phase}_s"] for phase in ("keep", "scan", "relate", "plan", "train", "judge"))
    assert after["time/epoch_s"] == pytest.approx(parts, abs=0.05)


def test_what_the_state_holds_comes_back_as_it_was(toy_shards, tmp_path):
    kept = []

    def keep(state: TrainState) -> None:
        save_state(state, tmp_path)
        kept.append(state.midway)
        raise Stopped

    with pytest.raises(Stopped):
        learn(toy_config(toy_shards, checkpoint__every_steps=2, **WAYS["all terms"]), keeper=keep)
    found = load_state(tmp_path).midway
    assert {*found.moved} == {"inter", "intra", "instances", "cameras"}
    assert_same_state(found.moved, kept[0].moved)
    assert found.losses.shape == (1, 2, 5)
    assert torch.equal(found.losses, kept[0].losses)
    assert found.untrained.metrics() == kept[0].untrained.metrics()
    assert found.seconds == kept[0].seconds

"""When a state within an epoch is due, and that all ranks say the same."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from gracl.errors import RanksDiffer
from gracl.learning.checkpoint import TrainState
from gracl.learning.epoch_report import Clock
from gracl.learning.losses import ProxyContrast
from gracl.learning.midway import MidwayKeeper
from gracl.learning.optim import build_optimizer
from tests.dolls import assignment, small_encoder

LABELS = assignment(np.array([0, 0, 1, 1]))
STEPS = 10


def kept_at(
    every_steps=0,
    every_minutes=0.0,
    *,
    answer=None,
    look=lambda epoch, step: None,
    gather=lambda rows: rows,
    after=lambda step: None,
):
    """The states of an epoch of ten steps; `after` is called after each."""
    encoder, criterion, states = small_encoder(), ProxyContrast(), []
    criterion.begin_epoch(LABELS, "cpu")
    members = {"encoder": encoder, "criterion": criterion, "optimizer": build_optimizer(encoder.parameters())}
    keeper = MidwayKeeper(states.append, every_steps, every_minutes, look=look, gather=gather, **members, teacher=None)
    state = TrainState.fresh(encoder, {}, height=8, width=4)
    kept = keeper.of(state, Clock(), LABELS, answer, None)
    if kept is None:
        return None
    for step in range(1, STEPS + 1):
        kept([torch.full((5,), float(number)) for number in range(step)], STEPS)
        after(step)
    return states


def steps_of(states):
    return [state.midway.step for state in states]


def test_off_nothing_is_asked_after_a_step():
    assert kept_at() is None


@pytest.mark.parametrize(("every", "steps"), [(1, [*range(1, 10)]), (3, [3, 6, 9]), (5, [5]), (10, []), (99, [])])
def test_every_so_many_steps_and_never_after_the_last(every, steps):
    assert steps_of(kept_at(every)) == steps


def test_steps_alone_are_counted_without_a_word_between_ranks():
    asked = []
    kept_at(5, gather=lambda rows: asked.append(rows.shape) or rows)
    assert asked == [(1, 5, 5)], "only the losses of the one state"


def test_what_is_wrong_is_found_before_it_is_kept():
    """A state of ranks that differ would be gone on with, and then nobody would see it any more."""
    looks = []

    def look(epoch, step):
        looks.append((epoch, step))
        if step == 5:
            raise RanksDiffer("others on rank 1")

    asked = []
    with pytest.raises(RanksDiffer):
        kept_at(3, look=look, gather=lambda rows: asked.append(len(rows)) or rows)
    assert looks == [(0, 2), (0, 5)]
    assert len(asked) == 1, "the second state is meant not to be put together"


def test_whichever_of_the_two_is_due_first():
    assert steps_of(kept_at(4, 1e9)) == [4, 8]
    assert steps_of(kept_at(4, 1e-9)) == [*range(1, 10)]


def test_rank_0_decides_for_all():
    """This rank's clock says never, rank 0's says after the seventh step."""
    step, seen = 0, []

    def gather(rows):
        nonlocal step
        if rows.dtype.is_floating_point:
            return torch.cat([rows + 100, rows])
        step += 1
        seen.append(rows.tolist())
        return torch.cat([torch.tensor([int(step == 7)]), rows])

    (state,) = kept_at(0, 1e9, gather=gather)
    assert state.midway.step == 7
    assert seen == [[0]] * 9
    assert state.midway.losses.shape == (2, 7, 5)
    assert torch.equal(state.midway.losses[0], state.midway.losses[1] + 100)


def test_no_state_goes_without_the_labels_that_the_next_epoch_learns():
    answer = Future()

    def comes(step):
        if step == 5:
            answer.set_result(LABELS)

    states = kept_at(2, answer=answer, after=comes)
    assert steps_of(states) == [6, 8]
    assert all(state.assignment is LABELS for state in states)


def test_a_relation_that_failed_is_raised_where_it_was_waited_for():
    answer = Future()
    answer.set_exception(ValueError("collapsed"))
    with pytest.raises(ValueError, match="collapsed"):
        kept_at(2, answer=answer)

import numpy as np
import pytest
import torch

from gracl.learning.checkpoint import load_state, save_state
from gracl.learning.fit import Splits
from gracl.learning.teacher import Teacher
from gracl.local import OneRank
from tests.dolls import Dolls, small_encoder


def moved(encoder, by):
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            tensor.add_(by)
    return encoder


def weight(encoder):
    return encoder.trunk.weight.detach().clone()


@pytest.mark.parametrize(("before", "step", "decay", "keep"), [(0, 0, 0.9, 0.1), (0, 8, 0.9, 0.5), (500, 10, 0.9, 0.9)])
def test_it_is_a_mean_that_forgets_the_first_weights_sooner(before, step, decay, keep):
    encoder = small_encoder()
    teacher, first = Teacher(encoder, decay), weight(encoder)
    teacher.follow(moved(encoder, 1), before, step)
    wanted = keep * first.double() + (1 - keep) * (first.double() + 1)
    np.testing.assert_allclose(weight(teacher.encoder).numpy(), wanted.numpy(), atol=1e-6)
    np.testing.assert_allclose(teacher.encoder.neck.running_mean.numpy(), 1 - keep, atol=1e-6)
    assert teacher.encoder.neck.num_batches_tracked == encoder.neck.num_batches_tracked == 1


def test_it_is_a_copy_that_takes_no_gradient():
    encoder = small_encoder()
    teacher, first = Teacher(encoder, 0.9), weight(encoder)
    moved(encoder, 1)
    assert torch.equal(weight(teacher.encoder), first)
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())
    assert encoder.trunk.weight.requires_grad


def test_the_teacher_scans_is_judged_and_is_kept():
    splits = {"splits": Splits("train", "query", "gallery"), "eval_every": 1}
    seen = []

    class Watching(Dolls):
        def relate(self, epoch, part, previous=None):
            seen.append(part.features.copy())
            return super().relate(epoch, part, previous)

    alone, taught = Watching(), Watching()
    alone.fit(epochs=2, **splits)
    state = taught.fit(epochs=2, teacher_decay=0.9, **splits)
    without, with_teacher = seen[:2], seen[2:]
    np.testing.assert_array_equal(with_teacher[0], without[0])
    assert (with_teacher[1] != without[1]).any(), "the second scan is the teacher's"
    assert alone.states[0].teacher is None
    # The encoder's first step is the same; the teacher has taken in nine tenths of it.
    one, first = Dolls(), weight(small_encoder())
    kept = one.fit(epochs=1, teacher_decay=0.9)
    mine, theirs = kept.teacher["trunk.weight"], kept.model["trunk.weight"]
    np.testing.assert_allclose(mine.numpy(), (0.1 * first + 0.9 * theirs).numpy(), atol=1e-6)
    assert state.teacher.keys() == state.model.keys()


def test_ranks_share_the_running_statistics_of_encoder_and_teacher(monkeypatch):
    shared = []
    monkeypatch.setattr(OneRank, "share_buffers", lambda self, encoder: shared.append(encoder))
    Dolls().fit(epochs=2, teacher_decay=0.9)
    encoder, teacher = shared[:2]
    assert encoder is not teacher
    assert encoder.trunk.weight.requires_grad
    assert not teacher.trunk.weight.requires_grad
    assert [id(one) for one in shared] == [id(encoder), id(teacher)] * 2


def test_a_teacher_of_a_run_that_had_none_starts_as_the_encoder_it_finds():
    half = Dolls().fit(epochs=1)
    trained = half.model["trunk.weight"].clone()
    state = Dolls().fit(half, epochs=2, teacher_decay=0.999)
    assert (state.teacher["trunk.weight"] - trained).abs().max() < (weight(small_encoder()) - trained).abs().max()
    keep = (1 + 1) / (10 + 1)
    wanted = keep * trained + (1 - keep) * state.model["trunk.weight"]
    np.testing.assert_allclose(state.teacher["trunk.weight"].numpy(), wanted.numpy(), atol=1e-6)


def test_a_taught_run_that_is_resumed_equals_an_unbroken_one(tmp_path):
    unbroken = Dolls().fit(epochs=4, teacher_decay=0.5)
    save_state(Dolls().fit(epochs=2, teacher_decay=0.5), tmp_path)
    resumed = Dolls().fit(load_state(tmp_path), epochs=4, teacher_decay=0.5)
    for name in unbroken.model:
        assert torch.equal(unbroken.model[name], resumed.model[name]), name
        assert torch.equal(unbroken.teacher[name], resumed.teacher[name]), name

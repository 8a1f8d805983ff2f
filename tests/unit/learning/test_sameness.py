"""Do the ranks hold the same weights?"""

import copy

import pytest
import torch

from gracl.errors import RanksDiffer
from gracl.learning.optim import build_optimizer
from gracl.learning.sameness import SameWeights, bit_sum, held_tensors
from tests.dolls import small_encoder

KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64]


def naive_sum(values):
    """Number by number, in Python's own arithmetic."""
    size = values.element_size()
    raw = values.detach().contiguous().view(torch.uint8).flatten().tolist()
    total = 0
    for place in range(values.numel()):
        word = int.from_bytes(bytes(raw[place * size : (place + 1) * size]), "little", signed=True)
        total += word * (2 * place + 1)
    return (total + 2**63) % 2**64 - 2**63


def numbers(kind, shape, seed=0):
    dice = torch.Generator().manual_seed(seed)
    return (100 * torch.randn(shape, generator=dice, dtype=torch.float64)).to(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (0,)])
def test_the_sum_is_the_naive_one(kind, shape):
    values = numbers(kind, shape)
    assert bit_sum(values).item() == naive_sum(values)
    if len(shape) == 2:
        assert bit_sum(values.T).item() == naive_sum(values.T.contiguous())
    if values.numel() == 1:
        assert bit_sum(values[0]).item() == naive_sum(values)


@pytest.mark.parametrize("bit", range(32))
def test_any_bit_of_any_number_is_seen(bit):
    values = numbers(torch.float32, (5,))
    for place in range(5):
        other = values.clone()
        words = other.view(torch.int32)
        words[place] ^= torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
        assert bit_sum(other) != bit_sum(values)


def test_swapped_numbers_are_seen():
    values = numbers(torch.float32, (6,))
    assert bit_sum(values.flip(0)) != bit_sum(values)


class Gathered:
    """Ranks of which this one is the first; the others hold these."""

    def __init__(self, *others):
        self._others, self.size, self.asked = others, 1 + len(others), 0

    def gather(self, rows):
        self.asked += 1
        return torch.cat(
            [rows, *(torch.stack([bit_sum(one) for one in held_tensors(*o).values()])[None] for o in self._others)]
        )


def trained(seed=0):
    encoder = small_encoder()
    optimizer = build_optimizer(encoder.parameters())
    torch.manual_seed(seed)
    encoder(torch.randn(4, 3, 8, 4)).sum().backward()
    optimizer.step()
    return encoder, optimizer


def twin_of(pair):
    encoder = copy.deepcopy(pair[0])
    optimizer = build_optimizer(encoder.parameters())
    optimizer.load_state_dict(copy.deepcopy(pair[1].state_dict()))
    return encoder, optimizer


def test_parameters_and_what_the_optimizer_has_gathered_are_held_and_no_buffers():
    encoder, optimizer = trained()
    names = set(held_tensors(encoder, optimizer))
    assert {"trunk.weight", "trunk.weight (exp_avg)", "trunk.weight (exp_avg_sq)", "trunk.weight (step)"} <= names
    buffers = {name for name, _ in encoder.named_buffers()}
    assert buffers
    assert not any(name.startswith(tuple(buffers)) for name in names)


def test_equal_ranks_are_let_go_on_whatever_their_running_statistics():
    mine = trained()
    other = twin_of(mine)
    for buffer in other[0].buffers():
        buffer.add_(1)
    SameWeights(Gathered(other), *mine).after_epoch(3)


@pytest.mark.parametrize("what", ["trunk.weight", "trunk.weight (exp_avg_sq)"])
def test_one_bit_of_one_rank_is_an_error_that_names_it(what):
    mine = trained()
    first, second = twin_of(mine), twin_of(mine)
    held_tensors(*second)[what].detach().view(torch.int32).view(-1)[5] ^= 1
    message = (
        r"same weights on all 3 ranks at epoch 4, step 9; came others on ranks \[2\], in 1 of \d+ tensors, among them"
    )
    with pytest.raises(RanksDiffer, match=message) as error:
        SameWeights(Gathered(first, second), *mine, every=10).after_step(4, 9)
    assert f"['{what}']" in str(error.value)


def test_a_teacher_is_held_against_the_others():
    mine = trained()
    other = twin_of(mine)
    teachers = [copy.deepcopy(mine[0]) for _ in range(2)]
    SameWeights(Gathered((*other, teachers[1])), *mine, teacher=teachers[0]).after_epoch(0)
    with torch.no_grad():
        teachers[1].trunk.weight.view(-1)[0] += 1
    with pytest.raises(RanksDiffer, match=r"ranks \[1\], in 1 of \d+ tensors, among them \['teacher.trunk.weight'\]"):
        SameWeights(Gathered((*other, teachers[1])), *mine, teacher=teachers[0]).after_epoch(0)


def test_of_two_that_differ_the_second_is_named():
    mine = trained()
    other = twin_of(mine)
    with torch.no_grad():
        other[0].trunk.weight.view(-1)[0] += 1
    with pytest.raises(RanksDiffer, match=r"at the end of epoch 0; came others on ranks \[1\]"):
        SameWeights(Gathered(other), *mine).after_epoch(0)


@pytest.mark.parametrize(("every", "looks"), [(0, 1), (2, 4), (1, 7), (-1, 0), (7, 1)])
def test_it_is_looked_at_as_often_as_asked_for(every, looks):
    mine = trained()
    ranks = Gathered(twin_of(mine))
    same = SameWeights(ranks, *mine, every=every)
    for step in range(6):
        same.after_step(0, step)
    same.after_epoch(0)
    assert ranks.asked == looks


def test_one_rank_alone_is_not_asked():
    ranks = Gathered()
    SameWeights(ranks, *trained()).after_epoch(0)
    assert ranks.asked == 0

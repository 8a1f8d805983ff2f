"""What leaves a device comes in order, and as far ahead as asked; a GPU is asked nothing for it."""

import pytest
import torch

from gracl.learning.travel import Leaving, brought, sent

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ahead", [None, 0, 2, 5])
def test_all_come_in_order_and_no_more_are_made_than_asked(device, ahead):
    made, before = [], {"cpu": 0, "cuda": 2}[device] if ahead is None else ahead

    def tensors():
        for number in range(7):
            made.append(number)
            yield torch.full((3, 2), number, device=device)

    for number, one in enumerate(brought(tensors(), ahead)):
        assert one.device.type == "cpu"
        assert torch.equal(one, torch.full((3, 2), number))
        assert len(made) == min(number + 1 + before, 7)
    assert number == 6


def test_nothing_is_brought_of_nothing():
    assert list(brought(iter([]))) == []


@pytest.mark.parametrize("device", DEVICES)
def test_there_and_back(device):
    rows = torch.arange(12.0).view(4, 3)
    there = sent(rows, torch.device(device))
    assert there.device.type == device
    assert torch.equal(Leaving(there).arrived(), rows)
    assert sent(rows[:0], torch.device(device)).shape == (0, 3)

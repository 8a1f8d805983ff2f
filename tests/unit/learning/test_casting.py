"""The arithmetic of the network: which one is taken, and that no convolution of it leaves memory unwritten."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gracl.learning.casting import autocast

CPU = torch.device("cpu")
# Kernel, stride, padding, height and width of maps that come out one place wide; in oneDNN with AMX all are wrong.
NARROW = [(3, 2, 1, 4, 2), (3, 2, 1, 16, 1), (3, 3, 1, 8, 3), (5, 2, 2, 8, 2), (7, 3, 3, 5, 3), (3, 2, 0, 7, 3)]
WIDE = [(3, 1, 1, 4, 1), (1, 1, 0, 3, 1), (3, 2, 1, 4, 3), (3, 2, 1, 8, 4), (7, 2, 3, 32, 16), (3, 1, 1, 4, 4)]


def test_bfloat16_is_taken_when_asked_for():
    for precision in ("auto", "float32"):
        assert isinstance(autocast(CPU, precision), nullcontext)
    with autocast(CPU, "bfloat16"):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_takes_bfloat16_by_itself():
    gpu = torch.device("cuda")
    assert autocast(gpu, "auto").fast_dtype == torch.bfloat16
    assert isinstance(autocast(gpu, "float32"), nullcontext)


def case(shape):
    kernel, stride, padding, height, width = shape
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(kernel * height + width))
    maps, weight = draw(16, 64, height, width), draw(128, 64, kernel, kernel) * 0.05
    return maps, weight, {"stride": stride, "padding": padding}


@pytest.mark.parametrize("shape", NARROW)
def test_a_narrow_map_is_that_of_float32_rounded(shape):
    maps, weight, how = case(shape)
    with autocast(CPU, "bfloat16"):
        seen = F.conv2d(maps, weight, **how)
        by_place = torch.conv2d(maps.bfloat16(), weight, None, how["stride"], how["padding"])
    assert seen.dtype == by_place.dtype == torch.bfloat16
    assert seen.shape[-1] == 1
    assert torch.equal(seen, F.conv2d(maps, weight, **how).bfloat16())
    assert torch.equal(by_place, F.conv2d(maps.bfloat16().float(), weight, **how).bfloat16())


@pytest.mark.parametrize("shape", WIDE)
def test_any_other_map_is_that_of_autocast(shape):
    maps, weight, how = case(shape)
    with autocast(CPU, "bfloat16"):
        seen = F.conv2d(maps, weight, **how)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(seen, F.conv2d(maps, weight, **how))
    assert not torch.equal(seen, F.conv2d(maps, weight, **how).bfloat16()), "one could not tell it from float32"


@pytest.mark.parametrize("shape", [*NARROW, *WIDE])
def test_features_and_gradients_are_near_those_of_float32_whatever_lay_in_memory(shape):
    maps, weight, how = case(shape)

    def learnt(context):
        inputs = [maps.bfloat16().float().requires_grad_(), weight.bfloat16().float().requires_grad_()]
        for size in (maps.numel(), weight.numel(), maps.numel() * 2):
            soil(size)
        with context:
            seen = F.conv2d(*inputs, **how).float()
        soil(weight.numel())
        seen.square().sum().backward()
        return seen.detach(), *(one.grad for one in inputs)

    for seen, true in zip(learnt(autocast(CPU, "bfloat16")), learnt(nullcontext()), strict=True):
        assert (seen - true).abs().max() < 0.02 * true.abs().max()


def soil(size):
    """Leaves free memory full of what is no number."""
    torch.full((8, size), float("nan"), dtype=torch.bfloat16).sum()


def test_it_can_be_entered_again_and_left_by_an_error():
    casting, module = autocast(CPU, "bfloat16"), nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def kind():
        return module(torch.ones(1, 3, 4, 2)).dtype

    for _ in range(2):
        with casting:
            assert kind() == torch.bfloat16
        assert kind() == torch.float32
        with pytest.raises(RuntimeError, match="channels"), casting:
            module(torch.ones(1, 4, 4, 2))
        assert kind() == torch.float32

"""The compiled encoder is the encoder; the compiler itself is torch's, and mostly left out here: it takes a minute."""

import copy
import shutil
from contextlib import nullcontext

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor

from gracl.errors import ConfigError
from gracl.learning.casting import autocast
from gracl.learning.compiling import as_written, compile_encoder, is_compiled
from gracl.learning.encoder import Encoder
from gracl.learning.encoding import encode
from gracl.learning.layers import GeneralizedMeanPool, group_batch_norm
from gracl.learning.teacher import Teacher
from gracl.types import Batch
from tests.dolls import pixels, small_encoder

GROUP = 4
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.fixture(autouse=True)
def as_in_production():
    """Without the checks of shapes, which torch's compiler does not understand."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def counted():
    """A backend of torch's that only traces, and counts what it has traced."""
    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def grouped_encoder() -> Encoder:
    """Small, with batch norm in groups of maps and of rows, and a jump as residual networks have it."""
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), Jump(6))
    encoder = Encoder(trunk, GeneralizedMeanPool(), width=6)
    group_batch_norm(encoder, GROUP)
    return encoder


class Jump(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(maps + self.norm(self.conv(maps)))


def pictures(rows: int = 2 * GROUP, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 16, 12, 3, generator=torch.Generator().manual_seed(seed)).permute(0, 3, 1, 2)


def taught(encoder: Encoder, precision: str = "float32") -> dict[str, torch.Tensor]:
    """All that a step of training sees and changes, and what is seen afterwards."""
    casting = autocast(torch.device("cpu"), precision)
    with casting:
        features = encoder(pictures())
    pull = torch.arange(features.numel()).reshape(features.shape).cos()
    (features * pull).sum().backward()
    grads = {f"grad {name}": weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}
    with torch.inference_mode(), casting:
        plain = encoder.eval()(pictures(seed=2))
    return {"features": features.detach(), "plain": plain, **grads, **dict(encoder.named_buffers())}


def test_training_and_evaluation_are_those_of_the_encoder_as_written(counted):
    encoder = grouped_encoder()
    compile_encoder(encoder, backend=counted)
    found, wanted = taught(encoder), taught(grouped_encoder())
    assert counted.frame_count == 2, "one for training, one for evaluation, and nothing in pieces"
    assert found.keys() == wanted.keys()
    assert encoder.state_dict().keys() == grouped_encoder().state_dict().keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()), msg=name)


def test_bfloat16_is_as_near_to_float32_as_without(counted):
    encoder = grouped_encoder()
    compile_encoder(encoder, backend=counted)
    found, plain, exact = taught(encoder, "bfloat16"), taught(grouped_encoder(), "bfloat16"), taught(grouped_encoder())
    for name in ("features", "plain"):
        far, wanted = ((one[name] - exact[name]).norm() for one in (found, plain))
        assert 0 < far < 1.5 * wanted


def test_a_shape_that_comes_once_is_not_compiled(counted):
    encoder = small_encoder()
    compile_encoder(encoder, backend=counted)
    whole = pixels(10)
    cut = [(0, 4), (4, 8), (8, 10)]
    parts = [Batch(step, 0, np.arange(first, last), whole[first:last]) for step, (first, last) in enumerate(cut)]
    found = encode(encoder, iter(parts), nullcontext(), lambda done: None)
    assert counted.frame_count == 1
    wanted = encode(small_encoder(), iter(parts), nullcontext(), lambda done: None)
    np.testing.assert_allclose(found.features, wanted.features, atol=1e-6)
    small = [Batch(0, 0, np.arange(3), whole[:3])]
    encode(encoder, iter(small), nullcontext(), lambda done: None)
    assert counted.frame_count == 1, "a split smaller than a batch is seen as written"
    with as_written(encoder):
        encoder(torch.zeros(3, 3, 8, 4))
    assert counted.frame_count == 1


def test_a_teacher_is_compiled_as_its_encoder_is(counted):
    encoder = small_encoder()
    assert not is_compiled(Teacher(encoder, 0.9).encoder)
    compile_encoder(encoder, backend=counted)
    assert not is_compiled(copy.deepcopy(encoder))
    teacher = Teacher(encoder, 0.9)
    assert is_compiled(teacher.encoder)
    seen = teacher.encoder.eval()(torch.zeros(4, 3, 8, 4))
    assert counted.frame_count == 1
    torch.testing.assert_close(seen, small_encoder().eval()(torch.zeros(4, 3, 8, 4)))


def test_a_machine_that_cannot_compile_says_so_before_the_work():
    torch._dynamo.reset()
    said = r"torch compiles for cpu; came .*compiler.*; install a C\+\+ compiler .*compile=false"
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ConfigError, match=said):
        compile_encoder(small_encoder())


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler on this machine")
def test_what_torch_compiles_is_the_encoder(device):
    torch._dynamo.reset()
    found, wanted = small_encoder().to(device), small_encoder().to(device)
    compile_encoder(found)
    seen = torch.randn(8, 3, 8, 4, generator=torch.Generator().manual_seed(4)).to(device)
    pull = torch.arange(40.0, device=device).view(8, 5).cos()
    for encoder in (found, wanted):
        (encoder(seen) * pull).sum().backward()
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)

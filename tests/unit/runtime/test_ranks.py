"""Ranks that are started again add gradients up as those that were not."""

import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as mp

from gracl.learning.compiling import compile_encoder
from gracl.learning.encoder import Encoder
from gracl.runtime.ranks import TorchRanks

RANKS = 3  # of two ranks a sum is the same in either order


def encoder() -> Encoder:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 33, 3), torch.nn.BatchNorm2d(33)]
    layers += [layer for _ in range(4) for layer in (torch.nn.Conv2d(33, 33, 1), torch.nn.ReLU())]
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return Encoder(torch.nn.Sequential(*layers), pool, width=33, feature_size=21)


def gradients(learner: torch.nn.Module, rank: int) -> torch.Tensor:
    learner.train().zero_grad(set_to_none=True)
    images = torch.randn(8, 3, 8, 4, generator=torch.Generator().manual_seed(rank))
    learner(images)[:, 0].pow(2).sum().backward()
    return torch.cat([weight.grad.flatten().clone() for weight in learner.parameters() if weight.requires_grad])


def a_rank(rank: int, port: int, out: str, backend: str) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    mine = encoder()
    if backend:
        compile_encoder(mine, backend=backend)
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    learner = TorchRanks(rank, RANKS, height=8, width=4).parallel(mine)
    untouched = all(torch.equal(before[name], tensor) for name, tensor in mine.state_dict().items())
    clean = all(weight.grad is None for weight in mine.parameters())
    passes = graphs()
    found = [gradients(learner, rank) for _ in range(3)]
    if rank == 0:
        torch.save({"gradients": found, "untouched": untouched, "clean": clean, "graphs": [passes, graphs()]}, out)
    # Before the group ends, as in a training. Were the learner the last to hold the group, torch would wait for gloo's
    # threads with Python's lock in hand, which one of them may want: seen once, for good.
    del learner
    dist.destroy_process_group()


def graphs() -> int:
    """What torch's compiler has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def of_three_ranks(out: Path, backend: str) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(a_rank, args=(port, str(out), backend), nprocs=RANKS)
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


@pytest.mark.long
@pytest.mark.slow
def test_compiled_ranks_average_the_gradients_of_ranks_that_are_not(tmp_path: Path):
    plain, compiled = (of_three_ranks(tmp_path / f"found {backend}", backend) for backend in ("", "aot_eager"))
    assert plain["graphs"] == [0, 0]
    assert compiled["graphs"][0] == 0, "the pass that nobody learns from was compiled"
    assert compiled["graphs"][1] >= 1
    torch.testing.assert_close(compiled["gradients"][0], plain["gradients"][0], rtol=1e-3, atol=1e-6)
    assert torch.equal(compiled["gradients"][1], compiled["gradients"][2])


@pytest.mark.slow
def test_the_first_step_of_three_ranks_is_added_up_as_any_later_one(tmp_path: Path):
    found = of_three_ranks(tmp_path / "found", "")
    assert found["untouched"], "weights or running statistics moved before the first step"
    assert found["clean"]
    first, second, third = found["gradients"]
    assert first.abs().max() > 0
    assert torch.equal(first, second)
    assert torch.equal(second, third)

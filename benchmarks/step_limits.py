"""What a step is held against: a loop in the style of the peers, the device's rate of products, its kernels' share."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from gracl.learning.encoder import Encoder, build_encoder
from gracl.learning.pixels import normalise

PRODUCT = {"cuda": 8192, "cpu": 2048}
CLUSTERS, TEMPERATURE, MOMENTUM = 640, 0.05, 0.1


def peers(options: dict[str, Any], pictures: np.ndarray, device: torch.device) -> Callable[[int], int]:
    """Steps as the code of the family takes them; returns how many images it saw.

    Float32, pictures as floats from the host in each step, whole batches in batch norm, maps with the channels first, a
    group of the optimizer for each tensor, one bank whose rows are moved one by one, the loss read at each step; pinned
    pictures and cuDNN's search for the best kernels, as they have them. What they need to make the pictures is left
    out, as it is for ours. `options` are those of `build_encoder`.
    """
    encoder = build_encoder(**options).to(device)
    optimizer = torch.optim.Adam([{"params": [one]} for one in encoder.parameters() if one.requires_grad], lr=3.5e-4)
    floats = normalise(torch.from_numpy(pictures)).contiguous()
    if device.type == "cuda":
        floats = floats.pin_memory()
    labels = torch.arange(len(pictures)) * CLUSTERS // len(pictures)
    bank = F.normalize(torch.randn(CLUSTERS, encoder.feature_size), dim=1).to(device)

    @torch.backends.cudnn.flags(enabled=True, benchmark=True)
    def steps(number: int) -> int:
        encoder.train()
        for _ in range(number):
            seen, wanted = floats.to(device, non_blocking=True), labels.to(device)
            features = encoder(seen)
            loss = F.cross_entropy(features @ bank.T / TEMPERATURE, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for row, label in zip(features, wanted, strict=True):
                    bank[label] = MOMENTUM * bank[label] + (1 - MOMENTUM) * row
                    bank[label] /= bank[label].norm()
            loss.item()
        return number * len(pictures)

    return steps


def operations(encoder: Encoder, seen: torch.Tensor) -> float:
    """Multiplications and additions of the network, forward and backward, for one picture."""
    encoder.train()
    with FlopCounterMode(display=False) as counter:
        encoder(seen).sum().backward()
    encoder.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(seen)


def product_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second of a large product of matrices; on a GPU float32 in TF32, as torch's convolutions are."""
    torch.backends.cuda.matmul.allow_tf32, before = True, torch.backends.cuda.matmul.allow_tf32
    size = PRODUCT[device.type]
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    one @ other
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            one @ other
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += 4
    took = time.perf_counter() - began
    torch.backends.cuda.matmul.allow_tf32 = before
    return done * 2 * size**3 / took


def outside_kernels(steps: Callable[[int], int], number: int = 8) -> tuple[float, str]:
    """The share of the time of some steps in which a GPU ran no kernel and copied nothing, and the table of both."""
    steps(2)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        steps(number)
        torch.cuda.synchronize()
        took = time.perf_counter() - began
    averages = profiler.key_averages()
    on_card = (
        one for one in averages if one.device_type == DeviceType.CUDA and not getattr(one, "is_user_annotation", False)
    )
    busy = sum(one.self_device_time_total for one in on_card) / 1e6
    return 1 - busy / took, averages.table(sort_by="self_cuda_time_total", row_limit=25)

r"""The step and the scan alone, without data: images per second through the product's own functions, and their limit.

    python -m benchmarks.bench_step out=FILE.json seconds=4 pipelines/presets/market1501.yaml data.root=unused \
        scale.workers=1 scale.worker_gpus=1

Pictures are random bytes that lie in memory, so nothing here waits for a disk or a decoder. `train` is `train_epoch`
as a training calls it (move, encode, loss, backward, step, banks); `bare` is the same network forward, backward and
step on pictures that lie on the device, with the sum of its features as loss and no question to the device between
steps: what the hardware gives this network in torch. `scan` is `encode`, `bare_scan` its forward pass; `altering` makes
training views on the device (`scale.views_on=device`), which `train` here does not. The variants:
each precision, batch norm in groups and whole, with the batch of the preset; with `scale.compile=true` among the
arguments the network is compiled, and `bare` with it. `variants=1` stops after the first, bfloat16 in groups.

Beside them `peers`, a loop in the style of the family's code (`step_limits.py`), which is float32 whatever the variant,
and of what the device can do: `of_product`, the operations of `train` a second of those of a large product of matrices
in that precision, and on a GPU `outside_kernels`, the share of the time in which none ran; a table of its kernels is
written beside the file.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_epoch import machine
from benchmarks.step_limits import operations, outside_kernels, peers, product_rate
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.images.plans import identity_plan
from gracl.images.views import draw_augmentation
from gracl.learning.casting import autocast
from gracl.learning.encoder import build_encoder
from gracl.learning.encoding import encode
from gracl.learning.fit import train_epoch
from gracl.learning.pixels import augmented, normalise
from gracl.local import OneRank
from gracl.randomness import rng
from gracl.relations.proxies import mine_proxies
from gracl.runtime.train import describe_lesson
from gracl.runtime.worker import build
from gracl.types import Assignment, Augmentations, Batch

IMAGES, CLUSTERS = 12800, 640
VARIANTS = [(precision, group) for precision in ("bfloat16", "float32") for group in ([], ["encoder.bn_group=0"])]


def rate(work: Callable[[int], int], seconds: float, device: torch.device) -> float:
    """Images per second of `work(times)`, which returns how many images it saw; once to warm up, then long enough."""
    work(2)
    times, seen, took = 4, 0, 0.0
    while took < seconds:
        wait(device)
        started = time.perf_counter()
        seen = work(times)
        wait(device)
        took = time.perf_counter() - started
        times = int(times * min(8, max(2, 1.2 * seconds / took)))
    return seen / took


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def encoder_options(config: TrainConfig) -> dict[str, Any]:
    """The network of a config, with random weights and batch norm over the whole batch."""
    return {**config.encoder.options(), "weights": None, "bn_group": 0}


def variant(config: TrainConfig, seconds: float, *, with_peers: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """Images a second, and what they are held against."""
    device = torch.device("cuda" if config.scale.worker_gpus else "cpu")
    torch.set_num_threads(config.scale.worker_threads)
    lesson = describe_lesson(config)
    encoder, criterion, optimizer = build(lesson, device)
    casting, size = autocast(device, config.precision), (config.data.height, config.data.width, 3)
    draw = rng(0, "bench-step")
    labels = (np.arange(IMAGES) % CLUSTERS).astype(np.int64)
    rows = draw.standard_normal((IMAGES, encoder.feature_size), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    criterion.begin_epoch(Assignment(0, labels, mine_proxies(rows, labels)), device)
    plan = identity_plan(labels, epoch=0, **lesson.sampling)
    batch = plan.tickets.shape[1]
    pictures = draw.integers(0, 256, (batch, *size), np.uint8)
    scanned = draw.integers(0, 256, (config.scan_batch, *size), np.uint8)
    there = normalise(torch.from_numpy(pictures).to(device))
    there_scanned = normalise(torch.from_numpy(scanned).to(device))

    def picks(steps: int) -> Iterator[Batch]:
        for step in range(steps):
            yield Batch(step, 0, plan.tickets[step % len(plan.tickets)], pictures)

    def train(steps: int) -> int:
        tickets = torch.from_numpy(plan.tickets[np.arange(steps) % len(plan.tickets)])
        train_epoch(encoder, criterion, optimizer, picks(steps), tickets, OneRank(), casting, 0.0, lambda *_: None)
        return steps * batch

    def bare(steps: int) -> int:
        encoder.train()
        for _ in range(steps):
            with casting:
                loss = encoder(there).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return steps * batch

    def scan(steps: int) -> int:
        indices = np.arange(config.scan_batch)
        encode(encoder, (Batch(step, 0, indices, scanned) for step in range(steps)), casting, lambda done: None)
        return steps * config.scan_batch

    @torch.inference_mode()
    def bare_scan(steps: int) -> int:
        encoder.eval()
        for _ in range(steps):
            with casting:
                encoder(there_scanned)
        return steps * config.scan_batch

    drawn = [draw_augmentation(draw, height=size[0], width=size[1]) for _ in range(batch)]
    augmentations = Augmentations.of(drawn)
    plain = torch.from_numpy(pictures).to(device)

    def altering(steps: int) -> int:
        for _ in range(steps):
            augmented(plain, augmentations)
        return steps * batch

    ways = {"train": train, "bare": bare, "scan": scan, "bare_scan": bare_scan, "altering": altering}
    found = {name: round(rate(work, seconds, device), 1) for name, work in ways.items()}
    most = round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None
    if with_peers:
        found["peers"] = round(rate(peers(encoder_options(config), pictures, device), seconds, device), 1)
    half = config.precision == "bfloat16"
    product = product_rate(device, torch.bfloat16 if half else torch.float32)
    flops = operations(build_encoder(**encoder_options(config)).to(device), there[:4])
    told: dict[str, Any] = {"gflop_an_image": round(flops / 1e9, 2), "product_tflops": round(product / 1e12, 3)}
    told["of_product"] = round(found["train"] * flops / product, 3)
    if device.type == "cuda":
        told["gpu_gb"] = most
        share, told["kernels"] = outside_kernels(train)
        told["outside_kernels"] = round(share, 3)
    return found, told


def main() -> None:
    """One JSON line for each variant, and all of them in a file."""
    names = ("out=", "seconds=", "variants=")
    own = dict(argument.split("=", 1) for argument in sys.argv[1:] if argument.startswith(names))
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith(names)]
    found: list[dict[str, Any]] = []
    peers_rate = 0.0
    for precision, group in VARIANTS[: int(own.get("variants", len(VARIANTS)))]:
        config = load_config(TrainConfig, [*arguments, f"precision={precision}", *group])
        figures, told = variant(config, float(own.get("seconds", 4)), with_peers=not found)
        kernels, peers_rate = told.pop("kernels", None), peers_rate or figures["peers"]
        one = {"precision": precision, "bn_group": config.encoder.bn_group, "images_per_second": figures}
        one |= told | {
            "train_of_peers": round(figures["train"] / peers_rate, 3),
            "train_of_bare": round(figures["train"] / figures["bare"], 3),
            "scan_of_bare": round(figures["scan"] / figures["bare_scan"], 3),
        }
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(json.dumps(one), flush=True)
        found.append(one)
        if kernels:
            Path(f"{own['out']}.{precision}_{config.encoder.bn_group}.txt").write_text(kernels)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    report = {"what": "step and scan without data", "machine": machine(), "card": card, "arguments": arguments}
    Path(own["out"]).write_text(json.dumps(report | {"variants": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

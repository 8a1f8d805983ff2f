"""How should maps lie in memory on a CPU, channels last or channels first? Images per second of both, by turns.

    python -m benchmarks.bench_maps out=FILE.json rounds=5

`train` is a forward and a backward pass of an encoder with batch norm in groups of 16, `scan` a forward pass; the
median over the rounds, each of which takes one form after the other. Ours lie with the channels last, as pictures do.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_epoch import machine
from gracl.learning.casting import autocast
from gracl.learning.encoder import build_encoder

GROUP = 16
FORMS = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}
CASES = [
    ("resnet18", 64, 32, 64, "float32"),
    ("resnet18", 128, 64, 64, "float32"),
    ("resnet18", 256, 128, 32, "float32"),
    ("resnet50", 128, 64, 32, "float32"),
    ("mobilenet_v2", 128, 64, 64, "float32"),
    ("resnet18", 128, 64, 64, "bfloat16"),
    ("resnet50", 128, 64, 32, "bfloat16"),
]


def by_turns(work: Callable[[Tensor], object], forms: dict[str, Tensor], rounds: int) -> dict[str, float]:
    """Images per second of each form; once before to warm up."""
    took: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, images in forms.items():
            began = time.perf_counter()
            work(images)
            if number:
                took[name].append(time.perf_counter() - began)
    return {name: round(len(forms[name]) / statistics.median(times), 1) for name, times in took.items()}


def compared(backbone: str, height: int, width: int, rows: int, precision: str, rounds: int) -> dict[str, Any]:
    """Both forms, in training and in a scan, for one encoder and size of pictures."""
    encoder = build_encoder(backbone=backbone, bn_group=GROUP)
    casting = autocast(torch.device("cpu"), precision)
    images = torch.randn(rows, 3, height, width)
    forms = {name: images.contiguous(memory_format=form) for name, form in FORMS.items()}

    def train(seen: Tensor) -> None:
        encoder.train().zero_grad(set_to_none=True)
        with casting:
            loss = encoder(seen).sum()
        loss.backward()

    @torch.inference_mode()
    def scan(seen: Tensor) -> None:
        encoder.eval()
        with casting:
            encoder(seen)

    found: dict[str, Any] = {"backbone": backbone, "height": height, "width": width, "rows": rows}
    found |= {"precision": precision, "threads": torch.get_num_threads()}
    for name, work in {"train": train, "scan": scan}.items():
        rates = by_turns(work, forms, rounds)
        found[name] = rates | {"last_of_first": round(rates["channels_last"] / rates["channels_first"], 3)}
    return found


def main() -> None:
    """One JSON line for each case and number of threads, and all of them in a file."""
    asked = dict(one.split("=", 1) for one in sys.argv[1:])
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for case in CASES:
            found.append(compared(*case, rounds=int(asked["rounds"])))
            print(json.dumps(found[-1]), flush=True)
    report = {"what": "maps with the channels last and first, on a CPU", "machine": machine(), "bn_group": GROUP}
    report |= {"rounds": int(asked["rounds"]), "cases": found}
    Path(asked["out"]).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

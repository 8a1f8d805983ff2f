"""What a state within an epoch costs: its size, the seconds in which all ranks wait for it, the seconds to take it up.

    python -m benchmarks.bench_midway out=FILE.json images=12936 clusters=700 repeats=5 \
        pipelines/presets/market1501.yaml data.root=unused

The state is that of a run with this config: weights, optimizer after a step, teacher where there is one, banks of so
many clusters, labels of so many images. It is written as a run writes it, into a temporary folder of this disk.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench_epoch import machine
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.learning.checkpoint import Midway, TrainState, load_state, save_state
from gracl.learning.teacher import Teacher
from gracl.randomness import rng
from gracl.relations.proxies import mine_proxies
from gracl.runtime.train import describe_lesson
from gracl.runtime.worker import build
from gracl.types import Assignment

STEPS = 400


def state_of(config: TrainConfig, images: int, clusters: int) -> TrainState:
    """A state after `STEPS` steps of an epoch, one of which was really taken: the optimizer has all that it keeps."""
    lesson = describe_lesson(config)
    encoder, criterion, optimizer = build(lesson, torch.device("cpu"))
    teacher = Teacher(encoder, config.teacher_decay) if config.teacher_decay else None
    draw = rng(0, "bench-midway")
    labels = (np.arange(images) % clusters).astype(np.int64)
    rows = draw.standard_normal((images, encoder.feature_size), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assignment = Assignment(0, labels, mine_proxies(rows, labels))
    criterion.begin_epoch(assignment, torch.device("cpu"))
    pictures = torch.from_numpy(draw.standard_normal((16, 3, config.data.height, config.data.width), np.float32))
    encoder.train()(pictures).sum().backward()
    optimizer.step()
    midway = Midway(STEPS, assignment, criterion.moved(), torch.zeros(1, STEPS, 5), {"train": 1.0})
    return TrainState.fresh(encoder, config.flat(), height=config.data.height, width=config.data.width).within(
        midway,
        encoder=encoder,
        optimizer=optimizer,
        teacher=teacher.encoder if teacher else None,
    )


def seconds_of(work: Any) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measures, prints and writes."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:5])
    if {*options} != {"out", "images", "clusters", "repeats"}:
        raise SystemExit(f"expected out=, images=, clusters= and repeats= first; came {' '.join(sys.argv[1:5])}")
    config = load_config(TrainConfig, sys.argv[5:])
    images, clusters = int(options["images"]), int(options["clusters"])
    facts, state = machine(), state_of(config, images, clusters)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        # The first of each pays for a cold allocator.
        writing = [seconds_of(lambda: save_state(state, place)) for _ in range(int(options["repeats"]) + 1)][1:]
        reading = [seconds_of(lambda: load_state(place)) for _ in range(int(options["repeats"]) + 1)][1:]
        size = (place / "state.pt").stat().st_size
    found = {
        "what": "a state within an epoch: written (flushed to the disk) while all ranks wait, and read again",
        "machine": facts,
        "images": images,
        "clusters": clusters,
        "megabytes": round(size / 1e6, 1),
        "write_s": round(statistics.median(writing), 3),
        "read_s": round(statistics.median(reading), 3),
        "writes_s": [round(one, 3) for one in writing],
        "share_of_15_minutes": round(statistics.median(writing) / 900, 6),
        "config": config.flat(),
    }
    Path(options["out"]).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "config"}))


if __name__ == "__main__":
    main()

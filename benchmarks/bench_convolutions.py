"""Are a CPU's convolutions in bfloat16 right? Drawn at random, held against float32, by plain autocast and by ours.

    python -m benchmarks.bench_convolutions out=FILE.json draws=4000 seed=0

Before each the freed memory is filled with NaN, so that a place which the library leaves unwritten is seen. Wrong is a
map, a gradient of the maps or one of the weights that is off by more than a twentieth of its largest value, in one of
three tries. Counted by whether the stride is above 1 and the maps come out one place wide, which is the kind that
docs/decisions/0029 is about; anything else that is wrong is listed.
"""

import json
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_epoch import machine
from gracl.learning.casting import autocast
from gracl.randomness import rng

WRONG, TRIES = 0.05, 3
PARTS = ("maps", "gradient of the maps", "gradient of the weights")


def draw(dice: np.random.Generator) -> dict[str, Any]:
    """One convolution; of the sizes of small maps, where kernels for few places are taken."""
    kernel, wide = int(dice.choice([1, 3, 3, 5, 7])), int(dice.choice([3, 16, 32, 64, 128, 256]))
    depthwise = bool(dice.random() < 0.2)
    return {
        "kernel": kernel,
        "stride": int(dice.choice([1, 2, 2, 3])),
        "groups": wide if depthwise else 1,
        "channels": (wide, wide if depthwise else int(dice.choice([16, 32, 64, 128, 256]))),
        "size": (int(dice.choice([1, 2, 3, 4, 5, 8, 16])), int(dice.choice([1, 2, 3, 4, 5, 6, 8, 16]))),
        "rows": int(dice.choice([1, 2, 4, 8, 16, 24])),
    }


def soil(*sizes: int) -> None:
    """Leaves freed memory full of what is no number."""
    for size in sizes:
        torch.full((8, size), float("nan"), dtype=torch.bfloat16).sum()


def learnt(case: dict[str, Any], maps: Tensor, weight: Tensor, casting: AbstractContextManager[object]) -> Any:
    """Maps and both gradients, with the number of places across."""
    inputs = [maps.clone().requires_grad_(), weight.clone().requires_grad_()]
    how = {"stride": case["stride"], "padding": case["kernel"] // 2, "groups": case["groups"]}
    soil(maps.numel(), weight.numel())
    with casting:
        seen = F.conv2d(*inputs, **how)
    soil(maps.numel(), weight.numel())
    seen.float().sum().backward()
    return seen.shape[-1], [seen.detach().float(), *(one.grad for one in inputs)]


def wrong(seen: list[Tensor], true: list[Tensor]) -> list[str]:
    """Which of the three are."""
    off = [(one - other).abs().nan_to_num(torch.inf).max() for one, other in zip(seen, true, strict=True)]
    limits = [WRONG * other.abs().max() for other in true]
    return [part for part, far, limit in zip(PARTS, off, limits, strict=True) if far > limit]


def main() -> None:
    """Writes what was wrong how often, and prints it."""
    asked = dict(one.split("=", 1) for one in sys.argv[1:])
    torch.set_num_threads(1)
    ways = {"autocast": torch.autocast("cpu", torch.bfloat16), "ours": autocast(torch.device("cpu"), "bfloat16")}
    drawn: Counter[str] = Counter()
    bad: dict[str, Counter[str]] = {way: Counter() for way in ways}
    others = []
    for number in range(int(asked["draws"])):
        dice = rng(int(asked["seed"]), "convolutions", number)
        case = draw(dice)
        of, to = case["channels"]
        maps = torch.from_numpy(dice.standard_normal((case["rows"], of, *case["size"]), np.float32))
        shape = (to, of // case["groups"], case["kernel"], case["kernel"])
        weight = torch.from_numpy(dice.standard_normal(shape, np.float32)) * 0.1
        maps, weight = maps.bfloat16().float(), weight.bfloat16().float()
        across, true = learnt(case, maps, weight, nullcontext())
        narrow = across == 1 and case["stride"] > 1 and case["kernel"] > 1 and case["groups"] == 1
        kind = "one place wide, stride above 1" if narrow else "any other"
        drawn[kind] += 1
        for way, casting in ways.items():
            found = {part for _ in range(TRIES) for part in wrong(learnt(case, maps, weight, casting)[1], true)}
            bad[way].update(f"{kind}: {part}" for part in [*found, *(["any of them"] if found else [])])
            if found and not narrow:
                others.append({"way": way, **case, "wrong": sorted(found)})
    facts = {**machine(), **asked, "drawn": drawn, "wrong": bad, "others": others}
    Path(asked["out"]).write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({"drawn": drawn, "wrong": bad, "others": len(others)}))


if __name__ == "__main__":
    main()

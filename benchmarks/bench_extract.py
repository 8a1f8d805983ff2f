"""What extract brings of the rate of its model alone, once it is warm: the same encoder, batch and threads.

python -m benchmarks.bench_extract root=shards/w256 split=train backbone=resnet50 out=FILE.json
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gracl.cli import load_config
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.learning.checkpoint import TrainState, load_encoder, save_state
from gracl.learning.encoder import build_encoder
from gracl.learning.pixels import normalise
from gracl.runtime.extract import extract
from gracl.uses import ExtractConfig

BATCH, SECONDS, ROUNDS = 32, 20.0, 3
VIEW = {"height": 256, "width": 128}


def bare(checkpoint: str, root: str, split: str) -> float:
    """Images a second of the model alone: one batch, again and again."""
    torch.set_num_threads(1)
    encoder, view = load_encoder(checkpoint)
    store = ShardStore.open(root, split)
    pictures = [eval_view(image, height=view["height"], width=view["width"]) for image in store.read(np.arange(BATCH))]
    batch = torch.stack([torch.from_numpy(picture.copy()) for picture in pictures])
    with torch.inference_mode():
        encoder(normalise(batch))
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < SECONDS:
            encoder(normalise(batch))
            done += BATCH
    return done / (time.perf_counter() - begun)


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if {*options} != {"root", "split", "backbone", "out"}:
        raise SystemExit(f"expected root=, split=, backbone= and out=; came {' '.join(sys.argv[1:])}")
    root, split = options["root"], options["split"]
    found: dict[str, Any] = {"backbone": options["backbone"], "view": VIEW, "batch": BATCH, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="gr-") as folder:
        encoder = build_encoder(backbone=options["backbone"], feature_size=512)
        save_state(TrainState(1, encoder.state_dict(), {}, None, None, {}, encoder.options, VIEW), folder)
        found["load_before"] = os.getloadavg()
        asked = {"checkpoint": folder, "data.root": root, "split": split, "batch": BATCH}
        asked |= {"part": 2 * BATCH, "precision": "float32", "scale.decode_threads": 1}
        rates = [bare(folder, root, split)]  # before and after each, for a machine that is not always the same
        shares = []
        for turn in range(ROUNDS):
            settings = [f"{name}={value}" for name, value in (asked | {"out": f"{folder}/{turn}"}).items()]
            result = extract(load_config(ExtractConfig, settings))
            rates.append(bare(folder, root, split))
            shares.append(result["images_per_second"] / (0.5 * (rates[-2] + rates[-1])))
            found["images"] = result["images"]
            found.setdefault("extract_per_s", []).append(result["images_per_second"])
    found |= {"bare_per_s": [round(rate, 2) for rate in rates], "share": [round(share, 3) for share in shares]}
    found["share_middle"] = round(sorted(shares)[ROUNDS // 2], 3)
    Path(options["out"]).write_text(json.dumps(found, indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

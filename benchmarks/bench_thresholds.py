"""What thresholds are worth that were calibrated on clusters: rates of false and true matches on query and gallery.

Identities are read here, which no door does.

    python -m benchmarks.bench_thresholds checkpoint=runs/first/epoch-0010 data.root=shards/world out=FILE.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gracl.embedding import Description
from gracl.images.shards import ShardStore
from gracl.learning.casting import autocast
from gracl.learning.checkpoint import load_encoder
from gracl.retrieval.calibration import Calibration


def measured(checkpoint: str, root: str) -> dict[str, Any]:
    encoder, view = load_encoder(checkpoint)
    describe = Description(encoder, view, 64, 2, autocast(torch.device("cpu"), "float32"))
    kept = Calibration.from_json(Path(checkpoint, "calibration.json").read_bytes(), checkpoint)
    stores = [ShardStore.open(root, split) for split in ("query", "gallery")]
    sides = [describe(store.read, len(store)).features for store in stores]
    who = [store.identities() for store in stores]
    similarities = sides[0] @ sides[1].T
    same = who[0].object_ids[:, None] == who[1].object_ids
    elsewhere = who[0].camera_ids[:, None] != who[1].camera_ids
    best = np.where(same, -1.0, similarities).max(axis=1)
    lines = [
        {
            "rate": point.rate,
            "similarity": point.similarity,
            "false_matches": float((similarities[~same] >= point.similarity).mean()),
            "true_matches": float((similarities[same] >= point.similarity).mean()),
            "true_matches_of_other_cameras": float((similarities[same & elsewhere] >= point.similarity).mean()),
            "queries_with_a_false_match": float((best >= point.similarity).mean()),
        }
        for point in kept.points
    ]
    return {"queries": len(stores[0]), "gallery": len(stores[1]), "clusters": kept.clusters, "points": lines}


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if {*options} != {"checkpoint", "data.root", "out"}:
        raise SystemExit(f"expected checkpoint=, data.root= and out=; came {' '.join(sys.argv[1:])}")
    found = measured(options["checkpoint"], options["data.root"])
    Path(options["out"]).write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

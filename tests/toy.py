"""The toy run that several tests share: small enough for seconds, real enough to have clusters."""

from typing import Any

from gracl.cli import load_config
from gracl.config import TrainConfig

TOY = {
    "data.height": 32,
    "data.width": 16,
    "views.pad": 2,
    "sampling.objects": 4,
    "sampling.images_per_object": 4,
    "sampling.steps": 4,
    "relations.k1": 8,
    "relations.k2": 3,
    "relations.eps": 0.7,
    "relations.min_samples": 2,
    "encoder.backbone": "resnet18",
    "encoder.bn_group": 8,
    "epochs": 3,
    "eval_every": 2,
    "scan_batch": 64,
    "scale.worker_cpus": 0.5,
    "scale.relation_cpus": 0.5,
}


def toy_config(root: str, runs: object = "runs", **changes: Any) -> TrainConfig:
    """The toy run on shards at `root`; changes by dotted name with '__' for the dot."""
    settings = {**TOY, "data.root": root, "runs": str(runs)}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(TrainConfig, [f"{name}={value}" for name, value in settings.items()])

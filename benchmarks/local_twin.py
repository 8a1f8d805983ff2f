"""Runs a training config in one process through `gracl.local`, without Ray Train, stream or actor.

The reference of the parity tests and of `bench_epoch.py`, and the only place where true identities may stand for
labels (`labels="true"`): the ceiling that an unsupervised run is compared with. The product has no such switch.

    python -m benchmarks.local_twin [--true-identities] preset.yaml [section.key=value ...]
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from gracl import local
from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import TrainState
from gracl.learning.fit import Splits
from gracl.relations.proxies import mine_proxies
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.train import describe_lesson
from gracl.runtime.worker import build, rate_at
from gracl.types import Assignment, EpochReport, FeatureTable


class TrueRelator(local.DirectRelator):
    """Gives the true identities of the train split instead of clusters: a diagnostic, never a method."""

    def __init__(self, images: int, *, true: np.ndarray, **options: Any) -> None:
        super().__init__(images, **options)
        self._true, self._all = np.unique(true, return_inverse=True)[1].astype(np.int64), images

    def relate(self, epoch: int, part: FeatureTable, previous: np.ndarray | None = None) -> Assignment:
        """True labels with proxies mined as ever."""
        features = FeatureTable.gather([part], self._all)
        return Assignment(epoch, self._true, mine_proxies(features, self._true))


def learn(
    config: TrainConfig,
    *,
    labels: Literal["clusters", "true"] = "clusters",
    reporter: Callable[[EpochReport, TrainState], None] = lambda report, state: None,
    state: TrainState | None = None,
    kind: Callable[..., local.DirectRelator] = local.DirectRelator,
    keeper: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    """Trains `config` in this process with the threads that one Ray worker would have; `kind` makes the relator."""
    torch.set_num_threads(config.scale.worker_threads)
    lesson = describe_lesson(config)
    device = torch.device("cuda" if config.scale.worker_gpus else "cpu")
    encoder, criterion, optimizer = build(lesson, device)
    data, root = config.data, storage.absolute(config.data.root)
    names = [name for name in (data.train, data.query, data.gallery) if name]
    stores = {name: ShardStore.open(root, name, cache=data.cache) for name in names}
    if state is None and config.start:
        state = load_run_state(config.start).elsewhere(config.recipe(), height=data.height, width=data.width)
    fresh = TrainState.fresh(encoder, config.recipe(), height=data.height, width=data.width)
    splits = Splits(data.train, data.query, data.gallery)
    relations = config.relations.options() | {
        "threads": config.scale.relation_threads,
        "device": "cuda" if config.scale.relation_gpus else "cpu",
    }
    if labels == "true":
        kind = partial(TrueRelator, true=stores[data.train].identities().object_ids)
    cameras = None
    if config.cameras_from == "surroundings":
        size = {"height": data.height, "width": data.width}
        how = config.surroundings.options() | {"seed": config.seed, "threads": config.scale.decode_threads}
        cameras = local.surroundings_of(stores[data.train], **size, **how)
    return local.fit(
        stores,
        encoder=encoder,
        criterion=criterion,
        optimizer=optimizer,
        state=state or fresh,
        rate=rate_at(lesson),
        splits=splits,
        height=data.height,
        width=data.width,
        views=config.views.options(),
        sampling=config.sampling.options(),
        relator=local.direct_relator(stores, splits, relations, cameras=cameras, kind=kind),
        camera_balanced=config.camera_balanced,
        cameras=cameras,
        scan_batch=config.scan_batch,
        decode_threads=config.scale.decode_threads,
        views_on=config.scale.views_on,
        seed=config.seed,
        reporter=reporter,
        keeper=keeper,
        **lesson.fit,
    )


def main() -> None:
    """Prints one line an epoch on stderr, and the history as one JSON line."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--true-identities"]
    config = load_config(TrainConfig, arguments)
    started = time.perf_counter()

    def report(done: EpochReport, state: TrainState) -> None:
        figures = {name: round(value, 4) for name, value in done.metrics().items()}
        print(f"{time.perf_counter() - started:.0f}s {figures}", file=sys.stderr, flush=True)

    labels: Literal["clusters", "true"] = "true" if "--true-identities" in sys.argv else "clusters"
    state = learn(config, labels=labels, reporter=report)
    print(json.dumps({"labels": labels, "seconds": time.perf_counter() - started, "history": state.history}))


if __name__ == "__main__":
    main()

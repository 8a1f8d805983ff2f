"""The features of a split of shards, described by as many Ray actors as asked for.

No Ray Train here: nothing is learnt, so chunks of the split can go to whoever is free, and a lost actor's chunk is
simply described again.
"""

from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray.util import ActorPool

from gracl.config import TrainConfig
from gracl.embedding import Description
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.manifests import read_manifest
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.learning.encoder import Encoder
from gracl.runtime.checkpoints import load_model
from gracl.runtime.progress import Progress
from gracl.runtime.session import Demand, refusals
from gracl.runtime.waiting import too_long
from gracl.sections import Crew, Place
from gracl.types import FeatureTable, Plan
from gracl.uses import ModelConfig

CHUNK_TICKETS = 8


class Describer:
    """An encoder that lives on some node and describes chunks of a split.

    Args:
        checkpoint: URI of the model's folder.
        root, split, cache: of the shards.
        batch: images at a time.
        flip: describe mirror images, too.
        plain: give the plain features, also beside flip-averaged ones.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        root: str,
        split: str,
        cache: str | None,
        batch: int,
        precision: str,
        threads: int,
        decode_threads: int,
        flip: bool = False,
        plain: bool = True,
    ) -> None:
        torch.set_num_threads(threads)
        encoder, view = load_model(checkpoint)
        self._describe = Description.of(
            encoder,
            view,
            batch=batch,
            threads=decode_threads,
            device="cuda" if ray.get_gpu_ids() else "cpu",
            precision=precision,
            flip=flip,
        )
        self._store = ShardStore.open(root, split, cache=cache)
        self._plan = scan_plan(len(self._store), batch)
        self._first = 1 if flip and not plain else 0

    def describe(self, chunk: tuple[int, int]) -> tuple[FeatureTable, ...]:
        """The features of the tickets from `chunk[0]` up to `chunk[1]` of the split's scan: plain, flip-averaged."""
        plan = Plan(epoch=0, tickets=self._plan.tickets[chunk[0] : chunk[1]])
        return self._describe.tables(self._store.read, plan)[self._first :]


def describe_split(
    config: ModelConfig, data: Place, split: str, *, plain: bool = True
) -> Iterator[tuple[FeatureTable, ...]]:
    """The features of a split in parts, in whatever order they come, with progress on the terminal.

    Each part holds the plain features and, with `config.flip`, the flip-averaged ones after them; without `plain` these
    alone.

    Raises:
        ImageError, ShardError, CheckpointError: from the actors, as they raised it.
    """
    scale, root = config.scale, storage.absolute(data.root)
    images = read_manifest(root, split).num_images
    tickets = -(-images // config.batch)
    size = min(CHUNK_TICKETS, -(-tickets // scale.workers))
    chunks = [(first, min(first + size, tickets)) for first in range(0, tickets, size)]
    remote = ray.remote(max_restarts=2, max_task_retries=2)(Describer)
    actors = [
        remote.options(num_cpus=scale.worker_cpus, num_gpus=scale.worker_gpus).remote(
            storage.absolute(config.checkpoint),
            root=root,
            split=split,
            cache=near(data.cache),
            batch=config.batch,
            precision=config.precision,
            threads=scale.worker_threads,
            decode_threads=scale.decode_threads,
            flip=config.flip,
            plain=plain,
        )
        for _ in range(min(scale.workers, len(chunks)))
    ]
    progress = Progress(f"describe {split}", images)
    with refusals():
        pool = ActorPool(actors)
        for chunk in chunks:
            pool.submit(lambda actor, chunk: actor.describe.remote(chunk), chunk)
        while pool.has_next():
            part = _next(pool, split, scale.wait_s)
            progress(len(part[0].indices))
            yield part


def _next(pool: ActorPool, split: str, limit: float) -> Any:
    try:
        return pool.get_next_unordered(timeout=limit)
    except TimeoutError:  # how Ray's pool says it; an error of ours that a worker raises is no such one
        advice = "look who holds the cluster's nodes, or raise scale.wait_s"
        raise too_long(f"the next part of {split} described", limit, advice) from None


def describe_train(config: TrainConfig, checkpoint: str) -> Iterator[FeatureTable]:
    """The features of a run's train split by one of its checkpoints, in parts, with what its ranks reserved."""
    model = ModelConfig(
        checkpoint=checkpoint,
        batch=config.scan_batch // config.scale.workers,
        precision=config.precision,
        scale=Crew(**{name: getattr(config.scale, name) for name in Crew.model_fields}),
    )
    return (plain for (plain,) in describe_split(model, config.data, config.data.train))


def check(config: ModelConfig, data: Place, splits: list[str]) -> tuple[Encoder, dict[str, int]]:
    """The checkpoint's encoder and the size it wants; refuses what cannot be run before Ray starts."""
    root = storage.absolute(data.root)
    for split in splits:
        if not storage.exists(storage.join(root, split, "manifest.json")):
            raise ConfigError(
                expected(f"a split named {split!r} in {root}", f"splits {storage.names_in(root)}", "see data.root")
            )
        read_manifest(root, split)
    return load_model(storage.absolute(config.checkpoint))


def near(cache: str | None) -> str | None:
    """A node-local folder as every process of the node will find it."""
    return storage.absolute(cache) if cache else None


def demand(scale: Crew) -> Demand:
    """What describing holds of the cluster at one time."""
    return Demand(
        cpus=scale.workers * scale.worker_cpus,
        gpus=scale.workers * scale.worker_gpus,
        parts=f"{scale.workers} workers",
        waits=scale.autoscaling,
    )

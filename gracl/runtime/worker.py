"""One rank: builds model and loss, and wires the epoch of `learning/fit.py` to stream, actor and checkpoints."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import ray.train.torch
import torch
from jaxtyping import Int64
from numpy import ndarray
from ray import ObjectRef
from ray.train.collective import broadcast_from_rank_zero

from gracl.errors import CheckpointError, GraclError, StorageError, WaitedTooLong
from gracl.images import storage
from gracl.images.batches import MappedBatches
from gracl.images.cache import default_cache
from gracl.images.pixel_files import PixelFile
from gracl.images.plans import identity_plan
from gracl.images.views import draw_augmentation, eval_view, train_view
from gracl.learning.checkpoint import TrainState, load_state, save_state
from gracl.learning.compiling import compile_encoder
from gracl.learning.determinism import be_deterministic
from gracl.learning.encoder import Encoder, build_encoder
from gracl.learning.epoch_report import STEP_LOSSES
from gracl.learning.fit import Batches, Splits, fit
from gracl.learning.guarded import GuardedRelator
from gracl.learning.guards import Study
from gracl.learning.losses import ProxyContrast
from gracl.learning.optim import build_optimizer, rate_factor
from gracl.runtime.board import silent, throttled
from gracl.runtime.checkpoints import epoch_folder, load_run_state
from gracl.runtime.midway import going_on, keep_midway
from gracl.runtime.nodes import SYSTEM, NodeMonitor
from gracl.runtime.ranks import TorchRanks
from gracl.runtime.relator import RayRelator
from gracl.runtime.scratch import scratch
from gracl.runtime.stream import STREAM, StreamBatches, open_store
from gracl.runtime.waiting import BOARD_S, OBJECT_S, answer_of
from gracl.types import EpochReport, Plan


@dataclass(frozen=True)
class Source:
    """Where a run's images are and how they are seen and brought.

    `sizes` has the images of each split and `digests` their manifests', by name; `train` is the split that plans pick
    from.
    """

    root: str
    cache: str | None
    sizes: Mapping[str, int]
    digests: Mapping[str, str]
    train: str
    height: int
    width: int
    scan_batch: int
    stream: str = "ray"
    views: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    decode_threads: int = 2
    keep_pixels: bool | Literal["auto"] = False
    views_on: Literal["cpu", "device"] = "cpu"


@dataclass(frozen=True)
class Lesson:
    """What is learnt and how: plain keyword values for the functions of `learning/` and `images/plans.py`."""

    encoder: Mapping[str, Any]
    loss: Mapping[str, Any]
    optim: Mapping[str, Any]
    schedule: Mapping[str, Any]
    sampling: Mapping[str, Any]
    fit: Mapping[str, Any]
    seed: int
    cameras: list[ObjectRef] | None = None
    compile: bool = False


@dataclass(frozen=True)
class Job:
    """All that a rank is told; `folder` is the run's."""

    source: Source
    lesson: Lesson
    splits: Splits
    board: Any
    relation_actor: Any
    judged_by: list[ObjectRef]
    threads: int
    recipe: Mapping[str, Any]
    wait_s: float
    folder: str
    deterministic: bool
    start: str | None = None
    precision: str = "float32"


def build(lesson: Lesson, device: torch.device) -> tuple[Encoder, ProxyContrast, torch.optim.Optimizer]:
    """Encoder, loss and optimizer of a lesson; the same on every rank and in `gracl.local`."""
    encoder = build_encoder(**lesson.encoder, seed=lesson.seed).to(device)
    if lesson.compile:
        compile_encoder(encoder)
    return encoder, ProxyContrast(**lesson.loss), build_optimizer(encoder.parameters(), **lesson.optim)


def plan_picks(
    lesson: Lesson, cameras: Int64[ndarray, "images"] | None
) -> Callable[[int, Int64[ndarray, "images"]], Plan]:
    """The planner of a lesson: (epoch, labels) -> plan."""
    return lambda epoch, labels: identity_plan(
        labels, epoch=epoch, cameras=cameras, seed=lesson.seed, **lesson.sampling
    )


def rate_at(lesson: Lesson) -> Callable[[int], float]:
    """The learning rate of each epoch."""
    return lambda epoch: lesson.optim["rate"] * rate_factor(epoch, **lesson.schedule)


def train_worker(job: Job) -> None:
    """The function that Ray Train runs on every rank.

    A refusal of ours (`GraclError`) would come back after a restart, so it is posted on the board for the driver, and
    the group that Ray restarts ends at once. A store that does not answer may answer then, and what was waited for may
    come, so these are no such refusals.
    """
    if answer_of(job.board.refusal.remote(), "the board's answer", BOARD_S) is not None:
        return
    try:
        _train(job)
    except (StorageError, WaitedTooLong):
        raise
    except GraclError as error:
        answer_of(job.board.refuse.remote(error), "the board's answer", BOARD_S)
        raise


def _train(job: Job) -> None:
    context = ray.train.get_context()
    view = {"height": job.source.height, "width": job.source.width}
    ranks = TorchRanks(context.get_world_rank(), context.get_world_size(), **view)
    torch.set_num_threads(job.threads)
    if job.deterministic:
        be_deterministic()
    study = Study(job.folder, storage.write_bytes)
    device = ray.train.torch.get_device()
    state = resumed() or started(job)
    # Whoever has a state needs the first weights no more, and their file may be gone.
    first = {"weights": None} if state else {}
    encoder, criterion, optimizer = build(replace(job.lesson, encoder={**job.lesson.encoder, **first}), device)
    progress = throttled(job.board) if ranks.rank == 0 else silent
    seen = job.lesson.cameras
    cameras = answer_of(seen[0], "the cameras of the train split", OBJECT_S) if seen else None
    monitor = NodeMonitor(f"node{context.get_node_rank()}") if context.get_local_rank() == 0 else None
    fit(
        going_on(job.board, job.folder, state or TrainState.fresh(encoder, job.recipe, **view), ranks.rank),
        encoder=encoder,
        criterion=criterion,
        optimizer=optimizer,
        batches=open_batches(job.source, job.board, ranks, wait_s=job.wait_s),
        relator=GuardedRelator(open_relator(job, ranks), study, ranks.rank),
        ranks=ranks,
        planner=plan_picks(job.lesson, cameras),
        rate=rate_at(job.lesson),
        reporter=partial(report_epoch, ranks.rank, partial(observed, monitor, ranks)),
        keeper=partial(keep_midway, job.folder, ranks.rank),
        progress=progress,
        splits=job.splits,
        study=study,
        **job.lesson.fit,
    )


def open_relator(job: Job, ranks: TorchRanks) -> RayRelator:
    """This rank's door to the relation actor, under a name that the group has to itself."""
    return RayRelator(
        job.relation_actor,
        attempt=broadcast_from_rank_zero(uuid.uuid4().hex),
        rank=ranks.rank,
        ranks=ranks.size,
        judged_by=job.judged_by,
        precision=job.precision,
        wait_s=job.wait_s,
    )


def observed(monitor: NodeMonitor | None, ranks: TorchRanks) -> dict[str, float]:
    """What a node did in an epoch, as far as this rank is the one to say it; rank 0 adds how many ranks there were."""
    return (monitor.taken() if monitor else {}) | ({"system/workers": float(ranks.size)} if ranks.rank == 0 else {})


def open_batches(source: Source, board: Any, ranks: TorchRanks, *, wait_s: float) -> Batches:
    """This rank's pictures: from the Ray stream, or straight from the shards on its disk."""
    size: dict[str, Any] = {"height": source.height, "width": source.width}
    common: dict[str, Any] = {
        "train": source.train,
        "eval_view": partial(eval_view, **size),
        "train_view": partial(train_view, **size, **source.views),
        **size,
        "scan_batch": source.scan_batch,
        "seed": source.seed,
        "threads": source.decode_threads,
        "rank": ranks.rank,
        "ranks": ranks.size,
    }
    if source.views_on == "device":
        common["drawer"] = partial(draw_augmentation, **size, **source.views)
    if source.keep_pixels:
        common["made"] = kept_pixels(source, board.note.remote if ranks.rank == 0 else lambda words: None)
    if source.stream == "mapped":
        stores = {
            split: open_store(source.root, split, cache=source.cache, digest=digest)
            for split, digest in source.digests.items()
        }
        return MappedBatches(stores, **common)
    stream = ray.train.get_dataset_shard(STREAM)
    return StreamBatches(stream, board, sizes=source.sizes, barrier=ranks.barrier, wait_s=wait_s, **common)


def kept_pixels(source: Source, note: Callable[[str], object]) -> dict[str, PixelFile]:
    """The decoded pictures of each split that this node keeps; with "auto" none where they would take too much of its
    disk, or cannot be kept, and it is said which.

    Raises:
        StorageError: with True they cannot be kept.
    """
    folder = Path(source.cache or default_cache()).expanduser().absolute()
    height, width = source.height, source.width
    images = {digest: source.sizes[split] for split, digest in source.digests.items()}
    gigabytes = f"{sum(images.values()) * height * width * 3 / 1e9:.1f} GB in {folder}"
    if source.keep_pixels == "auto" and not PixelFile.fit(folder, images, height=height, width=width):
        note(f"the first worker's node keeps no decoded pictures: {gigabytes} would be more than a tenth of its room")
        return {}
    try:
        kept = {
            split: PixelFile(folder, digest, source.sizes[split], height=height, width=width)
            for split, digest in source.digests.items()
        }
    except StorageError as error:
        if source.keep_pixels is True:
            raise
        note(f"the first worker's node keeps no decoded pictures: {error}")
        return {}
    if source.keep_pixels == "auto":
        note(f"the first worker's node keeps decoded pictures: {gigabytes}")
    return kept


def resumed() -> TrainState | None:
    """The state to go on from, when this run has left one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        try:
            return load_state(folder)
        except CheckpointError as error:
            # A far one is read from a copy. It would be torn after a restart, too; the next start goes on before it.
            advice = "run the same command again: it goes on from the last epoch that is whole"
            raise CheckpointError(f"checkpoint {checkpoint.path}: {error}; {advice}") from error


def started(job: Job) -> TrainState | None:
    """The state to begin with, when this run goes on from another one's."""
    if job.start is None:
        return None
    return load_run_state(job.start).elsewhere(job.recipe, height=job.source.height, width=job.source.width)


def report_epoch(rank: int, system: Callable[[], dict[str, float]], report: EpochReport, state: TrainState) -> None:
    """Hands the epoch to Ray Train, which is a barrier: rank 0 brings figures and state, the others come along.

    `system` says what the node of the rank did meanwhile; nothing, where another rank of the node says it.
    """
    name = epoch_folder(state.epoch)
    if rank:
        ray.train.report({SYSTEM: system()}, checkpoint_dir_name=name)
        return
    with scratch() as folder:
        save_state(state, folder)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        news = {**report.metrics(), STEP_LOSSES: list(report.step_losses), SYSTEM: system()}
        ray.train.report(news, checkpoint=checkpoint, checkpoint_dir_name=name)

"""Whose cameras a training takes: those of the shards, or groups of surroundings, found by tasks of Ray before it.

The groups of a run are kept in its folder (`surroundings.npy`), so that a run that is resumed on other machines has the
same. They are some seconds of work on each CPU for 10,000 images, once a run.
"""

import io
import time
from collections import deque
from typing import Any

import numpy as np
import ray
from jaxtyping import Int64
from numpy import ndarray
from pydantic import TypeAdapter, ValidationError

from gracl.errors import CheckpointError, ConfigError, expected
from gracl.images import storage
from gracl.images.edges import describe_edges
from gracl.images.manifests import read_manifest
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import TrainState
from gracl.relations.surroundings import group_surroundings
from gracl.runtime.checkpoints import relations_of, takes_surroundings
from gracl.runtime.describe import near
from gracl.runtime.progress import Progress, say
from gracl.runtime.runs import Run
from gracl.runtime.session import refusals
from gracl.runtime.stream import open_store
from gracl.runtime.waiting import answer_of
from gracl.sections import Crew, Place, Surroundings
from gracl.types import UNKNOWN, FeatureTable, Plan

FILE = "surroundings.npy"
_BATCH, _TICKETS = 256, 16


def cameras_of_run(run: Run) -> Int64[ndarray, "images"]:
    """What a run takes for the cameras of its train split, in order of index.

    Raises:
        ImageError, ShardError: an image or shard that cannot be read.
        CheckpointError: the groups in the run's folder are not of this split.
        GraclError: pictures whose edges are all alike.
    """
    config, data = run.config, run.config.data
    if config.cameras_from == "recorded":
        return ShardStore.open(run.root, data.train, cache=data.cache).camera_ids()
    place = storage.join(run.folder, FILE)
    if storage.exists(place):
        return _read(place, run.sizes[data.train], config.surroundings.groups)
    found = find_surroundings(
        run.root,
        data.train,
        data.cache,
        height=data.height,
        width=data.width,
        digest=run.digests[data.train],
        seed=config.seed,
        cpus=config.scale.worker_cpus,
        wait_s=config.scale.wait_s,
        **config.surroundings.options(),
    )
    storage.write_bytes(place, _written(found))
    return found


def check_surroundings(state: TrainState, images: int) -> dict[str, Any]:
    """How the relations of a checkpoint's training found groups; {} where they took recorded cameras, or none.

    Raises:
        CheckpointError: settings that this version does not know.
        ConfigError: a split with fewer images than groups.
    """
    if not takes_surroundings(state.recipe) or not relations_of(state).wants_cameras:
        return {}
    found = {name: state.recipe.get(f"surroundings.{name}") for name in Surroundings.model_fields}
    try:
        how = Surroundings.model_validate(found).options()
        seed = TypeAdapter(int).validate_python(state.recipe.get("seed"), strict=True)
    except ValidationError as error:
        do = "train with this version"
        raise CheckpointError(expected("a checkpoint whose surroundings this version knows", str(error), do)) from None
    if images < how["groups"]:
        what = f"a split of at least {how['groups']} images, as many as the checkpoint has groups of surroundings"
        raise ConfigError(expected(what, images, "name a larger split"))
    return {**how, **state.view, "seed": seed}


def cameras_of_state(state: TrainState, place: Place, split: str, scale: Crew) -> Int64[ndarray, "images"]:
    """What clusters of a checkpoint's features are made with: recorded cameras, or, where its training's relations took
    them, groups of surroundings, found once more (the same on one machine; on another a few images may be elsewhere).
    All unknown where only the sampler took groups.

    Raises:
        ImageError, ShardError: an image or shard that cannot be read.
        CheckpointError, ConfigError: see `check_surroundings`.
    """
    where = storage.absolute(place.root), split, near(place.cache)
    manifest = read_manifest(*where[:2])
    how = check_surroundings(state, manifest.num_images)
    if not how and takes_surroundings(state.recipe):
        return np.full(manifest.num_images, UNKNOWN, np.int64)
    if not how:
        return ShardStore.open(where[0], split, cache=where[2]).camera_ids()
    return find_surroundings(*where, digest=manifest.digest, cpus=scale.worker_cpus, wait_s=scale.wait_s, **how)


def find_surroundings(
    root: str,
    split: str,
    cache: str | None,
    *,
    digest: str,
    height: int,
    width: int,
    seed: int,
    cpus: float,
    wait_s: float,
    groups: int = 8,
    edge: float = 0.1,
) -> Int64[ndarray, "images"]:
    """The group of each image of a split; see `local.surroundings_of`, which gives the same.

    Args:
        digest: of the split's manifest; another split in its place is refused.
        cpus: reserved by each task, at most 1.
        wait_s: for each task, once it is the oldest.

    Raises:
        ImageError, ShardError: an image or shard that cannot be read, or another split.
        GraclError: pictures whose edges are all alike.
        WaitedTooLong: no room in the cluster.
    """
    started, images = time.perf_counter(), read_manifest(root, split).num_images
    tickets, progress = scan_plan(images, _BATCH).tickets, Progress(f"surroundings of {split}", images)
    task = ray.remote(num_cpus=min(1, cpus))(_describe)
    chunks = deque(tickets[first : first + _TICKETS] for first in range(0, len(tickets), _TICKETS))
    # No more than the cluster has room for now: a queue would make it grow for some seconds of work.
    asked, room = deque[Any](), max(1, int(ray.cluster_resources().get("CPU", 1)))
    parts = list[FeatureTable]()
    with refusals():
        while chunks or asked:
            while chunks and len(asked) < room:
                asked.append(task.remote(root, split, cache, digest, chunks.popleft(), height, width, edge))
            what, advice = f"the surroundings of some images of {split}", "look who holds the cluster's nodes"
            parts.append(answer_of(asked.popleft(), what, wait_s, f"{advice}, or raise scale.wait_s"))
            progress(len(parts[-1].indices))
    found = group_surroundings(FeatureTable.gather(parts, images), groups=groups, seed=seed)
    sizes = np.bincount(found, minlength=groups)
    say(
        f"surroundings: {images:,} images in {np.count_nonzero(sizes)} groups of {sizes[sizes > 0].min():,} to "
        f"{sizes.max():,}, which stand for cameras ({time.perf_counter() - started:.1f} s)"
    )
    return found


def _describe(
    root: str, split: str, cache: str | None, digest: str, tickets: ndarray, height: int, width: int, edge: float
) -> FeatureTable:
    store = open_store(root, split, cache=cache, digest=digest)
    return describe_edges(store, Plan(epoch=0, tickets=tickets), height=height, width=width, edge=edge)


def _written(groups: Int64[ndarray, "images"]) -> bytes:
    """A file of NumPy's."""
    file = io.BytesIO()
    np.save(file, groups, allow_pickle=False)
    return file.getvalue()


def _read(place: str, images: int, groups: int) -> Int64[ndarray, "images"]:
    """The groups of a run that is gone on with. Only a file with the header that we write is looked into."""
    content = storage.read_bytes(place)
    values = 8 * images
    head = _written(np.zeros(images, np.int64))[:-values]
    if len(content) == len(head) + values and content.startswith(head):
        found = np.frombuffer(content, np.int64, offset=len(head)).copy()
        if 0 <= found.min() <= found.max() < groups:
            return found
    what, came = f"{images} whole numbers below {groups} in {place}", f"{len(content)} bytes that are not"
    raise CheckpointError(expected(what, came, "delete it: it is made anew"))

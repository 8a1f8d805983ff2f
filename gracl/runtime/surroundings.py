"""Whose cameras a training takes: those of the shards, or groups of surroundings, found by tasks of Ray before it.

The groups of a run are kept in its folder (`surroundings.npy`), so that a run that is resumed on other machines has the
same. They are some seconds of work on each CPU for 10,000 images, once a run.
"""

import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from jaxtyping import Int64
from numpy import ndarray
from pydantic import TypeAdapter, ValidationError

from gracl.config import TrainConfig
from gracl.errors import CheckpointError, expected
from gracl.images import storage
from gracl.images.edges import describe_edges
from gracl.images.manifests import read_manifest
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import TrainState
from gracl.relations.surroundings import group_surroundings
from gracl.runtime.progress import Progress, say
from gracl.runtime.runs import Run
from gracl.runtime.session import refusals
from gracl.runtime.waiting import answer_of
from gracl.sections import Surroundings
from gracl.types import FeatureTable, Plan

FILE = "surroundings.npy"
_BATCH, _TICKETS = 256, 16


def cameras_of_run(run: Run) -> Int64[ndarray, "images"]:
    """What a run takes for the cameras of its train split, in order of index.

    Raises:
        ImageError, ShardError: an image or shard that cannot be read.
        CheckpointError: the groups in the run's folder are not of this split.
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
        seed=config.seed,
        wait_s=config.scale.wait_s,
        **config.surroundings.options(),
    )
    written = io.BytesIO()
    np.save(written, found, allow_pickle=False)
    storage.write_bytes(place, written.getvalue())
    return found


def cameras_of_state(
    state: TrainState, root: str, split: str, cache: str | None, wait_s: float
) -> Int64[ndarray, "images"]:
    """The same for a checkpoint and any split: recorded, or groups found once more, as its training found them.

    Raises:
        ImageError, ShardError: an image or shard that cannot be read.
        CheckpointError: settings that this version does not know.
    """
    if not takes_surroundings(state.recipe):
        return ShardStore.open(root, split, cache=cache).camera_ids()
    found = {name: state.recipe.get(f"surroundings.{name}") for name in Surroundings.model_fields}
    try:
        how = Surroundings.model_validate(found).options()
        seed = TypeAdapter(int).validate_python(state.recipe.get("seed"), strict=True)
    except ValidationError as error:
        do = "train with this version"
        raise CheckpointError(expected("a checkpoint whose surroundings this version knows", str(error), do)) from None
    return find_surroundings(root, split, cache, **state.view, seed=seed, wait_s=wait_s, **how)


def takes_surroundings(recipe: Mapping[str, Any]) -> bool:
    """Whether a run of this recipe took groups of surroundings for cameras."""
    return recipe.get("cameras_from") == "surroundings"


def wants_cameras(config: TrainConfig) -> bool:
    """Whether a training reads cameras, wherever they are from."""
    return config.camera_balanced or config.relations.wants_cameras


def find_surroundings(
    root: str,
    split: str,
    cache: str | None,
    *,
    height: int,
    width: int,
    seed: int,
    wait_s: float,
    groups: int = 8,
    edge: float = 0.1,
) -> Int64[ndarray, "images"]:
    """The group of each image of a split; see `local.surroundings_of`, which gives the same."""
    started, images = time.perf_counter(), read_manifest(root, split).num_images
    plan = scan_plan(images, _BATCH)
    task, progress = ray.remote(num_cpus=1)(_describe), Progress(f"surroundings of {split}", images)
    parts = list[FeatureTable]()
    with refusals():
        asked = [
            task.remote(root, split, cache, plan.tickets[first : first + _TICKETS], height, width, edge)
            for first in range(0, len(plan.tickets), _TICKETS)
        ]
        for part in asked:
            parts.append(answer_of(part, f"the surroundings of some images of {split}", wait_s))
            progress(len(parts[-1].indices))
    found = group_surroundings(FeatureTable.gather(parts, images), groups=groups, seed=seed)
    sizes = np.bincount(found, minlength=groups)
    say(
        f"surroundings: {images:,} images in {np.count_nonzero(sizes)} groups of {sizes[sizes > 0].min():,} to "
        f"{sizes.max():,}, which stand for cameras ({time.perf_counter() - started:.1f} s)"
    )
    return found


def _describe(
    root: str, split: str, cache: str | None, tickets: ndarray, height: int, width: int, edge: float
) -> FeatureTable:
    store = ShardStore.open(root, split, cache=cache)
    return describe_edges(store, Plan(epoch=0, tickets=tickets), height=height, width=width, edge=edge)


def _read(place: str, images: int, groups: int) -> Int64[ndarray, "images"]:
    """The groups of a run that is gone on with; nothing is unpickled."""
    try:
        found: ndarray = np.load(io.BytesIO(storage.read_bytes(place)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CheckpointError(expected(f"groups of surroundings in {place}", str(error), "delete it")) from error
    fits = found.dtype == np.int64 and found.shape == (images,) and images and 0 <= found.min() <= found.max() < groups
    if not fits:
        came = f"{found.dtype} {found.shape}"
        what = f"{images} whole numbers below {groups} in {place}"
        raise CheckpointError(expected(what, came, "delete it: it is made anew"))
    return found

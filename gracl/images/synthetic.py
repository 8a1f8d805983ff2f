"""A synthetic world: figures with an identity, seen by cameras, for demos and tests without any data set.

A picture depends on (seed, object, camera, shot) alone, so a world of any size can be made in any order, by any number
of processes, and without holding it. Raw-pixel and untrained features rank it poorly (docs/results.md), because a
camera changes a picture more than an identity does.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8
from numpy import ndarray

from gracl.errors import LayoutError, expected
from gracl.images.cameras import Camera, aim, behind, camera_of, obstruct, photograph
from gracl.images.figures import Part, Thing, checked_difficulty, draw_parts, object_of
from gracl.randomness import rng

__all__ = ["Camera", "Thing", "camera_of", "draw", "object_of", "shot", "write_world"]

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
CHUNK = 32
SMALLEST = 8
# Shared backgrounds are those of cameras that see nothing else.
_PLACES = 1_000_000


def draw(
    thing: Thing,
    camera: Camera,
    dice: np.random.Generator,
    *,
    height: int = 128,
    width: int = 64,
    place: Camera | None = None,
) -> UInt8[ndarray, "height width 3"]:
    """Poses the figure, colours it, sets it before the camera's background and photographs it.

    Drawing is done at two or three times the size and scaled down, so that edges are smooth. `place` lends its
    background in place of the camera's own.

    Raises:
        ValueError: a side below 8 pixels, where nothing could be told apart.
    """
    if min(height, width) < SMALLEST:
        raise ValueError(
            expected(f"at least {SMALLEST} x {SMALLEST} pixels", f"{height} x {width}", "make the pictures larger")
        )
    fine = 3 if height <= 96 else 2
    pose = aim(camera, dice, tall=thing.tall, height=height * fine, width=width * fine)
    parts = draw_parts(thing, pose, height=height * fine, width=width * fine)
    obstruct(parts, camera, dice)
    table = np.ones((len(Part), 4), np.float32)  # red, green, blue, and how much it covers
    table[:, :3] = thing.colours
    table[Part.OBSTACLE, :3] = np.clip(camera.obstacle + dice.normal(0, 0.08, 3), 0, 1)
    table[Part.NOTHING] = 0
    painted = _shrink(table[parts], fine)
    picture = painted[..., :3] + (1 - painted[..., 3:]) * behind(place or camera, dice, height, width)
    return photograph(picture, camera, dice)


def _shrink(fine: Float32[ndarray, "rows columns 4"], by: int) -> Float32[ndarray, "height width 4"]:
    """The mean of every `by` x `by` pixels, by adding slices, which is quicker than reducing short axes."""
    rows = fine[::by].copy()
    for step in range(1, by):
        rows += fine[step::by]
    small = rows[:, ::by].copy()
    for step in range(1, by):
        small += rows[:, step::by]
    small /= by * by
    return small


def shot(
    seed: int,
    object_id: int,
    camera_id: int,
    shot: int,
    *,
    height: int = 128,
    width: int = 64,
    difficulty: float = 0.5,
    scenes: int = 0,
) -> UInt8[ndarray, "height width 3"]:
    """One picture of the world: the `shot`-th that the camera took of the object. Nothing else has a say.

    With `scenes` above 0 the background is one of so many that all cameras share, drawn for this picture alone.
    """
    thing, names = object_of(seed, object_id, difficulty=difficulty), (object_id, camera_id, shot)
    camera, place = camera_of(seed, camera_id, difficulty=difficulty), None
    if scenes:
        place = camera_of(seed, _PLACES + int(rng(seed, "scene", *names).integers(scenes)), difficulty=difficulty)
    return draw(thing, camera, rng(seed, "shot", *names), height=height, width=width, place=place)


@dataclass(frozen=True)
class _World:
    """The recipe of a world. Its items, numbered from 0: train objects, test objects, distractors, junk."""

    seed: int
    train_objects: int
    test_objects: int
    cameras: int
    shots: int
    distractors: int
    junk: int
    height: int
    width: int
    difficulty: float
    quality: int
    scenes: int = 0

    @property
    def objects(self) -> int:
        return self.train_objects + self.test_objects

    @property
    def items(self) -> int:
        return self.objects + self.distractors + self.junk

    def check(self) -> None:
        """Refuses a recipe that would give an empty split or a query without an answer."""
        least = {"train_objects": 1, "test_objects": 1, "cameras": 2, "shots": 2, "distractors": 0, "junk": 0}
        least |= {"height": SMALLEST, "width": SMALLEST, "quality": 1, "scenes": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(expected(f"{name} >= {bound}", getattr(self, name), "make the world larger"))
        if self.quality > 100:
            raise ValueError(expected("quality <= 100", self.quality, "lower it"))
        checked_difficulty(self.difficulty)

    def name(self, object_id: int, camera: int, frame: int, box: int) -> str:
        """A file name as Market-1501 has them, with more digits where the identities need them."""
        digits = max(4, len(str(self.objects)))
        who = "-1" if object_id < 0 else f"{object_id:0{digits}d}"
        return f"{who}_c{camera}s1_{frame:06d}_{box:02d}.jpg"

    def cameras_of(self, object_id: int) -> list[int]:
        """The cameras that see an object: at least two, so that every query has an answer elsewhere."""
        dice = rng(self.seed, "seen by", object_id)
        count = int(dice.integers(2, self.cameras + 1))
        return sorted((dice.permutation(self.cameras)[:count] + 1).tolist())

    def pictures(self, item: int) -> Iterator[tuple[str, str, UInt8[ndarray, "height width 3"]]]:
        """All pictures of one item: split folder, file name, pixels."""
        size: dict[str, Any] = {"height": self.height, "width": self.width}
        take: Callable[..., ndarray] = partial(shot, self.seed, **size, difficulty=self.difficulty, scenes=self.scenes)
        number = item - self.objects
        if number < 0:
            for camera in self.cameras_of(item + 1):
                for frame in range(self.shots):
                    split = TRAIN if item < self.train_objects else QUERY if frame == 0 else GALLERY
                    yield split, self.name(item + 1, camera, frame, frame), take(item + 1, camera, frame)
        elif number < self.distractors:
            camera = 1 + int(rng(self.seed, "distractor", number).integers(self.cameras))
            yield GALLERY, self.name(0, camera, number, 0), take(item + 1, camera, 0)
        else:
            yield self._junk(number - self.distractors)

    def _junk(self, number: int) -> tuple[str, str, UInt8[ndarray, "height width 3"]]:
        """A bad box: a quarter of a picture of a test object, as a detector may cut it."""
        dice = rng(self.seed, "junk", number)
        who = self.train_objects + 1 + int(dice.integers(self.test_objects))
        camera = 1 + int(dice.integers(self.cameras))
        size = {"height": 2 * self.height, "width": 2 * self.width}
        how: dict[str, Any] = {"difficulty": self.difficulty, "scenes": self.scenes}
        whole = shot(self.seed, who, camera, self.shots + number, **how, **size)
        down, right = int(dice.integers(self.height + 1)), int(dice.integers(self.width + 1))
        cut = whole[down : down + self.height, right : right + self.width]
        return GALLERY, self.name(-1, camera, number, 0), np.ascontiguousarray(cut)


def write_world(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    train_objects: int = 100,
    test_objects: int = 50,
    cameras: int = 6,
    shots: int = 4,
    distractors: int = 0,
    junk: int = 0,
    height: int = 128,
    width: int = 64,
    difficulty: float = 0.5,
    quality: int = 90,
    scenes: int = 0,
    processes: int = 1,
) -> dict[str, int]:
    """Writes a world as a raw folder in Market-1501 naming, and says how many images each split has.

    Every object is seen by a random choice of two or more cameras, `shots` times by each. The identities of
    `bounding_box_train` are others than those of the test; of a test identity the first shot of each camera is a
    query and the rest is gallery. Objects count from 1, cameras from 1. The files are the same bytes for any number
    of processes; the folder appears, by rename, when all are written.

    Args:
        folder: to be made; may exist when empty.
        seed: of everything.
        train_objects: identities in the train split.
        test_objects: identities in query and gallery.
        cameras: of the world, at least 2.
        shots: of an object by a camera, at least 2.
        distractors: gallery pictures of further objects, named 0000.
        junk: gallery pictures cut badly, named -1.
        height: rows of a picture.
        width: columns of a picture.
        difficulty: 0 (one camera, far apart identities) to 1.
        quality: of the JPEG files, 1 to 100.
        scenes: 0: each camera sees a place of its own, as cameras that hang on walls do; above 0: all see the same so
            many places, any of them in a picture, so that only their light tells of cameras.
        processes: that draw; above 1 they are fresh processes (spawn), so the caller needs a `__main__` guard.

    Raises:
        LayoutError: the folder exists and holds something.
        ValueError: a number out of bounds.
    """
    world = _World(
        seed, train_objects, test_objects, cameras, shots, distractors, junk, height, width, difficulty, quality, scenes
    )
    world.check()
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LayoutError(expected("a new or an empty folder", f"{target}, which is neither", "choose another folder"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        unfinished = Path(scratch) / "world"
        for split in (TRAIN, QUERY, GALLERY):
            (unfinished / split).mkdir(parents=True)
        counts = _write_all(world, unfinished, processes)
        os.replace(unfinished, target)
    return {split: counts[split] for split in (TRAIN, QUERY, GALLERY)}


def _write_all(world: _World, folder: Path, processes: int) -> Counter[str]:
    chunks = [range(start, min(start + CHUNK, world.items)) for start in range(0, world.items, CHUNK)]
    write = partial(_write_items, world, str(folder))
    if processes <= 1:
        return sum(map(write, chunks), Counter[str]())
    # Not by fork: the caller may hold threads and locks of torch or Ray.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(write, chunks), Counter[str]())


def _write_items(world: _World, folder: str, items: range) -> Counter[str]:
    counts = Counter[str]()
    for item in items:
        for split, name, picture in world.pictures(item):
            data = simplejpeg.encode_jpeg(picture, world.quality)
            Path(folder, split, name).write_bytes(data)
            counts[split] += 1
    return counts

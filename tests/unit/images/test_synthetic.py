"""The synthetic world: pictures depend on their names alone, and a written world has the shape it promises."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from gracl.errors import LayoutError
from gracl.images.decoding import decode
from gracl.images.synthetic import _World, camera_of, draw, object_of, shot, write_world
from gracl.randomness import rng

NAME = re.compile(r"(-?\d+)_c(\d+)s1_(\d{6})_(\d\d)\.jpg")
SMALL = {"train_objects": 5, "test_objects": 4, "cameras": 3, "shots": 2, "height": 16, "width": 8}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def sightings(folder: Path) -> dict[int, dict[int, int]]:
    seen: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for path in folder.glob("*.jpg"):
        match = NAME.fullmatch(path.name)
        assert match, path.name
        seen[int(match[1])][int(match[2])] += 1
    return seen


def test_a_picture_depends_on_its_names_alone() -> None:
    size = {"height": 64, "width": 32}
    first = shot(1, 2, 3, 4, **size)
    for other in ((9, 2, 3, 4), (1, 9, 3, 4), (1, 2, 9, 4), (1, 2, 3, 9)):
        assert (shot(*other, **size) != first).any()
    assert (shot(1, 2, 3, 4, **size) == first).all()
    by_hand = draw(object_of(1, 2), camera_of(1, 3), rng(1, "shot", 2, 3, 4), **size)
    assert (by_hand == first).all()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 32), (97, 41), (30, 200), (256, 128)])
def test_any_size_and_any_difficulty(height: int, width: int) -> None:
    for difficulty in (0.0, 0.5, 1.0):
        picture = shot(0, 1, 1, 0, height=height, width=width, difficulty=difficulty)
        assert picture.shape == (height, width, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 5  # there is something to be seen


def test_object_and_camera_are_values() -> None:
    assert object_of(0, 7) == object_of(0, 7) != object_of(0, 8)
    assert camera_of(0, 2) == camera_of(0, 2) != camera_of(0, 3)
    assert object_of(0, 7) != object_of(1, 7)


def test_difficulty_sets_cameras_apart_and_objects_together() -> None:
    def spread(difficulty: float) -> tuple[float, float]:
        cameras = [camera_of(0, camera, difficulty=difficulty) for camera in range(40)]
        things = [object_of(0, number, difficulty=difficulty) for number in range(40)]
        return float(np.std([camera.gain for camera in cameras])), float(np.std([thing.colours for thing in things]))

    (light_0, dye_0), (light_half, dye_half), (light_1, dye_1) = spread(0.0), spread(0.5), spread(1.0)
    assert light_0 == 0 < light_half < light_1
    assert dye_0 > dye_half > dye_1 > 0.5 * dye_0
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="difficulty from 0 to 1"):
            object_of(0, 1, difficulty=wrong)
        with pytest.raises(ValueError, match="difficulty from 0 to 1"):
            camera_of(0, 1, difficulty=wrong)


def test_without_difficulty_an_object_is_nearest_to_itself() -> None:
    easy = {"height": 32, "width": 16, "difficulty": 0.0}
    first = np.array([shot(0, number, 1, 0, **easy).ravel() for number in range(12)], np.float32)
    second = np.array([shot(0, number, 2, 1, **easy).ravel() for number in range(12)], np.float32)
    distance = ((first[:, None] - second[None]) ** 2).sum(2)
    assert (distance.argmin(1) == np.arange(12)).all()


def test_pixels_alone_do_not_re_identify() -> None:
    pictures = {
        (number, camera): shot(0, number, camera, 0, height=32, width=16).ravel().astype(np.float32)
        for number in range(25)
        for camera in range(4)
    }
    found = 0
    for (number, camera), picture in pictures.items():
        others = {key: value for key, value in pictures.items() if key != (number, camera)}
        found += min(others, key=lambda key: float(((others[key] - picture) ** 2).sum()))[0] == number
    assert found / len(pictures) < 0.4


def test_a_written_world_has_the_shape_it_promises(tmp_path: Path) -> None:
    counts = write_world(tmp_path / "world", **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["world"]  # nothing unfinished stays
    train, query, gallery = (sightings(tmp_path / "world" / split) for split in counts)
    assert list(counts) == ["bounding_box_train", "query", "bounding_box_test"]
    assert list(counts.values()) == [sum(sum(by.values()) for by in seen.values()) for seen in (train, query, gallery)]
    assert sorted(train) == [1, 2, 3, 4, 5]
    assert sorted(query) == sorted(gallery) == [6, 7, 8, 9]
    for seen in (*train.values(), *gallery.values()):
        assert 2 <= len(seen) <= 3
        assert set(seen) <= {1, 2, 3}
    assert all(times == 2 for seen in train.values() for times in seen.values())
    assert all(times == 1 for seen in (*query.values(), *gallery.values()) for times in seen.values())
    assert {number: set(seen) for number, seen in query.items()} == {n: set(seen) for n, seen in gallery.items()}


def test_files_hold_the_shots_they_are_named_after(tmp_path: Path) -> None:
    write_world(tmp_path / "world", seed=3, quality=100, **SMALL)
    for path in (tmp_path / "world").rglob("*.jpg"):
        number, camera, frame, _ = (int(part) for part in NAME.fullmatch(path.name).groups())
        wanted = shot(3, number, camera, frame, height=16, width=8)
        assert np.abs(decode(path.read_bytes()).astype(int) - wanted).max() <= 8


def test_a_world_is_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    options = SMALL | {"train_objects": 30, "distractors": 3, "junk": 2}
    write_world(tmp_path / "one", **options)
    write_world(tmp_path / "two", processes=2, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    write_world(tmp_path / "other", seed=1, **options)
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_a_larger_world_holds_the_smaller_ones_training_objects(tmp_path: Path) -> None:
    write_world(tmp_path / "small", **SMALL)
    write_world(tmp_path / "large", **SMALL | {"train_objects": 7})
    small, large = contents(tmp_path / "small" / "bounding_box_train"), contents(tmp_path / "large")
    assert small.items() <= {Path(name).name: data for name, data in large.items()}.items()


def test_distractors_and_junk_stand_in_the_gallery(tmp_path: Path) -> None:
    plain = write_world(tmp_path / "plain", **SMALL)
    counts = write_world(tmp_path / "world", distractors=6, junk=3, **SMALL)
    gallery = sightings(tmp_path / "world" / "bounding_box_test")
    assert sum(gallery[0].values()) == 6
    assert sum(gallery[-1].values()) == 3
    assert counts == plain | {"bounding_box_test": plain["bounding_box_test"] + 9}
    assert len(list((tmp_path / "world" / "bounding_box_test").glob("0000_*"))) == 6
    assert all(decode(data).shape == (16, 8, 3) for data in contents(tmp_path / "world").values())


def test_the_number_grows_beyond_four_digits() -> None:
    world = _World(0, 9_990, 20, 6, 4, 0, 0, 64, 32, 0.5, 90)
    assert world.name(7, 2, 3, 1) == "00007_c2s1_000003_01.jpg"
    assert world.name(0, 2, 3, 1).startswith("00000_")
    assert world.name(-1, 2, 3, 1).startswith("-1_")


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_world(tmp_path / "empty", **SMALL)
    with pytest.raises(LayoutError, match="a new or an empty folder"):
        write_world(tmp_path / "empty", **SMALL)


def test_a_world_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_world(tmp_path / "world", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"train_objects": 0}, {"test_objects": 0}, {"cameras": 1}, {"shots": 1}, {"distractors": -1}, {"height": 7}]
    + [{"quality": 0}, {"quality": 101}, {"difficulty": 2.0}],
)
def test_a_world_out_of_bounds_is_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        write_world(tmp_path / "world", **SMALL | wrong)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="8 x 8"):
        shot(0, 1, 1, 0, height=7, width=8)


def test_shared_scenes_leave_of_cameras_their_light_alone() -> None:
    def explained(scenes: int) -> float:
        """The share of what corners differ in that lies between cameras; a corner is background."""
        names = [(1, 2, camera, number) for camera in range(1, 9) for number in range(20)]
        corners = np.array([shot(*name, height=64, width=32, scenes=scenes)[:4, :4].mean((0, 1)) for name in names])
        between = corners.reshape(8, 20, 3).mean(1).var(0).sum()
        return float(between / corners.var(0).sum())

    assert explained(0) > 0.6 > 0.5 > explained(5)  # light is left
    names = [(1, 2, 3, number) for number in range(10)]
    shared = [shot(*name, height=64, width=32, scenes=5) for name in names]
    by_hand = [
        draw(object_of(1, 2), camera_of(1, 3), rng(1, "shot", *name[1:]), height=64, width=32, place=place)
        for name, place in [(name, camera_of(1, 1_000_000 + scene)) for name in names for scene in range(5)]
    ]
    for number, picture in enumerate(shared):
        assert any((picture == one).all() for one in by_hand[5 * number : 5 * number + 5])


def test_a_world_with_shared_scenes_is_written_with_them(tmp_path: Path) -> None:
    write_world(tmp_path / "world", seed=3, quality=100, scenes=2, **SMALL)
    for path in (tmp_path / "world").rglob("*.jpg"):
        number, camera, frame, _ = (int(part) for part in NAME.fullmatch(path.name).groups())
        wanted = shot(3, number, camera, frame, height=16, width=8, scenes=2)
        assert np.abs(decode(path.read_bytes()).astype(int) - wanted).max() <= 8
    with pytest.raises(ValueError, match="scenes >= 0"):
        write_world(tmp_path / "other", scenes=-1, **SMALL)

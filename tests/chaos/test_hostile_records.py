"""Small files of JSON that attack: their readers refuse with the file's name, or do without, and never break."""

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest

from gracl.cli import load_config
from gracl.errors import CheckpointError, ConfigError, GraclError, ShardError, StorageError
from gracl.experiments import CompareConfig, TuneConfig
from gracl.images import plain_json, storage
from gracl.images.ingesting import ingest_here
from gracl.images.manifests import read_manifest
from gracl.images.plain_json import MAX_BYTES, check_values, fits, read_values
from gracl.locks import holding, refuse_held
from gracl.runtime.grid import grid
from gracl.runtime.many import leave, tell_rest_of
from gracl.runtime.points import START, base_of, name_of
from gracl.runtime.population import remove_starts
from gracl.runtime.records import read_parent, read_run
from gracl.runtime.runs import origin, prepare
from gracl.runtime.salvage import SNAPSHOT, set_torn_aside
from gracl.runtime.sweep_trial import Point, Sweep
from gracl.runtime.trial import recorded
from tests.chaos.torn import listed, run_of
from tests.raw_images import fill
from tests.toy import toy_config

DEEP = "[" * 200_000
RUN = {"recipe": {}, "mlflow_run_id": "a", "tracking_uri": None, "finished": 1, "begins": 0, "told": True}


def too_long(place: Path) -> None:
    """300 MB that take no room on the disk."""
    place.write_text("{")
    os.truncate(place, 300 * 10**6)


def as_text(text: str | bytes) -> Callable[[Path], object]:
    return lambda place: place.write_bytes(text if isinstance(text, bytes) else text.encode())


# What is no object of JSON, whoever reads it.
BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": as_text(""),
    "cut off": as_text('{"finished": 1, "recipe": {"a"'),
    "zeros": as_text(bytes(100)),
    "list": as_text("[]"),
    "null": as_text("null"),
    "number": as_text("7"),
    "text": as_text('"a"'),
    "deep": as_text(DEEP),
    "deep inside": as_text('{"schema_version": 1, "recipe": ' + DEEP),
    "no UTF-8": as_text(b'{"recipe": "\xff"}'),
    "UTF-16": as_text('{"recipe": 1}'.encode("utf-16")),
    "long number": as_text('{"finished": ' + "9" * 5000 + "}"),
    "too long": too_long,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
}
broken = pytest.mark.parametrize("breaks", BROKEN.values(), ids=BROKEN)


def refused(place: Path, error: type[GraclError], read: Callable[[], object]) -> None:
    """One message, not longer than a screen, with the file's name and what to do."""
    with pytest.raises(error) as found:
        read()
    words = str(found.value)
    assert words.startswith("expected ")
    assert words.count(";") >= 2
    assert str(place) in words
    assert len(words) < 1000
    assert found.value.exit_code == 2


@broken
def test_a_broken_run_json(breaks: Any, tmp_path: Path, toy_shards: Any) -> None:
    config = toy_config(toy_shards, tmp_path, name="mine")
    place = Path(config.runs) / "mine/run.json"
    place.parent.mkdir(parents=True)
    breaks(place)
    for read in (
        lambda: read_run(str(place.parent)),
        lambda: prepare(config),
        lambda: origin(str(place.parent / "epoch-0001")),
        lambda: leave([config], "nobody"),
        lambda: tell_rest_of([config], "nobody"),
    ):
        refused(place, CheckpointError, read)


@pytest.mark.parametrize(
    "values",
    [
        {"recipe": []},
        {"recipe": None},
        {"mlflow_run_id": 7},
        {"mlflow_run_id": None},
        {"mlflow_run_id": "\ud800"},
        {"mlflow_run_id": ["a"] * 10**5},
        {"tracking_uri": {}},
        {"finished": "1"},
        {"finished": 1.0},
        {"finished": True},
        {"finished": -1},
        {"finished": [[[]]]},
        {"begins": -3},
        {"begins": "0"},
        {"told": 1},
    ],
    ids=lambda values: str(values)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_other_values_in_a_run_json(values: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "run.json"
    place.write_text(json.dumps(RUN))
    assert read_run(str(tmp_path)) == RUN
    place.write_text(json.dumps(RUN | values))
    refused(place, CheckpointError, lambda: read_run(str(tmp_path)))


def test_a_run_json_without_something(tmp_path: Path) -> None:
    place, later = tmp_path / "run.json", {"tracking_uri", "begins", "told"}
    for name in RUN:
        rest = {key: value for key, value in RUN.items() if key != name}
        place.write_text(json.dumps(rest))
        if name in later:  # a record of an older version
            assert read_run(str(tmp_path)) == rest
        else:
            refused(place, CheckpointError, lambda: read_run(str(tmp_path)))
    place.write_text("{}")
    refused(place, CheckpointError, lambda: read_run(str(tmp_path)))


@broken
def test_a_broken_manifest(breaks: Any, tmp_path: Path) -> None:
    place = tmp_path / "train/manifest.json"
    place.parent.mkdir()
    breaks(place)
    refused(place, ShardError, lambda: read_manifest(str(tmp_path), "train"))


def test_other_values_in_a_manifest(tmp_path: Path) -> None:
    ingest_here(fill(str(tmp_path / "raw"), ["a.jpg"]), str(tmp_path / "out"), "unlabelled")
    place = tmp_path / "out/train/manifest.json"
    good, taken = json.loads(place.read_text()), set()
    for name in good:
        for other in (None, [], {}, "a", "\ud800", -1, 1.5, True, 10**30, [{}], [1], {"a": "b"}, [[[]]]):
            place.write_text(json.dumps(good | {name: other}))
            try:
                read_manifest(str(tmp_path / "out"), "train")
                taken.add((name, str(other)))
            except ShardError:
                refused(place, ShardError, lambda: read_manifest(str(tmp_path / "out"), "train"))
    words = {(name, "a") for name in ("layout", "layout_version", "source", "created_by")}
    assert taken == words | {("notes", "{}"), ("bad_images", "[]"), ("resize", "None")}
    for part in ({"file": 1}, {"sha256": None}, {"more": 1}, {"rows": "1"}):
        place.write_text(json.dumps(good | {"shards": [good["shards"][0] | part]}))
        refused(place, ShardError, lambda: read_manifest(str(tmp_path / "out"), "train"))
    for bad in ({"path": 1, "reason": ""}, {"path": ""}, {"path": "\udcff", "reason": ""}):
        place.write_text(json.dumps(good | {"bad_images": [bad]}))
        refused(place, ShardError, lambda: read_manifest(str(tmp_path / "out"), "train"))


@broken
@pytest.mark.parametrize("name", ["comparison.json", "sweep.json"])
def test_a_broken_record_of_a_comparison_or_sweep(name: str, breaks: Any, tmp_path: Path) -> None:
    breaks(tmp_path / name)
    refused(tmp_path / name, ConfigError, lambda: read_parent(str(tmp_path / name)))


@pytest.mark.parametrize(
    "values", [{"mlflow_run_id": 1, "tracking_uri": "a"}, {"sweep": []}, {"tracking_uri": "a"}, {"mlflow_run_id": "a"}]
)
def test_other_values_in_the_record_of_a_sweep(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(values))
    refused(tmp_path / "sweep.json", ConfigError, lambda: read_parent(str(tmp_path / "sweep.json")))


@broken
def test_a_broken_record_of_a_compared_run(breaks: Any, tmp_path: Path) -> None:
    given = {"presets": {"a": []}, "data": {"d": "data.root=shards"}, "seeds": [0], "out": str(tmp_path)}
    (trial,) = grid(CompareConfig(**given))
    place = Path(trial.config.runs, trial.name, "compared.json")
    place.parent.mkdir(parents=True)
    breaks(place)
    refused(place, CheckpointError, lambda: recorded(trial, "val/mAP"))


def a_sweep(tmp_path: Path) -> Sweep:
    words = ["base=[data.root=shards]", "space={relations.k1: {choice: [10, 20]}}", "search=grid", f"out={tmp_path}"]
    config = load_config(TuneConfig, words)
    return Sweep(config, base_of(config), str(tmp_path / "runs"), str(tmp_path / "trials"))


VALUES = {"relations.k1": 10}
POINT = asdict(Point(name_of(VALUES), VALUES, "done", 3, [{"val/mAP": 0.5, "epoch": 3.0}]))


@broken
def test_a_broken_record_of_a_trial(breaks: Any, tmp_path: Path) -> None:
    swept = a_sweep(tmp_path)
    place = tmp_path / "trials/t-1.json"
    place.parent.mkdir()
    breaks(place)
    refused(place, CheckpointError, swept.known)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "t-2"},
        {"values": {"relations.k2": 10}},
        {"values": {"relations.k1": 20}},
        {"values": {}},
        {"values": [1]},
        {"state": "unheard of"},
        {"epochs": "3"},
        {"history": [{"epoch": 3}]},
        {"history": [{"val/mAP": 0.5}]},
        {"history": [{"val/mAP": "0.5", "epoch": 3}]},
        {"history": {}},
        {"why": None},
    ],
    ids=str,
)
def test_other_values_in_the_record_of_a_trial(values: dict[str, Any], tmp_path: Path) -> None:
    swept = a_sweep(tmp_path)
    place = tmp_path / f"trials/{POINT['name']}.json"
    place.parent.mkdir()
    place.write_text(json.dumps(POINT))
    assert [asdict(point) for point in swept.known()] == [POINT]
    place.write_text(json.dumps(POINT | values))
    refused(place, CheckpointError, swept.known)


@pytest.mark.parametrize("start", ["../../precious", "/etc", "t-0123456789", "", 7])
def test_the_record_of_a_trial_cannot_have_a_folder_deleted(start: Any, tmp_path: Path) -> None:
    swept, values = a_sweep(tmp_path / "sweep"), VALUES | {START: start}
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("x")
    place = tmp_path / f"sweep/trials/{name_of(values)}.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(POINT | {"name": name_of(values), "values": values}))
    refused(place, CheckpointError, lambda: remove_starts(swept))
    assert (tmp_path / "precious/file").exists()


@broken
def test_a_broken_list_of_ray_train_is_made_anew(breaks: Any, tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 3, 5)
    (folder / SNAPSHOT).unlink()
    breaks(folder / SNAPSHOT)
    if breaks is Path.mkdir:  # nothing of ours makes a folder of that name, and none is taken away
        refused(folder / SNAPSHOT, StorageError, lambda: set_torn_aside(str(folder)))
        return
    assert set_torn_aside(str(folder)) == []
    assert listed(folder) == (["epoch-0005"], "epoch-0005", 5)


@pytest.mark.parametrize(
    "values",
    [
        {"checkpoint_results": [1]},
        {"checkpoint_results": [{}]},
        {"checkpoint_results": [{"checkpoint_dir_name": "epoch-0003", "metrics": []}]},
        {"checkpoint_results": [{"checkpoint_dir_name": "epoch-0003", "metrics": {"val/mAP": "high"}}]},
        {"checkpoint_results": [{"checkpoint_dir_name": "../epoch-0003", "metrics": {}}]},
        {"checkpoint_report_indices": [2]},
        {"checkpoint_report_indices": ["2", "4"]},
        {"latest_checkpoint_result": {"checkpoint_dir_name": "epoch-0004", "metrics": {}}},
        {"latest_checkpoint_result": "epoch-0005"},
        {"pending_training_results": 1},
        {"pending_training_results": [{"checkpoint_dir_name": "epoch-0009", "metrics": {}}]},
        {"current_report_index": "5"},
        {"validated_checkpoint_dir_names": [1]},
    ],
    ids=lambda values: str(values)[:60],
)
def test_a_list_of_ray_train_with_other_values_is_made_anew(values: dict[str, Any], tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 3, 5)
    good = json.loads((folder / SNAPSHOT).read_text())
    (folder / SNAPSHOT).write_text(json.dumps(good | values))
    assert set_torn_aside(str(folder)) == []
    assert listed(folder) == (["epoch-0005"], "epoch-0005", 5)


@broken
def test_a_broken_lock_is_waited_for_and_taken_over(breaks: Any, tmp_path: Path) -> None:
    place = tmp_path / ".gracl-lock-0.json"
    breaks(place)
    refuse_held(str(tmp_path), "this place")  # nobody of this machine is known to hold it
    told: list[str] = []
    with holding(str(tmp_path), "this place", tell=told.append, beat=0.05, stale=0.3):
        assert not place.exists()
    assert "taken over" in told[-1]


@pytest.mark.parametrize(
    "values", [{"pid": "1"}, {"pid": 10**30}, {"pid": -1}, {"host": 7}, {"held": "no"}, {}], ids=str
)
def test_a_lock_of_other_values_is_waited_for_and_taken_over(values: dict[str, Any], tmp_path: Path) -> None:
    with holding(str(tmp_path), "this place"):
        (mine,) = tmp_path.glob(".gracl-lock-*")
        good = json.loads(mine.read_text())
    other = tmp_path / ".gracl-lock-0.json"
    other.write_text(json.dumps(good | values if values else {}))
    with holding(str(tmp_path), "this place", tell=lambda words: None, beat=0.05, stale=0.3):
        assert not other.exists()


def test_a_far_file_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "read_bytes", lambda uri: pytest.fail("it was read"))
    storage.write_bytes("memory://long/run.json", bytes(MAX_BYTES + 1))
    refused(Path("run.json"), CheckpointError, lambda: read_run("memory://long"))


def test_the_longest_file_that_is_read_takes_bounded_memory(tmp_path: Path) -> None:
    """Of all texts of a length, one of empty lists makes the most objects of it."""
    (tmp_path / "a").write_text('{"a": [' + "[]," * 100_000 + "[]]}")
    tracemalloc.start()
    read_values(str(tmp_path / "a"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / (tmp_path / "a").stat().st_size * MAX_BYTES < 10**9


@pytest.mark.parametrize(
    ("value", "kind", "holds"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        (False, float, False),
        (float("nan"), float, True),
        ("a", str, True),
        ("\ud800", str, False),
        (None, int | None, True),
        ("a", int | None, False),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ({"a": 1.0}, dict[str, float], True),
        ({"a": []}, dict[str, float], False),
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        ([1, 2, 3], tuple[int, ...], True),
        ([], tuple[int, ...], True),
        ("ab", tuple[str, str], False),
        ("done", Literal["done"], True),
        (1, Literal[True], False),
        ([[[]]], Any, True),
    ],
    ids=str,
)
def test_kinds(value: object, kind: Any, holds: bool) -> None:
    assert fits(value, kind) is holds


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="^no a; b: x$"):
        check_values({"b": "x", "d": 1}, {"a": int, "b": int, "c": str}, optional=["c"])


def test_no_other_reader_of_json() -> None:
    """A file that is read as JSON elsewhere would break on what is tried here."""
    root = Path(plain_json.__file__).parents[1]
    found = {
        file.relative_to(root).as_posix()
        for file in root.rglob("*.py")
        if "json.load(" in file.read_text() or "json.loads(storage" in file.read_text()
    }
    assert found == set()

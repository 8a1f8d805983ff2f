import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracl.errors import ConfigError, GraclError, ImageError, LayoutError, ShardError, StorageError
from gracl.images import ingesting, storage
from gracl.images.ingesting import in_this_process, ingest_here, write_splits
from gracl.images.layouts import list_images
from gracl.images.shards import ShardStore
from tests.raw_images import MARKET, fill, fill_folders, picture

SPLITS = ("train", "query", "gallery")


@pytest.fixture
def raw(tmp_path: Path) -> str:
    return fill_folders(str(tmp_path / "raw"), MARKET)


@pytest.fixture(params=["disk", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GRACL_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "out") if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


def finished(out: str) -> list[str]:
    return [split for split in SPLITS if storage.exists(storage.join(out, split, "manifest.json"))]


def files(out: str) -> dict[str, bytes]:
    """Everything under a root, by path."""
    fs, base = storage.locate(out)
    return {path.removeprefix(base): fs.cat_file(path) for path in fs.find(base)} if fs.exists(base) else {}


def test_a_whole_dataset(raw: str, out: str) -> None:
    manifests = ingest_here(raw, out, "market1501")
    assert {split: manifest.num_images for split, manifest in manifests.items()} == {
        "train": 3,
        "query": 2,
        "gallery": 4,
    }
    assert manifests["gallery"].num_objects == 3
    assert manifests["gallery"].notes == {"junk": 2, "not_images": 0}
    assert manifests["train"].layout_version == "Market-1501 naming"
    for split in SPLITS:
        store = ShardStore.open(out, split)
        assert store.manifest == manifests[split]
        store.verify()
    assert sorted(files(out)) == sorted(
        f"/{split}/{name}" for split in SPLITS for name in ("manifest.json", "shard-00000.arrow")
    )


def test_memory_to_memory(tmp_path: Path) -> None:
    here, far = f"memory://{uuid.uuid4().hex}", f"memory://{uuid.uuid4().hex}"
    fill(here, ["x/a.png", "b.jpg"])
    ingest_here(here, far, "unlabelled")
    store = ShardStore.open(far, "train", cache=str(tmp_path))
    assert store.paths(np.arange(2)) == ["b.jpg", "x/a.png"]
    assert [bytes(image) for image in store.read(np.arange(2))] == [
        storage.read_bytes(f"{here}/b.jpg"),
        storage.read_bytes(f"{here}/x/a.png"),
    ]
    assert finished(far) == ["train"]


def test_the_same_folder_gives_the_same_bytes(raw: str, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    ingest_here(raw, one, "market1501")
    ingest_here(raw, two, "market1501")
    assert files(one) == files(two)


def test_bad_images_are_an_error_that_lists_them(raw: str, out: str) -> None:
    for name in MARKET["query"]:
        storage.write_bytes(f"{raw}/query/{name}", picture(1)[:-50])
    with pytest.raises(ImageError, match="expected images that can be read; came 2 that cannot") as error:
        ingest_here(raw, out, "market1501")
    assert all(f"query/{name}: " in str(error.value) for name in MARKET["query"])
    assert "on_bad_image=skip" in str(error.value)
    assert files(out) == {}


def test_only_the_first_twenty_are_shown(tmp_path: Path) -> None:
    for number in range(25):
        storage.write_bytes(str(tmp_path / f"raw/{number:02d}.jpg"), b"x")
    with pytest.raises(ImageError, match="came 25 that cannot") as error:
        ingest_here(str(tmp_path / "raw"), str(tmp_path / "out"), "unlabelled")
    assert str(error.value).count(".jpg: ") == 20
    assert "and 5 more" in str(error.value)


def test_skipped_images_are_listed_and_not_numbered(tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = fill(str(tmp_path / "raw"), [f"{number}.jpg" for number in range(6)])
    for number in (0, 3):
        storage.write_bytes(f"{raw}/{number}.jpg", b"no picture")
    monkeypatch.setattr("gracl.images.writing.MEGABYTE", 1)  # one image in each shard
    manifest = ingest_here(raw, out, "unlabelled", on_bad_image="skip")["train"]
    assert [bad.path for bad in manifest.bad_images] == ["0.jpg", "3.jpg"]
    assert all("no picture" in bad.reason for bad in manifest.bad_images)
    store = ShardStore.open(out, "train")
    store.verify()
    assert len(store) == 4
    assert store.paths(np.arange(4)) == ["1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    assert [record.index for record in store.records(np.arange(4))] == [0, 1, 2, 3]


def test_a_split_of_bad_images_alone_is_an_error(raw: str, out: str) -> None:
    for name in MARKET["query"]:
        storage.write_bytes(f"{raw}/query/{name}", b"x")
    with pytest.raises(LayoutError, match="a readable image in the split query; came none"):
        ingest_here(raw, out, "market1501", on_bad_image="skip")
    assert files(out) == {}


def test_an_existing_split_is_replaced_only_when_asked(raw: str, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gracl.images.writing.MEGABYTE", 1)
    ingest_here(raw, out, "market1501")
    before = files(out)
    with pytest.raises(ConfigError, match="came train, query, gallery; choose another out=, or say overwrite=true"):
        ingest_here(raw, out, "market1501")
    assert files(out) == before
    monkeypatch.setattr("gracl.images.writing.MEGABYTE", 10**6)
    storage.write_bytes(f"{raw}/query/0009_c1s1_000001_00.jpg", picture(50))
    ingest_here(raw, out, "market1501", overwrite=True)
    assert len(ShardStore.open(out, "query")) == 3
    # No shard of the older, finer cut is left behind.
    assert [name for name in storage.names_in(storage.join(out, "gallery")) if name.startswith("shard")] == [
        "shard-00000.arrow"
    ]


def test_a_refused_overwrite_leaves_the_old_split_whole(raw: str, out: str) -> None:
    ingest_here(raw, out, "market1501")
    before = files(out)
    storage.write_bytes(f"{raw}/query/0009_c1s1_000001_00.jpg", b"x")
    with pytest.raises(ImageError):
        ingest_here(raw, out, "market1501", overwrite=True)
    assert files(out) == before


def add(raw: str) -> None:
    storage.write_bytes(f"{raw}/query/0009_c1s1_000001_00.jpg", picture(50))


def drop(raw: str) -> None:
    storage.remove(f"{raw}/query/{MARKET['query'][0]}")


def touch(raw: str) -> None:
    os.utime(f"{raw}/query/{MARKET['query'][0]}", ns=(1, 1))


@pytest.mark.parametrize("change", [add, drop, touch])
def test_a_folder_that_is_being_written_is_refused(raw: str, out: str, change: Callable[[str], None]) -> None:
    def run(function: Callable[[Any], Any], jobs: Sequence[Any]) -> Any:
        yield from in_this_process(function, jobs)
        change(raw)

    def look() -> Any:
        return list_images(raw, "market1501")

    with pytest.raises(
        LayoutError, match="to stay as it was while it is read; came 1 images added, removed or rewritten"
    ):
        write_splits(look(), out, list_again=look, run=run)
    assert files(out) == {}


@pytest.mark.parametrize("step", ["write_shard", "list_images", "move_shard", "make_manifest"])
@pytest.mark.parametrize("error", [KeyboardInterrupt("stop"), ValueError("bug"), LayoutError("gone")])
def test_a_failure_at_any_step_leaves_no_split(
    raw: str, out: str, step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(ingesting, step), []

    def fail(*arguments: Any, **options: Any) -> Any:
        calls.append(step)
        if len(calls) == 2:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(ingesting, step, fail)
    with pytest.raises(type(error), match=str(error)):
        ingest_here(raw, out, "market1501")
    assert len(calls) == 2
    assert finished(out) == []
    assert not any("/.ingest" in path for path in files(out))


def test_a_full_disk_is_said(raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="room and leave to write .*No space left"):
        ingest_here(raw, str(tmp_path / "out"), "market1501")


KILLED = """
import sys, time
from gracl.images import ingesting
step, raw, out = sys.argv[1:]
real, calls = getattr(ingesting, step), []
def wait(*arguments, **options):
    calls.append(1)
    if len(calls) == 2:
        print("here", flush=True)
        time.sleep(600)
    return real(*arguments, **options)
setattr(ingesting, step, wait)
ingesting.ingest_here(raw, out, "market1501", overwrite=True)
"""


@pytest.mark.parametrize(("step", "old"), [("write_shard", True), ("move_shard", False), ("write_shard", False)])
def test_a_killed_ingest_never_leaves_half_a_split(raw: str, tmp_path: Path, step: str, old: bool) -> None:
    out = str(tmp_path / "out")
    if old:
        ingest_here(raw, out, "market1501")
    arguments = [sys.executable, "-c", KILLED, step, raw, out]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    if old:  # killed before anything was replaced: the old splits are whole
        for split in SPLITS:
            ShardStore.open(out, split).verify()
        return
    assert finished(out) == []
    with pytest.raises(ShardError, match="no manifest"):
        ShardStore.open(out, "train")
    # And nothing stands in the way of the next one.
    ingest_here(raw, out, "market1501")
    for split in SPLITS:
        ShardStore.open(out, split).verify()


def test_progress_counts_every_image(raw: str, tmp_path: Path) -> None:
    def look() -> Any:
        return list_images(raw, "market1501")

    seen: list[int] = []
    write_splits(look(), str(tmp_path / "out"), list_again=look, progress=seen.append)
    assert seen == [3, 2, 4]


def test_every_refusal_is_of_the_family(raw: str, tmp_path: Path) -> None:
    with pytest.raises(GraclError):
        ingest_here(raw, str(tmp_path / "out"), "veri776")

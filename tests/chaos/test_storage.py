"""Disks and stores that misbehave: what was written is whole or absent, what is torn is found and named."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import s3fs
import torch

from benchmarks.local_twin import learn
from gracl.errors import CheckpointError, GraclError, ShardError, StorageError
from gracl.images import storage
from gracl.images.ingesting import ingest_here
from gracl.images.manifests import read_manifest
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import STATE_FILE, TrainState, load_state, save_state
from gracl.locks import holding
from gracl.runtime import salvage
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.salvage import SNAPSHOT, is_whole, set_torn_aside
from tests.flaky import Faults, flaky
from tests.raw_images import MARKET, fill_folders
from tests.s3 import BUCKET, listening, reached_at, serving
from tests.toy import toy_config

KINDS = ("500", "503", "reset", "cut")


def truncate(shard: Path) -> None:
    """In place, as a copy does that is stopped: a mapped file then ends the process that reads behind its end."""
    os.truncate(shard, shard.stat().st_size // 2)


def flip(shard: Path) -> None:
    """One bit, in place, with the time of before: as a disk does it."""
    status = shard.stat()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    with shard.open("r+b") as file:
        file.write(content)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def touched_flip(shard: Path) -> None:
    """One bit, in place, by somebody who writes."""
    flip(shard)
    os.utime(shard)


def supplant(shard: Path) -> None:
    """Another file of the same size under the same name."""
    other = shard.with_name("other")
    other.write_bytes(os.urandom(shard.stat().st_size))
    other.replace(shard)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A split of several shards on a disk."""
    monkeypatch.setattr("gracl.images.writing.MEGABYTE", 1)
    out = tmp_path / "out"
    ingest_here(fill_folders(str(tmp_path / "raw"), MARKET), str(out), "market1501", shard_mb=1)
    return out


@pytest.mark.parametrize("harm", [truncate, flip, supplant, Path.unlink])
def test_a_shard_that_is_not_what_its_manifest_says_is_named(shards: Path, harm: Callable[[Path], None]) -> None:
    shard = shards / "gallery" / "shard-00001.arrow"
    harm(shard)
    with pytest.raises(ShardError) as refused:
        ShardStore.open(str(shards), "gallery").read(np.arange(4))
    assert str(shard) in str(refused.value)
    assert "ingest the split again" in str(refused.value)


@pytest.mark.parametrize("harm", [truncate, touched_flip, supplant, Path.unlink])
def test_a_shard_that_is_changed_under_a_reader_is_named(shards: Path, harm: Callable[[Path], None]) -> None:
    store, shard = ShardStore.open(str(shards), "gallery"), shards / "gallery" / "shard-00001.arrow"
    before = [bytes(image) for image in store.read(np.arange(4))]
    harm(shard)
    with pytest.raises(ShardError) as refused:
        store.read(np.arange(4))
    assert str(shard) in str(refused.value)
    assert [bytes(image) for image in store.read(np.array([0, 2, 3]))] == [before[0], *before[2:]]


def test_the_same_content_written_again_harms_nobody(shards: Path) -> None:
    store, shard = ShardStore.open(str(shards), "gallery"), shards / "gallery" / "shard-00001.arrow"
    before = [bytes(image) for image in store.read(np.arange(4))]
    shutil.copy(shard, shard.with_name("other"))
    shard.with_name("other").replace(shard)
    assert [bytes(image) for image in store.read(np.arange(4))] == before


def test_without_checksums_a_flipped_bit_passes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is the checksum that finds it; and the switch takes nothing but 0 and 1."""
    flip(shards / "gallery" / "shard-00001.arrow")
    monkeypatch.setenv("GRACL_VERIFY", "0")
    assert len(ShardStore.open(str(shards), "gallery").read(np.arange(4))) == 4
    monkeypatch.setenv("GRACL_VERIFY", "no")
    with pytest.raises(GraclError, match="GRACL_VERIFY of 0 or 1; came 'no'"):
        ShardStore.open(str(shards), "query").read(np.arange(2))


@pytest.mark.slow
@pytest.mark.parametrize("harm", [truncate, supplant])
def test_a_training_whose_shards_are_harmed_ends_with_their_name(
    toy_shards: str, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    root = tmp_path / "shards"
    shutil.copytree(toy_shards, root)
    shard, kept = root / "train" / "shard-00000.arrow", tmp_path / "kept"

    def keep(report: Any, state: TrainState) -> None:
        save_state(state, kept)
        harm(shard)

    with pytest.raises(ShardError, match=str(shard)):
        learn(toy_config(str(root)), reporter=keep)
    assert load_state(kept).epoch == 1


def small(epoch: int = 1) -> TrainState:
    """A state of few bytes."""
    history = [{"epoch": float(number), "val/mAP": 0.1 * number} for number in range(1, epoch + 1)]
    view = {"height": 1, "width": 2}
    return TrainState(epoch, {"a": torch.arange(6.0)}, {"state": {}}, 0.5, epoch, {"x": 1}, {}, view, history)


def test_no_flipped_bit_of_a_checkpoint_is_learnt_from(tmp_path: Path) -> None:
    """Every second byte of the file: refused with its name, or in a place that nobody reads."""
    file = save_state(small(), tmp_path)
    good, wanted, refused = file.read_bytes(), str(load_state(tmp_path)), 0
    for place in range(0, len(good), 2):
        file.write_bytes(good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :])
        try:
            found = str(load_state(tmp_path))
        except CheckpointError as error:
            found, refused = wanted if str(file) in str(error) else str(error), refused + 1
        assert found == wanted, place
    assert refused > len(good) // 4


def test_no_part_of_a_checkpoint_is_taken_for_the_whole(tmp_path: Path) -> None:
    file = save_state(small(), tmp_path)
    good = file.read_bytes()
    for size in range(0, len(good), 7):
        file.write_bytes(good[:size])
        with pytest.raises(CheckpointError, match=str(file)):
            load_state(tmp_path)
    file.write_bytes(good[:-512] + bytes(512))  # as after a power cut: the size is there, the last pages are not
    with pytest.raises(CheckpointError, match=str(file)):
        load_state(tmp_path)


def run_of(folder: Path, *epochs: int, finished: int = 0) -> Path:
    """A run's folder as Ray Train leaves it, with the checkpoints of these epochs."""
    entries = []
    for epoch in epochs:
        save_state(small(epoch), folder / f"epoch-{epoch:04d}")
        metrics = small(epoch).history[-1]
        entries.append({"version": 0, "checkpoint_dir_name": f"epoch-{epoch:04d}", "metrics": metrics})
    snapshot = {name: [] for name in salvage._EMPTY} | {
        "ray_version": "0",
        "checkpoint_results": entries,
        "checkpoint_report_indices": [epoch - 1 for epoch in epochs],
        "latest_checkpoint_result": entries[-1],
        "current_report_index": epochs[-1],
    }
    (folder / SNAPSHOT).write_text(json.dumps(snapshot))
    (folder / "run.json").write_text(json.dumps({"finished": finished, "recipe": {}}))
    return folder


def listed(folder: Path) -> tuple[list[str], str, int]:
    """Ray Train's list: which checkpoints, the last, how many reports."""
    saved = json.loads((folder / SNAPSHOT).read_text())
    names = [one["checkpoint_dir_name"] for one in saved["checkpoint_results"]]
    assert len(saved["checkpoint_report_indices"]) == len(names)
    return names, saved["latest_checkpoint_result"]["checkpoint_dir_name"], saved["current_report_index"]


def damage(file: Path) -> None:
    """One bit of a weight of `small`."""
    content = bytearray(file.read_bytes())
    content[content.index(np.float32(5).tobytes())] ^= 1
    file.write_bytes(content)


def test_a_run_goes_on_from_the_last_epoch_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 5, finished=5)
    assert set_torn_aside(str(folder)) == []
    assert capsys.readouterr().err == ""
    assert listed(folder) == (["epoch-0003", "epoch-0005"], "epoch-0005", 5)
    damage(folder / "epoch-0005" / STATE_FILE)
    assert not is_whole(str(folder))
    assert set_torn_aside(str(folder)) == [5]
    said = capsys.readouterr().err
    assert str(folder / "epoch-0005" / STATE_FILE) in said
    assert "checksum" in said
    assert f"it is {folder / 'torn-epoch-0005' / STATE_FILE} now; going on after epoch 3" in said
    assert is_whole(str(folder))
    assert listed(folder) == (["epoch-0003"], "epoch-0003", 3)
    assert json.loads((folder / "run.json").read_text())["finished"] == 3
    assert (folder / "torn-epoch-0005" / STATE_FILE).exists()
    assert not (folder / "epoch-0005").exists()


def test_what_a_killed_upload_left_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 4)
    (folder / "epoch-0005").mkdir()
    (folder / "epoch-0005" / STATE_FILE).write_bytes(b"PK half of it")
    (folder / "epoch-0006").mkdir()
    assert set_torn_aside(str(folder)) == [5, 6]
    assert listed(folder) == (["epoch-0003", "epoch-0004"], "epoch-0004", 4)
    assert "going on after epoch 4" in capsys.readouterr().err
    damage(folder / "epoch-0004" / STATE_FILE)
    damage(folder / "epoch-0003" / STATE_FILE)
    with pytest.raises(CheckpointError, match=f"a whole checkpoint among those in {folder}.*delete {folder} to begin"):
        set_torn_aside(str(folder))
    assert (folder / "epoch-0004").exists()


def test_the_very_first_upload_that_was_killed_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    (folder / "epoch-0001").mkdir(parents=True)
    (folder / "epoch-0001" / STATE_FILE).write_bytes(b"PK half of it")
    assert set_torn_aside(str(folder)) == [1]
    assert "going on after epoch 0" in capsys.readouterr().err


def test_a_checkpoint_that_was_kept_and_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 5)
    shutil.rmtree(folder / "epoch-0003")
    assert set_torn_aside(str(folder)) == []
    assert "epoch-0003, which was kept, is gone" in capsys.readouterr().err
    assert listed(folder) == (["epoch-0005"], "epoch-0005", 5)


def test_a_checkpoint_of_another_epoch_is_none_of_this(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 5)
    shutil.copy(folder / "epoch-0003" / STATE_FILE, folder / "epoch-0005" / STATE_FILE)
    assert set_torn_aside(str(folder)) == [5]
    assert "the checkpoint of epoch 5 at" in capsys.readouterr().err


def test_a_torn_list_of_ray_train_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", 3, 5)
    whole = (folder / SNAPSHOT).read_text()
    (folder / SNAPSHOT).write_text(whole[: len(whole) // 2])
    assert set_torn_aside(str(folder)) == []
    assert f"{folder / SNAPSHOT} is torn" in capsys.readouterr().err
    assert listed(folder) == (["epoch-0005"], "epoch-0005", 5)


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from gracl.errors import StorageError
from gracl.images import storage
from gracl.learning.checkpoint import TrainState, save_state
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for write in (
    lambda: save_state(TrainState(2, {"a": torch.zeros(100_000)}, {}, None, None, {}, {}, {}), folder),
    lambda: storage.write_bytes(str(folder / "run.json"), bytes(400_000)),
):
    try:
        write()
    except StorageError as error:
        print(error)
"""


def write_in(folder: Path, limit: int = 0, *, before: str = "") -> list[str]:
    """What a process says that writes a checkpoint and a record where there is no room or leave."""
    command = f'{before} exec {sys.executable} -c "$CODE" {folder} {limit}'
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=120, env=os.environ | {"CODE": FULL}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def assert_nothing_was_lost(folder: Path, said: list[str], words: str) -> None:
    assert len(said) == 2, said
    for line, name in zip(said, (STATE_FILE, "run.json"), strict=True):
        assert f"expected room and leave to write {folder / name}; came" in line
        assert words in line
    assert load_state(folder).epoch == 1
    assert (folder / "run.json").read_bytes() == b"old"
    assert sorted(os.listdir(folder)) == ["run.json", STATE_FILE]


def test_a_write_that_ends_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    save_state(small(), tmp_path)
    (tmp_path / "run.json").write_bytes(b"old")
    assert_nothing_was_lost(tmp_path, write_in(tmp_path, 50_000), "File too large")


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A small disk in memory; skips where this process may not mount."""
    place.mkdir(exist_ok=True)
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", *options, "none", place], capture_output=True).returncode
    ):
        pytest.skip("this process may not mount a disk; the test with a limit for files stands for it")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "-o", "size=128k"):
        save_state(small(), disk)
        (disk / "run.json").write_bytes(b"old")
        assert_nothing_was_lost(disk, write_in(disk), "No space left on device")
        with holding(str(disk), "run", beat=0.05):  # a full disk takes no more than signs of life
            (disk / "more").write_bytes(b"")
            with pytest.raises(OSError, match="No space"):
                (disk / "more").write_bytes(bytes(1 << 20))
            (name,) = (name for name in os.listdir(disk) if name.startswith(".gracl-lock"))
            os.utime(disk / name, (1e9, 1e9))
            time.sleep(0.4)
            assert (disk / name).stat().st_mtime > 1e9 + 1


def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    """A mount and not chmod: whoever runs the tests may be root, who may write anywhere."""
    disk = tmp_path / "disk"
    with mounted(disk):
        save_state(small(), disk)
        (disk / "run.json").write_bytes(b"old")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert_nothing_was_lost(disk, write_in(disk), "Read-only file system")
        with pytest.raises(StorageError, match="Read-only"), holding(str(disk), "run"):
            pass
        raw = fill_folders(str(tmp_path / "raw"), MARKET)
        with pytest.raises(GraclError, match=f"room and leave to write .*{disk}.*Read-only"):
            ingest_here(raw, str(disk / "out"), "market1501", allow_shared_identities=True)


def test_a_disk_that_goes_away_while_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, gone, real = tmp_path / "disk", tmp_path / "gone", os.fsync
    folder.mkdir()

    def vanish(descriptor: int) -> None:
        real(descriptor)
        folder.rename(gone)

    monkeypatch.setattr(os, "fsync", vanish)
    for write, name in (
        (lambda: storage.write_bytes(str(folder / "run.json"), b"new"), "run.json"),
        (lambda: save_state(small(2), folder), STATE_FILE),
    ):
        with pytest.raises(StorageError, match=f"room and leave to write {folder / name}; came .*No such file"):
            write()
        assert not (gone / name).exists()
        gone.rename(folder)
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize("number", [5, 28, 30, 116])
def test_a_failing_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Input/output error, full, read-only, a stale NFS handle: at the boundary to the system."""
    save_state(small(), tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"{tmp_path / STATE_FILE}.*{os.strerror(number)}"):
        save_state(small(2), tmp_path)
    assert load_state(tmp_path).epoch == 1


@pytest.fixture(scope="module")
def place() -> Iterator[socket.socket]:
    with listening() as place, serving(place):
        yield place


@contextmanager
def through(place: socket.socket, faults: Faults) -> Iterator[str]:
    """A bucket that is reached through a proxy with faults."""
    with flaky(place.getsockname(), faults) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in (reached_at(place) | {"AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield f"s3://{BUCKET}/{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_a_store_that_fails_every_tenth_request_loses_nothing(
    place: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingest, reading and locks through s3fs; checkpoints as Ray Train puts them, through pyarrow."""
    monkeypatch.setattr("gracl.images.writing.MEGABYTE", 1)
    faults, options = Faults(KINDS), {"layout": "market1501", "shard_mb": 1}
    ingest_here(fill_folders(str(tmp_path / "raw"), MARKET), str(tmp_path / "near"), **options)
    with through(place, faults) as bucket:
        raw, out = fill_folders(storage.join(bucket, "raw"), MARKET), storage.join(bucket, "shards")
        ingest_here(raw, out, **options)
        for split in ("train", "query", "gallery"):
            local, far = read_manifest(str(tmp_path / "near"), split), read_manifest(out, split)
            assert replace(far, source="") == replace(local, source="")
            store = ShardStore.open(out, split, cache=str(tmp_path / "cache"))
            store.verify()
            rows = np.arange(len(store))
            assert store.read(rows) == ShardStore.open(str(tmp_path / "near"), split).read(rows)
        assert storage.names_in(out) == ["gallery", "query", "train"]
        run = storage.join(bucket, "run")
        with holding(run, "run"):
            for epoch in range(1, 6):
                save_state(small(epoch), tmp_path / "state")
                fs, path = pyarrow.fs.FileSystem.from_uri(storage.join(run, f"epoch-{epoch:04d}"))
                pyarrow.fs.copy_files(str(tmp_path / "state"), path, destination_filesystem=fs)
                assert str(load_run_state(storage.join(run, f"epoch-{epoch:04d}"))) == str(small(epoch))
            assert set_torn_aside(run) == []
    assert {kind for kind, _ in faults.done} == set(KINDS)
    assert len(faults.done) == faults.asked // 10 >= 10
    assert len({what.split()[0] for _, what in faults.done}) >= 3, "the faults are meant to hit reads and writes"


def test_a_store_that_never_answers_well_is_named_in_bounded_time(
    place: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for kind in ("500", "reset"):
        with through(place, Faults([kind], every=1)) as bucket:
            begun = time.monotonic()
            with pytest.raises(StorageError, match=f"a store that answers at {bucket}/a; came"):
                storage.read_bytes(f"{bucket}/a")
            assert time.monotonic() - begun < 60


def test_a_far_checkpoint_that_is_torn_is_named_and_the_one_before_is_found(
    place: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = run_of(tmp_path / "run", 3, 5)
    damage(local / "epoch-0005" / STATE_FILE)
    with through(place, Faults(["slow"], every=10)) as bucket:
        for file in (file for file in local.rglob("*") if file.is_file()):
            storage.write_bytes(storage.join(bucket, "run", str(file.relative_to(local))), file.read_bytes())
        with pytest.raises(CheckpointError, match=f"a whole checkpoint at {bucket}/run/epoch-0005/state.pt"):
            load_run_state(f"{bucket}/run/epoch-0005")
        assert set_torn_aside(f"{bucket}/run") == [5]
        assert storage.names_in(f"{bucket}/run") == [SNAPSHOT, "epoch-0003", "run.json", "torn-epoch-0005"]
        assert load_run_state(f"{bucket}/run/epoch-0003").epoch == 3
    assert f"{bucket}/run/torn-epoch-0005/{STATE_FILE} now; going on after epoch 3" in capsys.readouterr().err


def test_a_far_shard_that_is_torn_or_gone_is_named(place: socket.socket, tmp_path: Path) -> None:
    with through(place, Faults([], every=10**9)) as bucket:
        ingest_here(fill_folders(str(tmp_path / "raw"), MARKET), bucket, "market1501")
        shard = storage.join(bucket, "gallery", "shard-00000.arrow")
        content = bytearray(storage.read_bytes(shard))
        content[len(content) // 2] ^= 1
        for bad in (bytes(content), bytes(content[:-9])):
            storage.write_bytes(shard, bad)
            with pytest.raises(ShardError, match=f"shard-00000.arrow of {bucket}/gallery with"):
                ShardStore.open(bucket, "gallery", cache=str(tmp_path / "cache"))
        storage.remove(shard)
        with pytest.raises(ShardError, match=f"a shard at {shard}; came no such file"):
            ShardStore.open(bucket, "gallery", cache=str(tmp_path / "cache"))
        assert list((tmp_path / "cache").rglob("*.arrow")) == []

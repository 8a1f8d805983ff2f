"""Disks that are full, read-only or go away: what was written is whole or absent."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gracl.errors import GraclError, StorageError
from gracl.images import storage
from gracl.images.ingesting import ingest_here
from gracl.learning.checkpoint import STATE_FILE, load_state, save_state
from gracl.locks import holding
from tests.chaos.torn import small
from tests.raw_images import MARKET, fill_folders

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

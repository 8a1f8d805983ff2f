import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest

from gracl.errors import ShardError
from gracl.images import cache, storage
from gracl.images.cache import Wanted, cached_copy, default_cache


def remote(root: Path, count: int = 3) -> tuple[str, list[Wanted]]:
    wanted = []
    for number in range(count):
        content = bytes([number]) * (1000 + number)
        storage.write_bytes(str(root / f"shard-{number}"), content)
        wanted.append(Wanted(f"shard-{number}", len(content), hashlib.sha256(content).hexdigest()))
    return f"file://{root}", wanted


def test_files_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, files = remote(tmp_path / "far")
    cached_copy(root, files, tmp_path / "near")
    assert [(tmp_path / "near" / file.name).stat().st_size for file in files] == [file.bytes for file in files]

    def refuse(source: str, target: Path) -> None:
        raise AssertionError(f"{source} was copied again")

    monkeypatch.setattr(cache, "_download", refuse)
    cached_copy(root, files, tmp_path / "near")


def test_a_file_of_another_size_is_copied_again(tmp_path: Path) -> None:
    root, files = remote(tmp_path / "far")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "shard-1").write_bytes(b"half")
    cached_copy(root, files, tmp_path / "near")
    assert (tmp_path / "near" / "shard-1").read_bytes() == bytes([1]) * 1001


def test_what_is_torn_gets_no_name(tmp_path: Path) -> None:
    root, files = remote(tmp_path / "far")
    (tmp_path / "far" / "shard-2").write_bytes(bytes(1002))
    with pytest.raises(ShardError, match="expected shard-2 of .* with 1002 bytes"):
        cached_copy(root, files, tmp_path / "near")
    assert not [name for name in os.listdir(tmp_path / "near") if "shard-2" in name and not name.endswith(".lock")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    root, files = remote(tmp_path / "far")
    (tmp_path / "far" / "shard-0").unlink()
    with pytest.raises(ShardError, match="expected a shard at .*shard-0; came no such file"):
        cached_copy(root, files, tmp_path / "near")


def count_copies(root: str, files: list[Wanted], folder: Path, log: str) -> None:
    """Copies in a process of its own and writes one letter per download."""
    download = cache._download

    def counting(source: str, target: Path) -> None:
        with open(log, "a") as file:
            file.write("x")
        download(source, target)

    cache._download = counting
    cached_copy(root, files, folder)


def test_processes_share_the_work(tmp_path: Path) -> None:
    root, files = remote(tmp_path / "far", count=6)
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    arguments = (root, files, tmp_path / "near", str(log))
    processes = [context.Process(target=count_copies, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "x" * 6
    assert all((tmp_path / "near" / file.name).stat().st_size == file.bytes for file in files)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRACL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "gracl"
    monkeypatch.setenv("GRACL_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"

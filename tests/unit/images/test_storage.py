import os
import subprocess
import sys
import uuid
from importlib import util
from pathlib import Path

import pytest

from gracl.errors import ConfigError, StorageError
from gracl.images import storage


@pytest.fixture(params=["disk", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    roots = {"disk": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}
    return roots[request.param]


def test_bytes_come_back_and_folders_are_made(root: str) -> None:
    uri = storage.join(root, "a", "b", "c.bin")
    storage.write_bytes(uri, b"one")
    assert storage.read_bytes(uri) == b"one"
    storage.write_bytes(uri, memoryview(b"two!"))
    assert storage.read_bytes(uri) == b"two!"
    assert storage.names_in(storage.join(root, "a", "b")) == ["c.bin"]
    assert storage.is_folder(storage.join(root, "a"))
    assert not storage.is_folder(uri)


def test_read_many_keeps_order_and_says_what_failed(root: str) -> None:
    for name in ("a", "b[1]*"):
        storage.write_bytes(storage.join(root, f"x/{name}"), name.encode())
    b, lost, a = storage.read_many(root, ["x/b[1]*", "x/none", "x/a"])
    assert (b, a) == (b"b[1]*", b"a")
    assert isinstance(lost, FileNotFoundError)
    assert storage.read_many(root, []) == []


def test_move_and_remove(root: str) -> None:
    old, new = storage.join(root, "old/a"), storage.join(root, "new/a")
    storage.write_bytes(old, b"1")
    storage.write_bytes(new, b"22")
    storage.move(old, new)
    assert storage.read_bytes(new) == b"1"
    assert not storage.exists(old)
    storage.remove(storage.join(root, "new"))
    assert not storage.exists(new)
    storage.remove(storage.join(root, "new"))
    assert storage.names_in(storage.join(root, "new")) == []


def test_version_changes_with_the_content(root: str) -> None:
    uri = storage.join(root, "a")
    assert storage.version_of(uri) is None
    storage.write_bytes(uri, b"1")
    first = storage.version_of(uri)
    assert first == storage.version_of(uri)
    storage.write_bytes(uri, b"2")
    assert first != storage.version_of(uri)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "a")
    storage.write_bytes(uri, b"old")

    def fail(descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"room and leave to write {uri}; came no space"):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_paths_and_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.absolute("a/b/") == str(tmp_path / "a/b")
    assert storage.absolute("~/x") == str(tmp_path / "home/x")
    assert storage.absolute(f"file://{tmp_path}/a") == str(tmp_path / "a")
    assert storage.absolute("s3://bucket/key/") == "s3://bucket/key"
    assert storage.join("/", "a") == "/a"
    assert storage.join("memory://", "a", "b") == "memory://a/b"
    assert storage.join("s3://bucket/", "a") == "s3://bucket/a"
    assert storage.parent("s3://bucket/x/list.csv") == "s3://bucket/x"
    assert storage.parent("list.csv") == str(tmp_path)
    assert storage.is_local("file:///a")
    assert not storage.is_local("s3://a")
    assert storage.is_in_memory("memory://a")


def test_unknown_scheme_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"expected a URI of a known scheme; came 'nowhere://x'; use a local path"):
        storage.locate("nowhere://x")


@pytest.mark.skipif(util.find_spec("gcsfs") is not None, reason="gcsfs is installed, so nothing is missing")
def test_missing_package_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'gracl\[gs\]'"):
        storage.locate("gs://bucket/x")


def test_two_processes_never_take_one_temporary_name() -> None:
    code = "from gracl.images.storage import temporary_name; print(temporary_name('a'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    mine = storage.temporary_name("a")
    assert mine != other
    assert mine.startswith(".a.")

"""The verbs of `storage` against a server that speaks S3, on this machine."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import s3fs
from pyarrow.fs import FileSystem

from gracl.errors import LayoutError, ShardError, StorageError
from gracl.images import storage
from gracl.images.ingesting import ingest_here
from gracl.images.manifests import read_manifest
from gracl.images.shards import ShardStore
from tests.raw_images import MARKET, fill_folders
from tests.s3 import BUCKET, listening, reached_at, serving


@pytest.fixture(scope="module")
def place() -> Iterator[socket.socket]:
    with listening() as place, serving(place):
        yield place


@pytest.fixture
def bucket(place: socket.socket, request: pytest.FixtureRequest) -> Iterator[str]:
    fresh()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in reached_at(place).items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}/{request.node.name}"


def test_the_verbs(bucket: str) -> None:
    file = storage.join(bucket, "a", "b[1]*")
    assert storage.version_of(file) is None
    assert not storage.exists(file)
    assert storage.names_in(bucket) == []
    storage.write_bytes(file, b"one")
    first = storage.version_of(file)
    storage.write_bytes(file, memoryview(b"two"))
    assert storage.read_bytes(file) == b"two"
    assert first != storage.version_of(file)
    assert (storage.is_folder(storage.join(bucket, "a")), storage.is_folder(file)) == (True, False)
    assert storage.names_in(bucket) == ["a"]
    there, lost = storage.read_many(bucket, ["a/b[1]*", "a/none"])
    assert there == b"two"
    assert isinstance(lost, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(bucket, "none"))
    storage.move(file, storage.join(bucket, "c", "d"))
    assert storage.names_in(bucket) == ["c"]
    storage.remove(bucket)
    storage.remove(bucket)
    assert not storage.exists(bucket)


def test_what_another_process_writes_is_seen(bucket: str) -> None:
    """Ray Train writes checkpoints through pyarrow, and s3fs would remember the listing of before."""
    storage.write_bytes(storage.join(bucket, "run.json"), b"{}")
    assert storage.names_in(bucket) == ["run.json"]
    far, path = FileSystem.from_uri(bucket)
    far.create_dir(f"{path}/epoch-0001")
    with far.open_output_stream(f"{path}/epoch-0001/state.pt") as file:
        file.write(b"state")
    assert storage.exists(storage.join(bucket, "epoch-0001"))
    assert storage.read_bytes(storage.join(bucket, "epoch-0001", "state.pt")) == b"state"
    assert storage.names_in(bucket) == ["epoch-0001", "run.json"]


def test_from_bucket_to_bucket_as_from_disk_to_disk(bucket: str, tmp_path: Path) -> None:
    raw = fill_folders(storage.join(bucket, "raw"), MARKET)
    options = {"layout": "market1501", "allow_shared_identities": True}
    ingest_here(raw, storage.join(bucket, "shards"), **options)
    ingest_here(fill_folders(str(tmp_path / "raw"), MARKET), str(tmp_path / "shards"), **options)
    assert storage.names_in(storage.join(bucket, "shards")) == [
        "gallery",
        "query",
        "train",
    ]  # nothing is staged any more
    for split in ("gallery", "query", "train"):
        assert read_manifest(storage.join(bucket, "shards"), split).shards == (
            read_manifest(str(tmp_path / "shards"), split).shards
        )
        store = ShardStore.open(storage.join(bucket, "shards"), split, cache=str(tmp_path / "cache"))
        store.verify()
    storage.remove(storage.join(bucket, "shards", "train", "shard-00000.arrow"))
    with pytest.raises(ShardError, match="a shard at s3://"):
        ShardStore.open(storage.join(bucket, "shards"), "train", cache=str(tmp_path / "other"))


def test_a_bucket_that_is_not_there_is_named_and_not_made(bucket: str, tmp_path: Path) -> None:
    there = "s3://no-such-bucket/a"
    for asks in (storage.exists, storage.is_folder, storage.names_in, storage.read_bytes, storage.version_of):
        with pytest.raises(
            StorageError, match=r"expected a bucket for s3://no-such-bucket/a; came no such bucket; check"
        ):
            asks(there)
    with pytest.raises(StorageError, match="gracl makes no buckets"):
        storage.write_bytes(there, b"1")
    with pytest.raises(StorageError, match="no such bucket"):
        ingest_here(fill_folders(str(tmp_path / "raw"), MARKET), there, layout="market1501")
    with pytest.raises(LayoutError, match="a folder at"):
        ingest_here(bucket, storage.join(bucket, "out"), layout="unlabelled")


def test_wrong_credentials_are_told_from_silence(bucket: str) -> None:
    file = storage.join(bucket, "a")
    storage.write_bytes(file, b"1")
    requests.post(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth", data="0", timeout=10)  # from now on it looks
    try:
        for asks in (storage.exists, storage.read_bytes, storage.names_in):
            with pytest.raises(StorageError, match=r"a store that lets us in at s3://.*; check the credentials"):
                asks(file)
        with pytest.raises(StorageError, match="lets us in"):
            storage.write_bytes(file, b"2")
    finally:
        requests.post(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth", data="inf", timeout=10)


def test_no_credentials_at_all(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fresh()
    with pytest.raises(StorageError, match="check the credentials"):
        storage.exists(bucket)


def test_a_store_that_does_not_answer(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fresh()
    with pytest.raises(
        StorageError, match=r"a store that answers at s3://.*EndpointConnectionError.*check the endpoint"
    ):
        storage.exists(bucket)
    with pytest.raises(StorageError, match="EndpointConnectionError"):
        storage.read_many(bucket, ["a.jpg"])


def test_a_store_that_pyarrow_does_not_reach_is_refused(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.require_arrow(bucket)
    storage.require_arrow(str(tmp_path / "nowhere"))

    def unreached(uri: str) -> None:  # what it says where only ~/.aws/config has the endpoint, after six seconds
        raise OSError("When resolving region for bucket 'gracl': AWS Error NETWORK_CONNECTION during HeadBucket")

    monkeypatch.setattr(storage, "FileSystem", SimpleNamespace(from_uri=unreached))
    with pytest.raises(StorageError, match=r"a store that pyarrow reaches at s3://.*environment variables"):
        storage.require_arrow(bucket)


def fresh() -> None:
    """s3fs keeps its clients, and with them endpoint and credentials of before."""
    s3fs.S3FileSystem.clear_instance_cache()

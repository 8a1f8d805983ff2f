import json
import multiprocessing
import pickle
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gracl.errors import ShardError
from gracl.images import storage
from gracl.images.ingesting import ingest_here
from gracl.images.manifests import manifest_uri, read_manifest
from gracl.images.shards import SCHEMA, ShardStore
from tests.raw_images import MARKET, fill_folders

GALLERY = [
    ("bounding_box_test/0000_c1s1_000151_01.jpg", 0, 0),
    ("bounding_box_test/0000_c2s1_000151_01.jpg", 0, 1),
    ("bounding_box_test/0001_c2s1_000301_01.jpg", 1, 1),
    ("bounding_box_test/0003_c3s1_000301_01.jpg", 3, 2),
]


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Market-1501 in small, as shards of one image each so that every boundary is met."""
    monkeypatch.setenv("GRACL_CACHE", str(tmp_path / "cache"))
    raw = fill_folders(str(tmp_path / "raw"), MARKET)
    monkeypatch.setattr("gracl.images.writing.MEGABYTE", 1)
    out = str(tmp_path / "out") if request.param == "disk" else f"memory://{uuid.uuid4().hex}"
    ingest_here(raw, out, "market1501", shard_mb=1)
    return out


def raw_bytes(tmp_path: Path, path: str) -> bytes:
    return (tmp_path / "raw" / path).read_bytes()


def test_bytes_come_back_as_they_were_found_in_the_order_asked(root: str, tmp_path: Path) -> None:
    store = ShardStore.open(root, "gallery")
    assert len(store) == 4
    assert len(store.manifest.shards) == 4
    indices = np.array([3, 0, 2, 2, 1])
    found = store.read(indices)
    assert all(isinstance(image, memoryview) and image.readonly for image in found)
    assert [bytes(image) for image in found] == [raw_bytes(tmp_path, GALLERY[index][0]) for index in indices]
    assert store.paths(indices) == [GALLERY[index][0] for index in indices]
    assert store.read(np.array([], np.int64)) == []


def test_identities_cameras_and_records(root: str, tmp_path: Path) -> None:
    store = ShardStore.open(root, "gallery")
    people = store.identities()
    np.testing.assert_array_equal(people.object_ids, [row[1] for row in GALLERY])
    np.testing.assert_array_equal(people.camera_ids, [row[2] for row in GALLERY])
    np.testing.assert_array_equal(store.camera_ids(), people.camera_ids)
    record = store.records(np.array([2]))[0]
    assert (record.index, record.path, record.object_id, record.camera_id) == (2, *GALLERY[2])
    assert record.image == raw_bytes(tmp_path, record.path)


@pytest.mark.parametrize("indices", [[-1], [4], [0, 99]])
def test_indices_outside_the_split_are_refused(root: str, indices: list[int]) -> None:
    with pytest.raises(ShardError, match="expected indices from 0 to 3"):
        ShardStore.open(root, "gallery").read(np.array(indices))


def test_one_store_per_process_until_the_split_is_written_anew(root: str, tmp_path: Path) -> None:
    store = ShardStore.open(root, "query")
    assert ShardStore.open(root, "query") is store
    (tmp_path / "raw/query" / MARKET["query"][1]).unlink()
    ingest_here(str(tmp_path / "raw"), root, "market1501", overwrite=True)
    again = ShardStore.open(root, "query")
    assert (len(store), len(again)) == (2, 1)
    assert store.digest != again.digest == read_manifest(root, "query").digest


def test_pickles_by_reopening(root: str) -> None:
    store = ShardStore.open(root, "train")
    assert pickle.loads(pickle.dumps(store)) is store


def test_threads_read_the_same(root: str, tmp_path: Path) -> None:
    store = ShardStore.open(root, "gallery")
    results: list[list[bytes]] = []

    def work() -> None:
        results.append([bytes(image) for image in store.read(np.arange(4))])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[raw_bytes(tmp_path, path) for path, _, _ in GALLERY]] * 8


def test_verify_names_the_torn_shard(root: str) -> None:
    store = ShardStore.open(root, "gallery")
    store.verify()
    torn = store._folder / store.manifest.shards[2].file
    content = bytearray(torn.read_bytes())
    content[len(content) // 2] ^= 1
    torn.write_bytes(content)
    with pytest.raises(ShardError, match="shard-00002.arrow; restore it or ingest the split again"):
        store.verify()


def rewrite(root: str, change: Callable[[dict], None]) -> None:
    uri = manifest_uri(root, "gallery")
    values = json.loads(storage.read_bytes(uri))
    change(values)
    storage.write_bytes(uri, json.dumps(values).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(schema_version=2), "schema version 1 in .*; came 2"),
        (lambda values: values.pop("schema_version"), "a manifest at .*; came no schema_version"),
        (lambda values: values.update(split="query"), "the split gallery in .*; came query"),
        (lambda values: values.update(num_images=5), "5 rows in the shards of .*; came 4"),
        (lambda values: values.update(more=1), "the fields of a manifest in"),
        (lambda values: values.pop("layout"), "the fields of a manifest in .*layout"),
        (lambda values: values["shards"].pop(1), "shard-00002.arrow to begin at 1"),
        (lambda values: values["shards"][1].pop("rows"), "the fields of a manifest in"),
    ],
)
def test_a_wrong_manifest_is_refused(root: str, change: Callable[[dict], None], message: str) -> None:
    rewrite(root, change)
    with pytest.raises(ShardError, match=message):
        ShardStore.open(root, "gallery")


def test_a_torn_manifest_is_refused(root: str) -> None:
    uri = manifest_uri(root, "gallery")
    storage.write_bytes(uri, storage.read_bytes(uri)[:-30])
    with pytest.raises(ShardError, match="a manifest at .*; came no JSON"):
        ShardStore.open(root, "gallery")


def test_without_a_manifest_there_is_no_split(root: str) -> None:
    storage.remove(manifest_uri(root, "gallery"))
    with pytest.raises(ShardError, match="expected a split at .*; came no manifest"):
        ShardStore.open(root, "gallery")


def test_a_missing_or_cut_shard_is_named(root: str) -> None:
    uri = storage.join(root, "gallery", "shard-00001.arrow")
    content = storage.read_bytes(uri)
    storage.write_bytes(uri, content[:-8])
    with pytest.raises(ShardError, match="shard-00001.arrow"):
        ShardStore.open(root, "gallery")
    storage.remove(uri)
    with pytest.raises(ShardError, match="shard-00001.arrow.*; came no such file"):
        ShardStore.open(root, "gallery")


@pytest.mark.parametrize(
    ("verify", "words"), [("1", r"SHA-256 .*; came \d+ bytes with another checksum"), ("0", "readable shard")]
)
def test_a_shard_of_the_right_size_but_not_arrow_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str, words: str
) -> None:
    monkeypatch.setenv("GRACL_VERIFY", verify)
    ingest_here(fill_folders(str(tmp_path / "raw"), MARKET), str(tmp_path / "out"), "market1501")
    shard = tmp_path / "out/train/shard-00000.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ShardError, match=words) as refused:
        ShardStore.open(str(tmp_path / "out"), "train").read(np.array([0]))
    assert str(shard) in str(refused.value)


def test_columns_on_disk(root: str) -> None:
    store = ShardStore.open(root, "train")
    table = pa.ipc.open_file(storage.read_bytes(storage.join(root, "train", "shard-00001.arrow"))).read_all()
    assert table.schema == SCHEMA
    assert (table["index"][0].as_py(), table["height"][0].as_py(), table["width"][0].as_py()) == (1, 16, 8)
    assert sum(shard.bytes for shard in store.manifest.shards) > store.manifest.image_bytes > 0


def test_remote_shards_are_copied_once_and_verified(tmp_path: Path) -> None:
    raw, out, cache = str(tmp_path / "raw"), f"memory://{uuid.uuid4().hex}", str(tmp_path / "near")
    ingest_here(fill_folders(raw, MARKET), out, "market1501")
    store = ShardStore.open(out, "gallery", cache=cache)
    copies = [path for path in Path(cache).rglob("*.arrow")]
    assert [path.name for path in copies] == ["shard-00000.arrow"]
    # The far shard goes, the copy stays good.
    storage.remove(storage.join(out, "gallery", "shard-00000.arrow"))
    assert len(store.read(np.arange(4))) == 4
    store.verify()


def test_a_torn_remote_shard_is_refused(tmp_path: Path) -> None:
    raw, out = str(tmp_path / "raw"), f"memory://{uuid.uuid4().hex}"
    ingest_here(fill_folders(raw, MARKET), out, "market1501")
    uri = storage.join(out, "gallery", "shard-00000.arrow")
    storage.write_bytes(uri, bytes(len(storage.read_bytes(uri))))
    with pytest.raises(ShardError, match="with another checksum"):
        ShardStore.open(out, "gallery", cache=str(tmp_path / "near"))


def read_all(root: str, queue: "multiprocessing.Queue[int]") -> None:
    queue.put(sum(len(image) for image in ShardStore.open(root, "gallery").read(np.arange(4))))


def test_another_process_opens_it_too(tmp_path: Path) -> None:
    raw, out = str(tmp_path / "raw"), str(tmp_path / "out")
    ingest_here(fill_folders(raw, MARKET), out, "market1501")
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=read_all, args=(out, queue))
    process.start()
    assert queue.get(timeout=60) == read_manifest(out, "gallery").image_bytes
    process.join(60)

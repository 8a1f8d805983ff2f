"""An object store that fails: what it loses, and what it says."""

import hashlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
import s3fs

from gracl.errors import CheckpointError, ShardError, StorageError
from gracl.images import storage
from gracl.images.ingesting import ingest_here
from gracl.images.manifests import read_manifest
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import STATE_FILE, save_state
from gracl.locks import holding
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.salvage import SNAPSHOT, set_torn_aside
from tests.chaos.torn import damage, run_of, small
from tests.flaky import Faults, flaky
from tests.raw_images import MARKET, fill_folders
from tests.s3 import BUCKET, listening, reached_at, serving

KINDS = ("500", "503", "reset", "cut")


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

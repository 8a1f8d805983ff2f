"""Shards that are cut, altered, replaced or gone, before they are read and under a reader."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.local_twin import learn
from gracl.errors import GraclError, ShardError
from gracl.images.ingesting import ingest_here
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import TrainState, load_state, save_state
from tests.raw_images import MARKET, fill_folders
from tests.toy import toy_config


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

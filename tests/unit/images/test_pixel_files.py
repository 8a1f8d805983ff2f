"""Decoded pictures that are kept: the same pictures, made once, and nothing that is half done is taken for whole."""

import errno
import multiprocessing
import os
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from gracl.errors import ImageError, StorageError
from gracl.images import pixel_files
from gracl.images.batches import MappedBatches
from gracl.images.pixel_files import PixelFile
from gracl.images.plans import identity_plan
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view, train_view
from gracl.types import Batch

SIZE = {"height": 40, "width": 20}  # not that of the shards: there is something to resize


@pytest.fixture
def store(toy_shards) -> ShardStore:
    return ShardStore.open(toy_shards, "train")


@pytest.fixture
def kept(tmp_path, store) -> PixelFile:
    return PixelFile(tmp_path / "cache", store.digest, len(store), **SIZE)


def batches(store: ShardStore, made=None) -> MappedBatches:
    views = {"eval_view": partial(eval_view, **SIZE), "train_view": partial(train_view, **SIZE, pad=3, jitter=0.2)}
    return MappedBatches({"train": store}, train="train", **views, **SIZE, made=made, scan_batch=16, seed=5)


def same(some: list[Batch], others: list[Batch]) -> bool:
    return all((one.images == other.images).all() for one, other in zip(some, others, strict=True))


def test_scans_and_picks_are_the_same_and_each_picture_is_made_once(store, kept, monkeypatch):
    plan = identity_plan(np.arange(len(store)) % 9, epoch=2, objects=3, images_per_object=4, steps=12)
    plain, keeping = batches(store), batches(store, {"train": kept})
    assert same(list(keeping.picks(plan)), list(plain.picks(plan)))
    assert kept.count() == len(np.unique(plan.tickets))
    assert same(list(keeping.scan("train")), list(plain.scan("train")))
    assert kept.count() == len(store)
    wanted = [list(plain.scan("train")), list(plain.picks(plan)), list(plain.again(3))]
    monkeypatch.setattr("gracl.images.decoding.simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("decoded again"))
    monkeypatch.setattr("gracl.images.views.decode", lambda *_: pytest.fail("decoded again"))
    for one, other in zip([keeping.scan("train"), keeping.picks(plan), keeping.again(3)], wanted, strict=True):
        assert same(list(one), other)


def test_pictures_fit_where_there_is_ten_times_the_room_with_what_is_kept_there(tmp_path, monkeypatch):
    """A hundred pictures of 2,400 bytes: 240,000."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2_400_000 if place.exists() else 0))
    folder, one, other = tmp_path / "not" / "there", "a" * 64, "b" * 64
    assert PixelFile.fit(folder, {one: 60, other: 40}, **SIZE)
    assert not PixelFile.fit(folder, {one: 60, other: 41}, **SIZE)
    folder.mkdir(parents=True)
    (folder / f"{one[:24]}-40x20-x-y.pixels").write_bytes(bytes(24_000))
    (folder / f"{'c' * 24}-40x20-x-y.pixels").write_bytes(bytes(24_000))  # of another data set: not free
    assert PixelFile.fit(folder, {one: 60, other: 41}, **SIZE)
    assert not PixelFile.fit(folder, {one: 60, other: 42}, **SIZE)


def test_another_process_finds_what_is_there(store, kept, tmp_path):
    kept(3, store.read(np.array([3]))[0])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_seen, (str(tmp_path / "cache"), store.digest, len(store))) == (1, kept(3, b"").tobytes())


def _seen(folder: str, digest: str, images: int) -> tuple[int, bytes]:
    from pathlib import Path

    other = PixelFile(Path(folder), digest, images, **SIZE)
    return other.count(), other(3, b"no picture: what is kept is taken").tobytes()


def test_a_picture_counts_only_when_it_is_whole(store, kept):
    with pytest.raises(ImageError):
        kept(1, b"no picture")
    assert kept.count() == 0
    image = store.read(np.array([1]))[0]
    assert (kept(1, image) == eval_view(image, **SIZE)).all()
    assert kept.count() == 1


def test_the_file_of_another_boot_or_of_other_decoders_is_removed_and_other_splits_are_not(store, kept, monkeypatch):
    other = PixelFile(kept.path.parent, "f" * 64, 5, **SIZE)
    kept(0, store.read(np.array([0]))[0])
    monkeypatch.setattr(pixel_files, "_boot", lambda: "another")
    anew = PixelFile(kept.path.parent, store.digest, len(store), **SIZE)
    assert anew.count() == 0
    assert not kept.path.exists()
    monkeypatch.setattr(pixel_files, "_makers", lambda: "others")
    assert PixelFile(kept.path.parent, store.digest, len(store), **SIZE).path != anew.path
    assert not anew.path.exists()
    assert other.path.exists()


def test_a_disk_that_is_too_small_is_found_out_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"expected 2.4 GB in .*cache.*No space left.*scale.keep_pixels=false"):
        PixelFile(tmp_path / "cache", "a" * 64, 10**6, **SIZE)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_views_of_a_picture_made_before(store):
    image = store.read(np.array([2]))[0]
    made = eval_view(image, **SIZE)
    copy = eval_view(made, **SIZE)
    assert (copy == made).all()
    assert not np.shares_memory(copy, made)
    with pytest.raises(ValueError, match="picture of shape"):
        eval_view(made, height=41, width=20)

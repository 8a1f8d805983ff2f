"""Names of files that are not UTF-8: refused, or left out and listed where what is bad is to be skipped."""

import json
import os
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest

from gracl.errors import LayoutError
from gracl.images import ingesting
from gracl.images.ingesting import ingest_here
from gracl.images.layouts import LAYOUTS
from gracl.images.manifests import read_manifest
from gracl.images.shards import ShardStore
from tests.raw_images import MARKET, fill, fill_folders, picture

STRANGE = os.fsdecode(b"\xff.jpg")
LITERAL = r"\xff.jpg"  # a name that looks as the strange one does where it is written down


def put(root: Path, *names: str) -> None:
    for name in names:
        place = os.path.join(root, name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(picture(len(name)))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    fill(str(tmp_path / "raw"), ["a.jpg", "b/c.jpg"])
    put(tmp_path / "raw", STRANGE, LITERAL, os.fsdecode(b"b/\xe4\xf6/d.jpg"))
    return tmp_path / "raw"


def test_they_are_refused_before_a_picture_is_read(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"paths in UTF-8; came 2 that are not: .*xff.jpg") as refused:
        ingest_here(str(raw), str(tmp_path / "out"), "unlabelled")
    assert "on_bad_image=skip" in str(refused.value)
    str(refused.value).encode()
    assert not (tmp_path / "out").exists()


def test_they_are_skipped_and_listed(raw: Path, tmp_path: Path) -> None:
    (raw / "broken.jpg").write_bytes(b"x")
    ingest_here(str(raw), str(tmp_path / "out"), "unlabelled", on_bad_image="skip")
    manifest = read_manifest(str(tmp_path / "out"), "train")
    assert manifest.num_images == 3
    assert [(bad.path, bad.reason) for bad in manifest.bad_images] == [
        (r"b/\xe4\xf6/d.jpg", "its name is not UTF-8"),
        ("broken.jpg", "no picture of a known format"),
        (LITERAL, "its name is not UTF-8"),
    ]
    store = ShardStore.open(str(tmp_path / "out"), "train")
    assert list(store.paths(np.arange(3))) == [LITERAL, "a.jpg", "b/c.jpg"]
    text = (tmp_path / "out/train/manifest.json").read_bytes()
    assert json.loads(text.decode())["bad_images"][0]["path"] == r"b/\xe4\xf6/d.jpg"


def test_a_split_of_nothing_else_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "raw", STRANGE)
    with pytest.raises(LayoutError, match="a readable image in the split train"):
        ingest_here(str(tmp_path / "raw"), str(tmp_path / "out"), "unlabelled", on_bad_image="skip")


@pytest.mark.parametrize("layout", ["market1501", "folder", "veri776"])
def test_they_are_skipped_in_each_layout_that_lists_files(layout: str, tmp_path: Path) -> None:
    assert layout in LAYOUTS
    raw = tmp_path / "raw"
    if layout == "folder":
        fill(str(raw), ["ann/1/a.jpg", "bob/1/b.jpg"])
        put(raw, os.fsdecode(b"ann/1/\xff.jpg"), os.fsdecode(b"\xff/1/c.jpg"))
        bad = {r"ann/1/\xff.jpg", r"\xff/1/c.jpg"}
    else:
        folders = {"veri776": "image_train image_query image_test"}.get(layout, " ".join(MARKET)).split()
        fill_folders(str(raw), dict(zip(folders, MARKET.values(), strict=True)))
        put(raw, os.fsdecode(f"{folders[0]}/0002_c1s1_".encode() + b"\xff_03.jpg"))
        bad = {rf"{folders[0]}/0002_c1s1_\xff_03.jpg"}
    with pytest.raises(LayoutError, match="paths in UTF-8"):
        ingest_here(str(raw), str(tmp_path / "out"), layout)
    manifest = ingest_here(str(raw), str(tmp_path / "out"), layout, on_bad_image="skip")["train"]
    assert {image.path for image in manifest.bad_images} == bad
    assert len(ShardStore.open(str(tmp_path / "out"), "train")) == manifest.num_images


def test_on_a_far_store_too(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    fs = fsspec.filesystem("memory")
    for path in ("a.jpg", STRANGE, "\ud800.jpg"):
        fs.pipe_file(f"/{name}/{path}", picture(1))
    with pytest.raises(LayoutError, match="paths in UTF-8"):
        ingest_here(f"memory://{name}", str(tmp_path / "out"), "unlabelled")
    manifest = ingest_here(f"memory://{name}", str(tmp_path / "out"), "unlabelled", on_bad_image="skip")["train"]
    assert {image.path for image in manifest.bad_images} == {LITERAL, r"\ud800.jpg"}
    assert manifest.num_images == 1


def test_a_list_of_bad_ones_that_no_reader_takes_is_not_written(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest_here(str(raw), str(tmp_path / "out"), "unlabelled", on_bad_image="skip")
    before = (tmp_path / "out/train/manifest.json").read_bytes()
    monkeypatch.setattr(ingesting, "MAX_BYTES", len(before))
    with pytest.raises(LayoutError, match=r"a manifest of the split train of at most .*2 bad images"):
        ingest_here(str(raw), str(tmp_path / "out"), "unlabelled", on_bad_image="skip", overwrite=True)
    assert (tmp_path / "out/train/manifest.json").read_bytes() == before

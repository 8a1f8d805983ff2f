import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gracl.errors import ShardError
from gracl.images import storage, writing
from gracl.images.decoding import decode
from gracl.images.layouts import Listing, list_images
from gracl.images.writing import ShardJob, make_manifest, move_shard, plan_moves, plan_shards, write_shard
from tests.raw_images import fill, picture


def listing_of(tmp_path: Path, images: int = 5) -> Listing:
    return list_images(fill(str(tmp_path / "raw"), [f"{i}/0/a.jpg" for i in range(images)]), "folder")


def jobs_of(listing: Listing, tmp_path: Path, at: int, *, resize: tuple[int, int] | None = None) -> list[ShardJob]:
    """Jobs of `at` images each."""
    job = plan_shards(listing, "train", str(tmp_path / "passing"), shard_mb=1, resize=resize)[0]
    return [
        replace(
            job,
            images=job.images[start : start + at],
            sizes=job.sizes[start : start + at],
            first_index=start,
            target=str(tmp_path / "passing" / f"part-{start:05d}.arrow"),
        )
        for start in range(0, len(job.images), at)
    ]


def table(path: str | Path) -> pa.Table:
    return pa.ipc.open_file(Path(path).read_bytes()).read_all()


def test_shards_are_cut_by_bytes_and_leave_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = listing_of(tmp_path)
    sizes = listing.sizes
    monkeypatch.setattr(writing, "MEGABYTE", sizes[0] + sizes[1])
    jobs = plan_shards(listing, "train", "memory://x", shard_mb=1, resize=None)
    assert tuple(image for job in jobs for image in job.images) == listing.images
    assert [job.first_index for job in jobs] == [0, *np.cumsum([len(job.images) for job in jobs])[:-1]]
    assert all(sum(job.sizes) >= sizes[0] + sizes[1] for job in jobs[:-1])
    assert len({job.target for job in jobs}) == len(jobs)
    monkeypatch.setattr(writing, "MEGABYTE", 1)
    assert len(plan_shards(listing, "train", "memory://x", shard_mb=1, resize=None)) == 5


def test_a_shard_holds_its_images_as_found(tmp_path: Path) -> None:
    listing = listing_of(tmp_path)
    part = write_shard(jobs_of(listing, tmp_path, 3)[1])
    rows = table(part.target).to_pylist()
    assert [row["index"] for row in rows] == [3, 4]
    for row, image in zip(rows, listing.images[3:], strict=True):
        assert row["image"] == (tmp_path / "raw" / row["path"]).read_bytes()
        assert (row["path"], row["object_id"], row["camera_id"]) == (image.path, image.object_id, image.camera_id)
        assert (row["height"], row["width"]) == (16, 8)
    content = Path(part.target).read_bytes()
    assert (part.entry.bytes, part.entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert part.image_bytes == sum(len(row["image"]) for row in rows)
    assert part.bad == ()


BROKEN = {
    "cut jpeg": (picture(1)[:-40], "truncated"),
    "cut png": (picture(1, kind="PNG")[:-40], "truncated|Truncated"),
    "empty": (b"", "no picture of a known format"),
    "text": (b"not a picture", "no picture of a known format"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_listed_with_its_reason(tmp_path: Path, kind: str) -> None:
    content, reason = BROKEN[kind]
    listing_of(tmp_path)
    (tmp_path / "raw/1/0/a.jpg").write_bytes(content)
    listing = list_images(str(tmp_path / "raw"), "folder")
    part = write_shard(jobs_of(listing, tmp_path, 5)[0])
    assert [bad.path for bad in part.bad] == ["1/0/a.jpg"]
    assert any(word in part.bad[0].reason for word in reason.split("|"))
    assert table(part.target)["path"].to_pylist() == ["0/0/a.jpg", "2/0/a.jpg", "3/0/a.jpg", "4/0/a.jpg"]


def test_what_went_or_grew_since_the_listing_is_listed(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, 3)
    (tmp_path / "raw/0/0/a.jpg").unlink()
    (tmp_path / "raw/2/0/a.jpg").write_bytes(picture(9, height=64))
    part = write_shard(jobs_of(listing, tmp_path, 3)[0])
    assert [bad.path for bad in part.bad] == ["0/0/a.jpg", "2/0/a.jpg"]
    assert "FileNotFoundError" in part.bad[0].reason
    assert "when it was listed" in part.bad[1].reason


def test_nothing_is_written_where_nothing_is_left(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, 1)
    (tmp_path / "raw/0/0/a.jpg").write_bytes(b"x" * listing.sizes[0])
    part = write_shard(jobs_of(listing, tmp_path, 1)[0])
    assert part.entry.rows == 0
    assert not Path(part.target).exists()


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_other_colours_are_kept_as_found(tmp_path: Path, mode: str) -> None:
    kind = "PNG" if mode == "1" else "JPEG"
    storage.write_bytes(str(tmp_path / "raw/0/0/a.jpg"), picture(3, kind=kind, mode=mode))
    part = write_shard(jobs_of(list_images(str(tmp_path / "raw"), "folder"), tmp_path, 1)[0])
    assert part.bad == ()
    assert table(part.target)["image"][0].as_py() == picture(3, kind=kind, mode=mode)


def test_resize_stores_jpeg_of_that_size(tmp_path: Path) -> None:
    fill(str(tmp_path / "raw"), ["0/0/a.jpg", "1/0/a.png"])
    storage.write_bytes(str(tmp_path / "raw/2/0/a.jpg"), picture(5, height=32, width=12))
    storage.write_bytes(str(tmp_path / "raw/3/0/a.png"), picture(5, height=32, width=12, kind="PNG"))
    listing = list_images(str(tmp_path / "raw"), "folder")
    part = write_shard(jobs_of(listing, tmp_path, 4, resize=(32, 12))[0])
    rows = table(part.target).to_pylist()
    assert [decode(row["image"]).shape for row in rows] == [(32, 12, 3)] * 4
    assert {(row["height"], row["width"]) for row in rows} == {(32, 12)}
    assert all(row["image"].startswith(b"\xff\xd8") for row in rows)
    assert rows[2]["image"] == picture(5, height=32, width=12)  # a JPEG of that size is left alone


def test_moves_close_the_gaps_of_bad_images(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, 7)
    for number in (1, 2, 3):  # one of the first shard, all of the second
        (tmp_path / f"raw/{number}/0/a.jpg").write_bytes(b"x" * listing.sizes[number])
    parts = [write_shard(job) for job in jobs_of(listing, tmp_path, 2)]
    moves = plan_moves(parts, str(tmp_path / "out"))
    entries = [move_shard(move) for move in moves]
    assert [(entry.file, entry.first_index, entry.rows) for entry in entries] == [
        ("shard-00000.arrow", 0, 1),
        ("shard-00001.arrow", 1, 2),
        ("shard-00002.arrow", 3, 1),
    ]
    found = [row for entry in entries for row in table(tmp_path / "out" / entry.file).to_pylist()]
    assert [row["index"] for row in found] == [0, 1, 2, 3]
    assert [row["path"][0] for row in found] == ["0", "4", "5", "6"]
    for entry in entries:
        content = (tmp_path / "out" / entry.file).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert list((tmp_path / "passing").iterdir()) == []
    manifest = make_manifest(listing, "train", parts, entries, resize=None)
    assert (manifest.num_images, manifest.num_objects, len(manifest.bad_images)) == (4, 4, 3)


def test_a_move_that_was_made_is_not_missed_when_it_is_tried_again(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, 4)
    moves = plan_moves([write_shard(job) for job in jobs_of(listing, tmp_path, 2)], str(tmp_path / "out"))
    entries = [move_shard(move) for move in moves]
    assert [move_shard(move) for move in moves] == entries
    (tmp_path / "out" / entries[0].file).write_bytes(b"torn")
    with pytest.raises(ShardError, match="no such file"):
        move_shard(moves[0])


def test_a_part_that_did_not_stay_is_an_error(tmp_path: Path) -> None:
    part = write_shard(jobs_of(listing_of(tmp_path), tmp_path, 5)[0])
    move = plan_moves([part], str(tmp_path / "out"))[0]
    Path(part.target).unlink()
    with pytest.raises(ShardError, match="came no such file; on a cluster a local path must be one that all nodes"):
        move_shard(move)

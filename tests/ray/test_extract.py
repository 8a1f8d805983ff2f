"""Embeddings of pictures as they lie: what is listed, what is left out, what is done again after a loss."""

import json
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

import gracl
from benchmarks.rehearse_jobs import wait_until
from gracl.cli import load_config
from gracl.errors import ConfigError, LayoutError, ShardError, StorageError
from gracl.images.embeddings import EmbeddingTable
from gracl.images.synthetic import write_world
from gracl.learning.checkpoint import save_state
from gracl.runtime.extract import extract
from gracl.uses import ExtractConfig
from tests.toy import toy_config

pytestmark = pytest.mark.ray

PART = 8


@pytest.fixture(scope="module")
def checkpoint(toy_shards, tmp_path_factory):
    from benchmarks.local_twin import learn

    folder = tmp_path_factory.mktemp("checkpoint")
    save_state(learn(toy_config(toy_shards, epochs=1)), folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    """26 pictures in two folders, one that is none, one that is no picture's name."""
    size = {"train_objects": 4, "test_objects": 3, "cameras": 2, "shots": 3, "height": 40, "width": 24}
    write_world(tmp_path / "pictures", seed=6, difficulty=0.2, **size)
    (tmp_path / "pictures" / "query" / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    (tmp_path / "pictures" / "query" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def run(checkpoint: str, **asked: object) -> dict:
    given = {"checkpoint": checkpoint, "batch": 4, "part": PART, "scale.worker_cpus": 0.5, **asked}
    return extract(load_config(ExtractConfig, [f"{name}={value}" for name, value in given.items()]))


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))


def test_a_folder_is_described_and_what_cannot_be_read_is_listed(ray_cluster, pictures, checkpoint, tmp_path):
    result = run(checkpoint, images=pictures, out=tmp_path / "out")
    table = EmbeddingTable(str(tmp_path / "out"))
    rows, every = table.read(), names(pictures)
    good = [name for name in every if name != "query/broken.jpg"]
    assert rows.paths.to_pylist() == good
    assert rows.indices.tolist() == [every.index(name) for name in good]
    assert [bad.path for bad in table.bad] == ["query/broken.jpg"]
    assert "whole picture" in table.bad[0].reason
    assert (result["images"], result["bad_images"], result["described"]) == (len(good), 1, len(every))
    wanted = gracl.embed(checkpoint, [pictures / name for name in good])
    np.testing.assert_allclose(rows.features, wanted, rtol=0, atol=1e-6)
    assert rows.cameras.null_count == rows.tracks.null_count == len(good)


def test_a_list_brings_cameras_and_tracks(ray_cluster, pictures, checkpoint, tmp_path):
    every = names(pictures / "bounding_box_train")[:5]
    lines = [f"{name},{camera},{track}" for name, camera, track in zip(every, "a-bb ", "11122", strict=True)]
    (pictures / "bounding_box_train" / "some.csv").write_text(
        "\n".join(["path,camera_id,track", *[line.replace("-,", ",").replace(" ,", "-1,") for line in lines]])
    )
    run(checkpoint, images=pictures / "bounding_box_train" / "some.csv", out=tmp_path / "out", dtype="float16")
    rows = EmbeddingTable(str(tmp_path / "out")).read()
    assert rows.paths.to_pylist() == every
    assert rows.cameras.to_pylist() == ["a", None, "b", "b", None]
    assert rows.tracks.to_pylist() == ["1", "1", "1", "2", "2"]
    assert rows.features.dtype == np.float16
    wanted = gracl.embed(checkpoint, [pictures / "bounding_box_train" / name for name in every])
    np.testing.assert_allclose(rows.features, wanted, rtol=0, atol=1e-3)


def test_a_listed_picture_that_is_not_there_is_left_out_and_named(ray_cluster, pictures, checkpoint, tmp_path):
    (pictures / "two.csv").write_text(f"path\n{names(pictures)[0]}\nquery/gone.jpg\n")
    result = run(checkpoint, images=pictures / "two.csv", out=tmp_path / "out")
    table = EmbeddingTable(str(tmp_path / "out"))
    assert (result["images"], [bad.path for bad in table.bad]) == (1, ["query/gone.jpg"])
    assert "No such file" in table.bad[0].reason


def test_the_same_command_does_what_is_missing(ray_cluster, pictures, checkpoint, tmp_path):
    out = tmp_path / "out"
    run(checkpoint, images=pictures, out=out)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "manifest.json").unlink()
    (out / "part-00001.parquet").unlink()
    (out / "part-00002.parquet").write_bytes(whole["part-00002.parquet"][:100])
    with pytest.raises(ShardError, match="an unfinished one; run its extraction again"):
        EmbeddingTable(str(out))
    kept = (out / "part-00000.parquet").stat().st_mtime_ns
    with pytest.raises(ConfigError, match="dtype 'float32' before, 'float16' now"):
        run(checkpoint, images=pictures, out=out, dtype="float16")
    with pytest.raises(ConfigError, match="part 8 before, 4 now"):
        run(checkpoint, images=pictures, out=out, part=4)
    again = run(checkpoint, images=pictures, out=out, part=0, **{"scale.workers": 2})
    assert again["described"] == 2 * PART
    assert (out / "part-00000.parquet").stat().st_mtime_ns == kept
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    with pytest.raises(ConfigError, match="a new folder for embeddings"):
        run(checkpoint, images=pictures, out=out)


def test_a_picture_has_one_row_though_its_actors_are_killed(ray_cluster, pictures, checkpoint, tmp_path):
    out, killed = tmp_path / "out", list[int]()

    def kill() -> None:
        for part in ("part-00000.parquet", "part-00001.parquet"):
            wait_until((out / part).exists, 60)
            for process in psutil.process_iter(["cmdline"]):
                if "ray::Map(PartWriter)" in " ".join(process.info["cmdline"] or []) or "PartWriter" in process.name():
                    killed.append(process.pid)
                    process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    run(checkpoint, images=pictures, out=out, part=2, batch=2)
    killer.join()
    assert len(killed) >= 1, "no actor was found to be killed"
    rows, every = EmbeddingTable(str(out)).read(), names(pictures)
    assert rows.paths.to_pylist() == [name for name in every if name != "query/broken.jpg"]


def test_a_table_in_which_a_part_is_lacking_is_not_closed(ray_cluster, pictures, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("gracl.runtime.extract.finished_part", lambda out, file: None)
    with pytest.raises(
        StorageError, match=r"(\d) parts in .*; came \1 that are not there or not whole, the first part-0"
    ):
        run(checkpoint, images=pictures, out=tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(ConfigError, match="a place for embeddings beyond one process; came memory://"):
        run(checkpoint, images=pictures, out="memory://out")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "one of data.root and images; came data.root='' and images=None"),
        ({"images": "a", "data.root": "b"}, "one of data.root and images"),
        ({"images": "a", "split": "query"}, "nothing of shards beside images; came split='query'"),
    ],
)
def test_what_is_to_be_described_is_said_once(asked, words):
    given = {"checkpoint": "c", "out": "o", **asked}
    with pytest.raises(ConfigError, match=words):
        load_config(ExtractConfig, [f"{name}={value}" for name, value in given.items()])


def test_a_source_without_pictures_is_refused(tmp_path, checkpoint):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match="pictures in .*; came nothing there"):
        run(checkpoint, images=tmp_path / "empty", out=tmp_path / "out")
    (tmp_path / "list.csv").write_text("path\na.jpg\na.jpg\n")
    with pytest.raises(LayoutError, match="every path once in .*; came again a.jpg"):
        run(checkpoint, images=tmp_path / "list.csv", out=tmp_path / "out")
    (tmp_path / "list.csv").write_text("path\n../a.jpg\n")
    with pytest.raises(LayoutError, match="a path inside the root"):
        run(checkpoint, images=tmp_path / "list.csv", out=tmp_path / "out")


def test_a_manifest_of_another_kind_is_refused(tmp_path):
    for text in ("", "[]", json.dumps({"schema_version": 1}), json.dumps({"schema_version": 2}), "[" * 100_000):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ShardError, match="the fields of an embedding table in"):
            EmbeddingTable(str(tmp_path))

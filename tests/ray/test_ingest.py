import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from gracl.errors import ConfigError, ImageError
from gracl.images import storage
from gracl.images.ingesting import ingest_here
from gracl.images.shards import ShardStore
from gracl.runtime.ingest import on_ray, pack
from gracl.runtime.progress import Progress
from tests.raw_images import MARKET, fill, fill_folders, picture
from tests.ray_jobs import double, fail_at_three, most_at_once

pytestmark = pytest.mark.ray


@contextmanager
def small_shards() -> Iterator[None]:
    """Shards of one image each: planned in the driver, so the tasks need not know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gracl.images.writing.MEGABYTE", 1)
        yield


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tasks", [0, 1])
def test_ray_writes_what_one_process_writes(ray_cluster: None, tmp_path: Path, tasks: int) -> None:
    raw = fill_folders(str(tmp_path / "raw"), MARKET)
    storage.write_bytes(f"{raw}/query/0002_c1s1_000001_00.jpg", b"no picture")
    options = {"layout": "market1501", "on_bad_image": "skip", "allow_shared_identities": True}
    with small_shards():
        summary = pack(raw=raw, out=str(tmp_path / "ray"), tasks=tasks, **options)
        ingest_here(raw, str(tmp_path / "here"), **options)
    assert files(tmp_path / "ray") == files(tmp_path / "here")
    assert summary["splits"]["query"] == {
        "images": 2,
        "identities": 2,
        "cameras": 2,
        "shards": 2,
        "bad_images": 1,
        "image_bytes": ShardStore.open(str(tmp_path / "ray"), "query").manifest.image_bytes,
    }
    assert summary["notes"] == {"junk": 2, "not_images": 0}
    assert summary["images_per_second"] > 0
    assert json.loads(json.dumps(summary)) == summary


def test_an_error_of_a_task_keeps_its_class_and_leaves_nothing(ray_cluster: None, tmp_path: Path) -> None:
    raw = fill(str(tmp_path / "raw"), ["a.jpg", "b.jpg"])
    storage.write_bytes(f"{raw}/b.jpg", b"x")
    with pytest.raises(ImageError, match="came 1 that cannot:\n  b.jpg: "):
        pack(raw=raw, out=str(tmp_path / "out"), layout="unlabelled")
    assert not (tmp_path / "out").exists()


def test_jobs_come_back_with_their_place(ray_cluster: None) -> None:
    assert sorted(on_ray(double, [3, 1, 2], at_once=2)) == [(0, 6), (1, 2), (2, 4)]
    assert list(on_ray(double, [], at_once=2)) == []


def test_an_error_in_a_job_is_raised_as_it_was(ray_cluster: None) -> None:
    with pytest.raises(ImageError, match="^three$") as error:
        list(on_ray(fail_at_three, [1, 2, 3, 4], at_once=2))
    assert type(error.value) is ImageError


def test_tasks_run_side_by_side_and_no_more_than_asked(ray_cluster: None, tmp_path: Path) -> None:
    jobs = [(str(tmp_path / "busy"), number) for number in range(6)]
    (tmp_path / "busy").mkdir()
    assert max(most for _, most in on_ray(most_at_once, jobs, at_once=2)) == 2


def test_memory_is_done_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = f"memory://{uuid.uuid4().hex}", f"memory://{uuid.uuid4().hex}"
    storage.write_bytes(f"{raw}/a.jpg", picture(1))
    assert pack(raw=raw, out=out, layout="unlabelled")["ran_in"] == "this process"
    assert len(ShardStore.open(out, "train", cache=str(tmp_path))) == 1
    assert "without Ray" in capsys.readouterr().err


def test_without_ray_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="a running Ray; came none"):
        pack(raw=str(tmp_path), out=str(tmp_path), layout="unlabelled")


def test_what_a_killed_run_left_is_named(ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = fill(str(tmp_path / "raw"), ["a.jpg"]), tmp_path / "out"
    (out / ".ingest.host-1-abc").mkdir(parents=True)
    pack(raw=raw, out=str(out), layout="unlabelled")
    assert "to be deleted: .ingest.host-1-abc" in capsys.readouterr().err


def test_progress_on_a_terminal_is_one_line() -> None:
    written: list[str] = []
    progress = Progress("ingest", 4, write=written.append, moving=True)
    progress(1)
    progress(3)
    assert [(line[0], "25%" in line, "100%" in line, line[-1] == "\n") for line in written] == [
        ("\r", True, False, False),
        ("\r", False, True, True),
    ]


def test_progress_elsewhere_is_a_line_now_and_then() -> None:
    written: list[str] = []
    progress = Progress("ingest", 1000, write=written.append, moving=False)
    for _ in range(1000):
        progress(1)
    assert len(written) == 1
    assert "1,000 of 1,000 images" in written[0]

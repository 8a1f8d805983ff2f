"""What a rank does that needs no Ray: Ray Train's functions are replaced by ones that take notes."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from gracl.errors import ClusteringCollapsed, StorageError, WaitedTooLong
from gracl.images.batches import MappedBatches
from gracl.images.manifests import read_manifest
from gracl.images.plans import identity_plan
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import TrainState, load_state, save_state
from gracl.learning.encoder import build_encoder
from gracl.runtime import worker
from gracl.runtime.ranks import TorchRanks
from gracl.runtime.train import describe_lesson
from gracl.runtime.worker import (
    Source,
    build,
    kept_pixels,
    open_batches,
    plan_picks,
    rate_at,
    report_epoch,
    resumed,
    train_worker,
)
from gracl.types import EpochReport
from tests.toy import toy_config

KERNEL = "trunk.conv1.weight"
REPORT = EpochReport(
    epoch=2,
    loss=3.0,
    inter_loss=2.0,
    intra_loss=1.0,
    instance_loss=0.5,
    camera_loss=0.25,
    clusters=7,
    noise_fraction=0.5,
    images_per_second=10.0,
    seconds={"train": 1.5},
    stats={},
    step_losses=(4.0, 2.0),
)
BUSY = {"system/node0/cpu_utilization_percentage": 50.0}


class FakeBoard:
    """Notes what is posted; its methods are called as those of an actor."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusals: list[Exception] = []
        self.refuse = SimpleNamespace(remote=self.refusals.append)
        self.refusal = SimpleNamespace(remote=lambda: refusal)


@pytest.fixture
def state():
    encoder = build_encoder(backbone="resnet18", seed=0)
    optimizer = torch.optim.Adam(encoder.parameters())
    return TrainState.fresh(encoder, {"seed": 0}, height=32, width=16).after(
        REPORT.metrics(), encoder=encoder, optimizer=optimizer
    )


@pytest.fixture
def reports(monkeypatch, tmp_path):
    """What Ray Train was told: metrics, name, and the state that lay in the checkpoint's folder at that moment."""
    told: list[dict[str, Any]] = []

    def report(metrics: dict[str, float], checkpoint: Any = None, *, checkpoint_dir_name: str) -> None:
        saved = load_state(checkpoint.path) if checkpoint else None
        told.append({"metrics": metrics, "name": checkpoint_dir_name, "state": saved})

    monkeypatch.setattr("ray.train.report", report)
    monkeypatch.setenv("GRACL_TMP", str(tmp_path))
    return told


def test_rank_0_brings_figures_and_state_and_leaves_nothing_behind(reports, state, tmp_path):
    report_epoch(0, lambda: BUSY, REPORT, state)
    (told,) = reports
    assert told["metrics"] == {**REPORT.metrics(), "step_losses": [4.0, 2.0], "system": BUSY}
    assert told["name"] == "epoch-0001"
    assert told["state"].history == state.history
    for name, tensor in state.model.items():
        torch.testing.assert_close(told["state"].model[name], tensor, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_come_along_with_what_their_node_did_alone(reports, state, tmp_path):
    report_epoch(1, lambda: BUSY, REPORT, state)
    assert reports == [{"metrics": {"system": BUSY}, "name": "epoch-0001", "state": None}]


def test_a_report_that_fails_leaves_nothing_behind(reports, state, tmp_path, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ray.train.report", fails)
    with pytest.raises(OSError, match="disk full"):
        report_epoch(0, dict, REPORT, state)
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_run_has_nothing_to_resume(monkeypatch):
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: None)
    assert resumed() is None


def test_a_run_goes_on_from_the_checkpoint_of_ray_train(monkeypatch, state, tmp_path):
    save_state(state, tmp_path)
    checkpoint = ray.train.Checkpoint.from_directory(str(tmp_path))
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: checkpoint)
    found = resumed()
    assert found is not None
    assert (found.epoch, found.history, found.recipe) == (1, state.history, {"seed": 0})


def test_a_refusal_is_posted_for_the_driver_and_raised(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    refusal, board = ClusteringCollapsed("all noise"), FakeBoard()

    def refuses(job: Any) -> None:
        raise refusal

    monkeypatch.setattr(worker, "_train", refuses)
    with pytest.raises(ClusteringCollapsed):
        train_worker(job_with(board))
    assert board.refusals == [refusal]


@pytest.mark.parametrize("accident", [OSError("a disk"), StorageError("a disk that is a bucket")])
def test_an_accident_is_raised_for_ray_train_and_not_posted(monkeypatch, accident):
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    board = FakeBoard()

    def breaks(job: Any) -> None:
        raise accident

    monkeypatch.setattr(worker, "_train", breaks)
    with pytest.raises(type(accident), match="a disk"):
        train_worker(job_with(board))
    assert board.refusals == []


def test_a_group_that_is_restarted_after_a_refusal_ends_at_once(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(worker, "_train", lambda job: pytest.fail("it began again"))
    board = FakeBoard(ClusteringCollapsed("all noise"))
    train_worker(job_with(board))
    assert board.refusals == []


def test_what_was_waited_for_may_come_after_a_restart(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)

    def wait(job):
        raise WaitedTooLong("nothing came")

    monkeypatch.setattr(worker, "_train", wait)
    board = FakeBoard(None)
    with pytest.raises(WaitedTooLong):
        train_worker(job_with(board))
    assert board.refusals == [], "that is a failure and no refusal"


def job_with(board: FakeBoard) -> worker.Job:
    lesson = describe_lesson(toy_config("nowhere"))
    source = Source("nowhere", None, {}, {}, "train", 32, 16, 64)
    told = {"threads": 1, "recipe": {}, "wait_s": 60.0, "folder": "", "deterministic": False}
    return worker.Job(source, lesson, worker.Splits(), board, relation_actor=None, judged_by=[], **told)


def test_mapped_batches_read_this_ranks_share(toy_shards):
    sizes = {split: len(ShardStore.open(toy_shards, split)) for split in ("train", "query")}
    digests = {split: read_manifest(toy_shards, split).digest for split in sizes}
    source = Source(toy_shards, None, sizes, digests, "train", 32, 16, scan_batch=64, stream="mapped", views={"pad": 2})
    batches = [open_batches(source, None, TorchRanks(rank, 2, height=32, width=16), wait_s=60.0) for rank in range(2)]
    assert all(isinstance(one, MappedBatches) for one in batches)
    seen = [np.concatenate([batch.indices for batch in one.scan("train")]) for one in batches]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(sizes["train"]))
    assert min(len(share) for share in seen) > sizes["train"] // 3
    assert {batch.images.shape[1:] for batch in batches[0].scan("query")} == {(32, 16, 3)}


def test_every_rank_builds_the_same_model_from_the_seed():
    built = [build(describe_lesson(toy_config("nowhere", seed=seed)), torch.device("cpu"))[0] for seed in (1, 1, 2)]
    first, same, other = (one.state_dict() for one in built)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first[KERNEL], other[KERNEL])


@pytest.mark.parametrize("asked", [False, True])
def test_what_is_to_be_compiled_is_compiled_before_anybody_uses_it(asked, monkeypatch):
    seen = []
    monkeypatch.setattr(worker, "compile_encoder", seen.append)
    encoder, *_ = build(describe_lesson(toy_config("nowhere", scale__compile=asked)), torch.device("cpu"))
    assert seen == ([encoder] if asked else [])


def test_a_rank_loads_nothing_that_it_does_not_use():
    code = "import sys, gracl.runtime.worker; print(sorted({'mlflow', 'numba', 'scipy', 'faiss'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_a_lesson_says_what_is_fallen_back_on_and_how_often_ranks_are_compared():
    plain = describe_lesson(toy_config("nowhere")).fit
    asked = describe_lesson(
        toy_config("nowhere", relations__on_collapse="keep_previous", scale__check_ranks_every=5)
    ).fit
    assert (plain["fall_back"], plain["check_ranks_every"]) == (False, 0)
    assert (asked["fall_back"], asked["check_ranks_every"]) == (True, 5)


def test_every_rank_plans_the_same_from_seed_and_sampling():
    config = toy_config("nowhere", seed=3)
    labels, cameras = np.arange(40) % 5, np.arange(40) % 3
    planner = plan_picks(describe_lesson(config), cameras)
    wanted = identity_plan(labels, epoch=2, objects=4, images_per_object=4, steps=4, cameras=cameras, seed=3)
    np.testing.assert_array_equal(planner(2, labels).tickets, wanted.tickets)
    assert (plan_picks(describe_lesson(config), None)(2, labels).tickets != wanted.tickets).any()


def test_the_rate_warms_up_and_decays():
    config = toy_config(
        "nowhere", optim__rate=0.1, schedule__warmup_epochs=2, schedule__decay_every=5, schedule__decay_factor=0.5
    )
    rate = rate_at(describe_lesson(config))
    assert rate(0) < rate(2) == pytest.approx(0.1)
    assert rate(5) == pytest.approx(0.05)


def keeping(tmp_path, cache, how):
    sizes, digests = {"train": 20, "query": 5}, {"train": "a" * 64, "query": "b" * 64}
    source = Source("root", str(cache), sizes, digests, "train", 32, 16, 8, keep_pixels=how)
    said: list[str] = []
    return said, lambda: kept_pixels(source, said.append)


def test_pictures_are_kept_where_there_is_room_and_that_is_said(tmp_path):
    said, made = keeping(tmp_path, tmp_path / "cache", "auto")
    assert sorted(made()) == ["query", "train"]
    assert said == [f"the first worker's node keeps decoded pictures: 0.0 GB in {tmp_path / 'cache'}"]
    said, made = keeping(tmp_path, tmp_path / "cache", True)
    assert sorted(made()) == ["query", "train"]
    assert said == []


def test_where_there_is_no_room_none_are_kept_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=25 * 32 * 16 * 3 * 10 - 1))
    said, made = keeping(tmp_path, tmp_path / "cache", "auto")
    assert made() == {}
    assert "more than a tenth" in said[0]
    assert not (tmp_path / "cache").exists()


def test_where_they_cannot_be_kept_auto_does_without_and_true_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    said, made = keeping(tmp_path, tmp_path / "file" / "cache", "auto")
    assert made() == {}
    assert "keeps no decoded pictures: expected" in said[0]
    with pytest.raises(StorageError, match="decoded pictures"):
        keeping(tmp_path, tmp_path / "file" / "cache", True)[1]()

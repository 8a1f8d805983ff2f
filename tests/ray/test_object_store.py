"""Shards, runs and checkpoints in a bucket, written and read by Ray's processes, held against a local disk."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.images import storage
from gracl.images.embeddings import EmbeddingTable
from gracl.images.manifests import read_manifest
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.evaluate import evaluate
from gracl.runtime.extract import extract
from gracl.runtime.ingest import pack
from gracl.runtime.publish import publish
from gracl.runtime.train import train
from gracl.uses import EvaluateConfig, ExtractConfig, PublishConfig
from tests.local.test_fit import assert_same_run
from tests.s3 import BUCKET, serving
from tests.toy import toy_config

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow]

STORE = f"s3://{BUCKET}/work"
SHARDS, RUNS = f"{STORE}/shards", f"{STORE}/runs"
CHANGES = {"eval_every": 1}


@pytest.fixture(scope="module")
def bucket(ray_cluster: None, s3_socket: socket.socket) -> Iterator[None]:
    with serving(s3_socket):
        yield


@pytest.fixture(scope="module")
def ingested(bucket: None, toy_shards: str) -> dict[str, Any]:
    return pack(raw=str(Path(toy_shards).parent / "world"), out=SHARDS, layout="market1501")


@pytest.fixture(scope="module")
def trained(ingested: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A run of one epoch, and the same run after three."""
    place = tmp_path_factory.mktemp("store")
    run = {"name": "far", "tracking__uri": f"sqlite:///{place}/mlflow.db", "data__cache": str(place / "cache")}
    return [train(toy_config(SHARDS, RUNS, epochs=epochs, **run, **CHANGES)) for epochs in (1, 3)]


def test_shards_are_those_of_a_local_disk(ingested: dict[str, Any], toy_shards: str) -> None:
    assert ingested["splits"]["train"]["images"] == read_manifest(toy_shards, "train").num_images
    for split in ("train", "query", "gallery"):
        mine, local = read_manifest(SHARDS, split), read_manifest(toy_shards, split)
        assert mine == local
        for shard in local.shards:
            far = storage.read_bytes(storage.join(SHARDS, split, shard.file))
            assert far == Path(toy_shards, split, shard.file).read_bytes()


def test_a_run_that_is_gone_on_with_equals_an_unbroken_one_on_a_local_disk(
    trained: list[dict[str, Any]], toy_shards: str
) -> None:
    first, resumed = trained
    assert (first["epochs"], resumed["epochs"]) == (1, 3)
    assert (first["checkpoint"], resumed["checkpoint"]) == (f"{RUNS}/far/epoch-0001", f"{RUNS}/far/epoch-0003")
    assert first["mlflow_run_id"] == resumed["mlflow_run_id"]
    wanted = learn(toy_config(toy_shards, **CHANGES))
    for row in wanted.history:  # of a far train split the driver reads no cameras for figures alone
        del row["cluster/camera_entropy"], row["cluster/single_camera_clusters"]
    assert_same_run(load_run_state(resumed["checkpoint"]), wanted)


def test_the_run_holds_what_it_holds_on_a_disk(trained: list[dict[str, Any]]) -> None:
    result = trained[-1]
    kept = {result[place].rsplit("/", 1)[1] for place in ("checkpoint", "best_checkpoint")}
    names = set(storage.names_in(f"{RUNS}/far"))
    assert {name for name in names if name.startswith("epoch-")} == kept
    assert names >= {"run.json", "config.yaml", "ranked.png", "checkpoint_manager_snapshot.json"}
    assert result["pictures"] == f"{RUNS}/far/ranked.png"


def test_a_far_checkpoint_is_judged_as_at_the_end_of_its_training(
    trained: list[dict[str, Any]], tmp_path: Path
) -> None:
    wanted = [f"checkpoint={trained[-1]['checkpoint']}", f"data.root={SHARDS}", f"out={STORE}/judged", "batch=64"]
    cache = f"data.cache={tmp_path}"
    judged = evaluate(load_config(EvaluateConfig, [*wanted, cache, "scale.worker_cpus=0.5"]))
    assert judged["mAP"] == pytest.approx(trained[-1]["final"]["mAP"], abs=1e-6)
    assert storage.names_in(f"{STORE}/judged") == ["queries.csv", "ranked.png", "report.json"]


@pytest.mark.long
def test_a_prefix_is_described_into_the_bucket_as_a_folder_is_into_a_folder(
    trained: list[dict[str, Any]], toy_shards: str, tmp_path: Path
) -> None:
    """Pictures, checkpoint and table in the bucket; once more, half of the table being gone."""
    pictures, far = Path(toy_shards).parent / "world" / "query", f"{STORE}/pictures"
    for path in sorted(pictures.iterdir()):
        storage.write_bytes(storage.join(far, "some", path.name), path.read_bytes())
    storage.write_bytes(storage.join(far, "some", "broken.jpg"), b"\xff\xd8 and no more")
    asked = {"batch": 4, "part": 4, "scale.worker_cpus": 0.5, "checkpoint": trained[-1]["checkpoint"]}
    tables = []
    for source, out in ((far, f"{STORE}/table"), (str(pictures), str(tmp_path / "table"))):
        words = {**asked, "images": source, "out": out}
        made = extract(load_config(ExtractConfig, [f"{name}={value}" for name, value in words.items()]))
        tables.append((made, EmbeddingTable(out)))
    (made, table), (_, near) = tables
    rows, wanted = table.read(), near.read()
    assert len(rows.features) == len(list(pictures.glob("*.jpg")))
    assert rows.paths.to_pylist() == [f"some/{path}" for path in wanted.paths.to_pylist()]
    np.testing.assert_array_equal(rows.features, wanted.features)
    assert [bad.path for bad in table.bad] == ["some/broken.jpg"]
    assert made["bad_images"] == 1

    words = {**asked, "images": far, "out": f"{STORE}/table"}
    files = [name for name in storage.names_in(f"{STORE}/table") if name.endswith(".parquet")]
    for name in [*files[1::2], "manifest.json"]:
        storage.remove(storage.join(STORE, "table", name))
    again = extract(load_config(ExtractConfig, [f"{name}={value}" for name, value in words.items()]))
    assert 0 < again["described"] < made["described"]
    np.testing.assert_array_equal(EmbeddingTable(f"{STORE}/table").read().features, wanted.features)


def test_mlflow_keeps_files_in_the_bucket_and_a_model_of_it_is_published(trained: list[dict[str, Any]]) -> None:
    result = trained[-1]
    made = publish(PublishConfig(checkpoint=result["checkpoint"], model="far"))
    assert made["mAP"] == result["final"]["mAP"]
    client = mlflow.MlflowClient(result["tracking_uri"])
    files = {artifact.path for artifact in client.list_artifacts(result["mlflow_run_id"])}
    assert files >= {"ranked.png", "config.yaml", "model-epoch-0003"}
    assert storage.names_in(f"{RUNS}/artifacts") == [result["mlflow_run_id"]]

"""Features and judgement of a checkpoint through Ray, held against the same in this process."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.local_twin import learn
from gracl.cli import load_config
from gracl.errors import CheckpointError, ConfigError, ShardError
from gracl.images.decoding import decode
from gracl.images.embeddings import EmbeddingTable
from gracl.images.loading import load, share_tickets
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.learning.casting import autocast
from gracl.learning.checkpoint import load_encoder, save_state
from gracl.learning.encoding import encode
from gracl.learning.identity import model_digest
from gracl.retrieval.expansion import expand
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.retrieval.reranking import reranked
from gracl.runtime.evaluate import evaluate
from gracl.runtime.extract import extract
from gracl.types import FeatureTable
from gracl.uses import EvaluateConfig, ExtractConfig
from tests.toy import toy_config

pytestmark = pytest.mark.ray

BATCH = 4  # small, so that the toy splits have several chunks for two actors
SCALE = ["scale.workers=2", "scale.worker_cpus=0.5"]


@pytest.fixture(scope="module")
def learnt(toy_shards):
    """A state after an epoch in this process."""
    return learn(toy_config(toy_shards, epochs=1, scan_batch=BATCH))


@pytest.fixture(scope="module")
def checkpoint(learnt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_state(learnt, folder)
    return str(folder)


def settings(root: str, checkpoint: str, **more: object) -> list[str]:
    given = {"data.root": root, "checkpoint": checkpoint, "batch": BATCH, **more}
    return [f"{name}={value}" for name, value in given.items()] + SCALE


def run_extract(root: str, checkpoint: str, **more: object) -> dict:
    return extract(load_config(ExtractConfig, settings(root, checkpoint, part=2 * BATCH, **more)))


def run_evaluate(root: str, checkpoint: str, **more: object) -> dict:
    return evaluate(load_config(EvaluateConfig, settings(root, checkpoint, **more)))


@pytest.fixture(scope="module")
def extracted(ray_cluster, toy_shards, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "gallery"
    return run_extract(toy_shards, checkpoint, split="gallery", out=out), out


@pytest.fixture(scope="module")
def judged(ray_cluster, toy_shards, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("judged") / "report"
    return run_evaluate(toy_shards, checkpoint, out=out), out


def described_here(root: str, split: str, checkpoint: str, turned: bool = False) -> np.ndarray:
    """The features of a split (or of its mirror images) by the functions that training uses, in this process."""
    encoder, size = load_encoder(checkpoint)
    store = ShardStore.open(root, split)
    tickets = share_tickets(store.read, scan_plan(len(store), BATCH))
    scan = load(tickets, partial(eval_view, **size), **size, seed=None)
    if turned:
        scan = (replace(batch, images=batch.images[:, :, ::-1].copy()) for batch in scan)
    casting = autocast(next(encoder.parameters()).device, "float32")
    return FeatureTable.gather([encode(encoder, scan, casting, lambda done: None)], len(store))


def flipped_here(root: str, split: str, checkpoint: str) -> np.ndarray:
    """The flip-averaged features of a split, by hand."""
    sums = sum(described_here(root, split, checkpoint, turned) for turned in (False, True))
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def test_the_feature_table_is_what_encode_gives_here(extracted, toy_shards, checkpoint):
    result, out = extracted
    table, store = EmbeddingTable(str(out)), ShardStore.open(toy_shards, "gallery")
    rows = table.read()
    assert len(table.files) > 1, "the toy split is meant to be described in several parts"
    assert rows.indices.tolist() == list(range(len(store)))
    assert rows.paths.to_pylist() == store.paths(rows.indices)
    assert rows.cameras.to_pylist() == [str(camera) for camera in store.camera_ids()]
    assert rows.features.dtype == np.float32
    np.testing.assert_allclose(rows.features, described_here(toy_shards, "gallery", checkpoint), rtol=0, atol=1e-6)
    assert sorted(path.name for path in out.iterdir()) == sorted([*table.files, "asked.json", "manifest.json"])


def test_flip_averaged_features_are_those_made_by_hand(ray_cluster, toy_shards, checkpoint, tmp_path):
    run_extract(toy_shards, checkpoint, split="gallery", out=tmp_path / "flipped", flip=True)
    table = EmbeddingTable(str(tmp_path / "flipped"))
    assert table.asked.flip is True
    features = table.read().features
    np.testing.assert_allclose(features, flipped_here(toy_shards, "gallery", checkpoint), rtol=0, atol=2e-6)
    assert not np.allclose(features, described_here(toy_shards, "gallery", checkpoint), atol=1e-3)


PROCESSING = {"flip": True, "expand": True, "expansion.k": 3, "rerank": True, "reranking.k1": 8, "reranking.k2": 3}


@pytest.fixture(scope="module")
def processed(ray_cluster, toy_shards, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("processed") / "report"
    return run_evaluate(toy_shards, checkpoint, out=out, **PROCESSING), out


def test_post_processing_stands_beside_the_plain_figures_and_is_named(processed, judged):
    result, plain = processed[0], judged[0]
    assert plain["processed"] is None
    names = ("mAP", "mINP", "rank1", "rank5", "rank10", "rank20", "queries", "skipped_queries")
    assert [result[name] for name in names] == [plain[name] for name in names]
    assert result["processed"]["by"] == {
        "flip": True,
        "expand": {"k": 3, "alpha": 3.0, "database": False},
        "rerank": {"k1": 8, "k2": 3, "original_weight": 0.3},
    }
    assert json.loads((processed[1] / "report.json").read_text())["processed"] == result["processed"]


def test_post_processing_gives_what_its_steps_give_here(processed, toy_shards, checkpoint):
    who = {f"{name}_identities": ShardStore.open(toy_shards, name).identities() for name in ("query", "gallery")}
    sides = expand(*(flipped_here(toy_shards, name, checkpoint) for name in ("query", "gallery")), k=3)
    report = evaluate_retrieval(*sides, **who, blocks=reranked(*sides, k1=8, k2=3))
    wanted = {name.removeprefix("val/"): value for name, value in report.metrics().items()}
    found = processed[0]["processed"]
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-3)
    assert found["mAP"] != pytest.approx(processed[0]["mAP"], abs=1e-4)


def test_each_judgement_has_its_lines_and_its_sheet(processed, judged):
    (result, out), (_, plain) = processed, judged
    pictures = {"ranked.png", "ranked_processed.png"}
    assert {path.name for path in out.iterdir()} == {"report.json", "queries.csv", "queries_processed.csv", *pictures}
    assert (out / "queries.csv").read_text() == (plain / "queries.csv").read_text()
    with (out / "queries_processed.csv").open() as file:
        lines = list(csv.DictReader(file))
    for column, name in (("average_precision", "mAP"), ("inverse_negative_penalty", "mINP")):
        shares = [float(line[column]) for line in lines if line[column]]
        assert np.mean(shares) == pytest.approx(result["processed"][name], abs=1e-5)
    assert all((out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for name in pictures)


def test_the_manifest_says_where_the_features_come_from(extracted, toy_shards, checkpoint):
    result, out = extracted
    manifest = json.loads((out / "manifest.json").read_text())
    store = ShardStore.open(toy_shards, "gallery")
    assert (manifest["source"], manifest["checkpoint"]) == (f"{toy_shards}/gallery", checkpoint)
    assert (manifest["data_digest"], manifest["images"], manifest["rows"]) == (store.digest, len(store), len(store))
    assert manifest["model"] == model_digest(*load_encoder(checkpoint))
    assert manifest["flip"] is False
    assert json.loads(json.dumps(result)) == result
    assert (result["out"], result["images"], result["feature_size"]) == (str(out), len(store), 512)


def test_evaluate_gives_the_final_report_of_the_run(judged, learnt):
    result, _ = judged
    final = learnt.history[-1]
    wanted = {name.removeprefix("val/"): value for name, value in final.items() if name.startswith("val/")}
    assert wanted["mAP"] > 0.2
    assert {name: result[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_the_report_on_the_disk_is_the_result(judged):
    result, out = judged
    saved = json.loads((out / "report.json").read_text())
    assert saved == {name: value for name, value in result.items() if name != "out"}
    assert result["out"] == str(out)


def test_there_is_a_line_for_every_query(judged, toy_shards):
    result, out = judged
    query, gallery = (ShardStore.open(toy_shards, split) for split in ("query", "gallery"))
    with (out / "queries.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["query"] for line in lines] == query.paths(np.arange(len(query)))
    precisions = [float(line["average_precision"]) for line in lines if line["average_precision"]]
    assert len(precisions) == result["queries"]
    assert np.mean(precisions) == pytest.approx(result["mAP"], abs=1e-5)
    penalties = [float(line["inverse_negative_penalty"]) for line in lines if line["inverse_negative_penalty"]]
    assert np.mean(penalties) == pytest.approx(result["mINP"], abs=1e-5)
    known = dict(zip(gallery.paths(np.arange(len(gallery))), gallery.identities().object_ids.tolist(), strict=True))
    first = [known[line["rank1"]] for line in lines]
    right = np.array(first) == query.identities().object_ids
    assert right.mean() == pytest.approx(result["rank1"], abs=1e-6)
    assert all(line["rank10"] in known for line in lines)


def test_the_ranked_sheet_is_a_picture(judged):
    _, out = judged
    content = (out / "ranked.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    height, width, colours = decode(content).shape
    assert height > 9 * 32
    assert width > 11 * 16
    assert colours == 3


def test_a_folder_with_features_is_not_written_again(extracted, toy_shards, checkpoint, no_session):
    _, out = extracted
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(ConfigError, match="a new folder for embeddings; came .*, which holds some"):
        run_extract(toy_shards, checkpoint, split="gallery", out=out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.fixture
def no_session(monkeypatch):
    """A Ray that must not be reached: refusals come before."""

    def reached(demand: object) -> None:
        pytest.fail("Ray was reached")

    monkeypatch.setattr("gracl.runtime.extract.session", reached)
    monkeypatch.setattr("gracl.runtime.evaluate.session", reached)


@pytest.mark.parametrize("run", [run_extract, run_evaluate])
def test_a_checkpoint_that_is_not_there_is_refused(run, toy_shards, tmp_path, no_session):
    with pytest.raises(CheckpointError, match=f"a checkpoint at {tmp_path}/nowhere; came no such file"):
        run(toy_shards, tmp_path / "nowhere", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_torn_is_refused(toy_shards, checkpoint, tmp_path, no_session):
    content = Path(checkpoint, "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="a whole checkpoint"):
        run_extract(toy_shards, tmp_path, out=tmp_path / "out")


def test_a_split_that_is_not_there_is_refused(toy_shards, checkpoint, tmp_path, no_session):
    with pytest.raises(ConfigError, match=r"a split named 'nowhere' in .*; came splits \[.*'query'"):
        run_extract(toy_shards, checkpoint, split="nowhere", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="a split named 'nowhere'"):
        run_evaluate(toy_shards, checkpoint, **{"data.gallery": "nowhere"})


def test_evaluate_needs_both_splits(toy_shards, checkpoint, no_session):
    with pytest.raises(ConfigError, match=r"data.query and data.gallery; came \('query', ''\)"):
        run_evaluate(toy_shards, checkpoint, **{"data.gallery": ""})


def test_more_neighbours_than_images_are_refused_before_ray(toy_shards, checkpoint, no_session):
    with pytest.raises(ConfigError, match=r"reranking.k1 below the \d+ images of query and gallery; came 5000"):
        run_evaluate(toy_shards, checkpoint, rerank=True, **{"reranking.k1": 5000})
    with pytest.raises(ConfigError, match=r"expansion.k of at most \d+ other gallery images; came 5000"):
        run_evaluate(toy_shards, checkpoint, expand=True, **{"expansion.k": 5000})


def test_shards_of_another_schema_are_refused(toy_shards, checkpoint, tmp_path, no_session):
    folder = tmp_path / "shards" / "gallery"
    folder.mkdir(parents=True)
    manifest = json.loads(Path(toy_shards, "gallery", "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(ShardError, match="99"):
        run_extract(str(tmp_path / "shards"), checkpoint, out=tmp_path / "out")

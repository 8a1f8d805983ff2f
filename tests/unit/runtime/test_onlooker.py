"""Pages on the way: when they are due, and what becomes of one that fails."""

import re

import numpy as np
import pytest

from gracl.images.shards import ShardStore
from gracl.randomness import rng
from gracl.relations.relate import relate
from gracl.runtime.onlooker import Onlooker


@pytest.fixture
def onlooker(toy_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    places = {"root": toy_shards, "cache": None, "splits": ("train", "query", "gallery"), "folder": str(tmp_path)}
    return Onlooker(every=3, recipe={"relations.k1": 8}, mlflow=("http://127.0.0.1:9", "nobody"), **places)


@pytest.fixture
def features(toy_shards):
    images = len(ShardStore.open(toy_shards, "train"))
    heaps = np.repeat(rng(0, "heaps").standard_normal((images // 6 + 1, 16)), 6, axis=0)[:images]
    heaps += 0.2 * rng(1, "heaps").standard_normal(heaps.shape)
    return (heaps / np.linalg.norm(heaps, axis=1, keepdims=True)).astype(np.float32)


def test_a_page_is_due_each_n_epochs_and_not_on_untrained_weights(onlooker):
    assert [epoch for epoch in range(10) if onlooker.wants(epoch)] == [3, 6, 9]


def test_a_page_without_a_judge_and_without_mlflow_is_in_the_folder(onlooker, features, tmp_path, caplog):
    found = relate(features, k1=8, k2=3, eps=0.6, min_samples=2, threads=1)
    onlooker.begin(3, features, found, None).join(60)
    text = (tmp_path / "review-epoch-0003.html").read_text()
    assert f"<td>clusters</td><td>{found.clusters}</td>" in text
    assert {"largest", "t-SNE"} <= set(re.findall(r'<img alt="([^"]*)"', text))
    assert "did not take the page on epoch 3" in caplog.text


def test_a_page_that_fails_is_logged_and_nothing_else(onlooker, features, tmp_path, caplog):
    found = relate(features, k1=8, k2=3, eps=0.6, min_samples=2, threads=1)
    onlooker.begin(3, features[:5], found, None).join(60)
    assert "no page on epoch 3; the training goes on" in caplog.text
    assert not list(tmp_path.glob("*.html"))

"""Pages on the way: when they are due, one at a time, and what becomes of one that fails."""

import re
import threading

import numpy as np
import pytest

from gracl.errors import ShardError
from gracl.images.shards import ShardStore
from gracl.randomness import rng
from gracl.relations.relate import relate
from gracl.runtime import onlooker as onlooker_
from gracl.runtime.drawing import Drawing, Found
from gracl.runtime.onlooker import Onlooker, draw_last_page
from gracl.runtime.runs import Run
from tests.toy import toy_config


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


@pytest.fixture
def found(features):
    return relate(features, k1=8, k2=3, eps=0.6, min_samples=2, threads=1)


class Slow:
    """An onlooker that draws until it may end."""

    every = 2

    def __init__(self):
        self.drawn, self.may_end = [], threading.Event()

    def has(self, epoch):
        return False

    def draw(self, epoch, features, assignment, judged, history=()):
        assert self.may_end.wait(30)
        self.drawn.append((epoch, judged, history))


def nobody():
    return None


def test_a_page_that_is_there_is_not_drawn_again(onlooker, features, found, tmp_path):
    (tmp_path / "review-epoch-0003.html").write_text("there")
    drawing = Drawing(onlooker)
    drawing.begin(Found(3, features, found, nobody))
    drawing.wait()
    assert [epoch for epoch in range(10) if onlooker.has(epoch)] == [3]
    assert (tmp_path / "review-epoch-0003.html").read_text() == "there"
    assert drawing.missed == []


def test_pages_are_drawn_one_at_a_time_and_what_is_missed_is_told(features, found):
    slow = Slow()
    drawing = Drawing(slow)
    for epoch in range(5):
        drawing.begin(Found(epoch, features, found, nobody))
    assert drawing.missed == ["epoch 4: the page before it was still being drawn"]
    slow.may_end.set()
    drawing.wait()
    drawing.begin(Found(6, features, found, nobody))
    drawing.wait()
    drawing.last(Found(7, features, found, nobody), [{"epoch": 7.0}])
    assert slow.drawn == [(2, None, ()), (6, None, ()), (7, None, [{"epoch": 7.0}])]


def test_a_page_without_a_judge_and_without_mlflow_is_in_the_folder(onlooker, features, found, tmp_path, caplog):
    drawing = Drawing(onlooker)
    drawing.begin(Found(3, features.astype(np.float16), found, nobody))
    drawing.wait()
    text = (tmp_path / "review-epoch-0003.html").read_text()
    assert f"<td>clusters</td><td>{found.clusters}</td>" in text
    assert {"largest", "t-SNE"} <= set(re.findall(r'<img alt="([^"]*)"', text))
    assert "did not take the page on epoch 3" in caplog.text
    assert drawing.missed == []


def test_a_page_that_fails_is_told_of_and_nothing_else(onlooker, features, found, tmp_path):
    def broken():
        raise RuntimeError("no ranking")

    drawing = Drawing(onlooker)
    drawing.begin(Found(3, features, found, broken))
    drawing.wait()
    drawing.last(Found(4, features[:5], found, nobody), [])
    assert drawing.missed[0] == "epoch 3: RuntimeError: no ranking"
    assert drawing.missed[1].startswith("epoch 4: ")
    assert not list(tmp_path.glob("*.html"))


def test_a_last_page_that_cannot_be_described_costs_no_finished_training(toy_shards, tmp_path, monkeypatch, capsys):
    def broken(*asked, **more):
        raise ShardError("expected a shard; came none; ingest again")

    monkeypatch.setattr(onlooker_, "describe_train", broken)
    (tmp_path / "toy/epoch-0003").mkdir(parents=True)
    config = toy_config(toy_shards)
    run = Run(config, "toy", str(tmp_path), toy_shards, manifests={}, recipe={}, record={})
    draw_last_page(run, actor=None)
    assert "no page on epoch 3: ShardError: expected a shard; came none" in capsys.readouterr().err

"""Neighbours by shards: the same table whoever makes it, also when one of them dies."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import ray

from gracl.errors import ConfigError, GraclError
from gracl.randomness import rng
from gracl.relations.relate import relate
from gracl.runtime.board import open_board
from gracl.runtime.relation_actor import start_relation_actor
from gracl.runtime.relator import RayRelator
from gracl.runtime.shards import find_on, start_shards
from gracl.similarity import nearest
from gracl.types import FeatureTable
from tests.architecture.imports import ROOT

ROWS = 900
OPTIONS = {"k1": 12, "k2": 4, "eps": 0.6, "min_samples": 3, "device": "cpu"}


def features(rows: int = ROWS) -> np.ndarray:
    dice = rng(0, "shards")
    found = dice.normal(size=(30, 24))[np.arange(rows) % 30] + 0.5 * dice.normal(size=(rows, 24))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


TRAIN = features()


def assert_same_answer(one, other) -> None:
    np.testing.assert_array_equal(one.labels, other.labels)
    for name in ("inter", "intra", "inter_image", "intra_image", "cluster_sums"):
        np.testing.assert_array_equal(getattr(one.proxies, name), getattr(other.proxies, name), err_msg=name)


@pytest.fixture(scope="module")
def pair(ray_cluster):
    """Two shards that several tests ask."""
    return start_shards(2, cpus=0.1, gpus=0.0, threads=1, wait_s=300.0)


def ask(table: np.ndarray, shards: int, precision: str = "float32", board=None):
    options = OPTIONS | {"shards": shards, "precision": precision}
    actor = start_relation_actor(
        wait_s=300.0, cpus=0.1, gpus=0.0, shards=(0.1, 0.0), images=len(table), options=options, threads=1, board=board
    )
    relator = RayRelator(actor, attempt="test", rank=0, ranks=1, precision=precision, wait_s=300.0)
    return actor, relator.relate(0, FeatureTable(np.arange(len(table)), table))


@pytest.mark.ray
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_answer_does_not_depend_on_the_shards(ray_cluster, shards):
    _, found = ask(TRAIN, shards)
    assert_same_answer(found, relate(TRAIN, threads=1, **OPTIONS))
    assert found.clusters > 20


@pytest.mark.ray
def test_features_in_float16_are_those_that_relate_would_round(ray_cluster):
    _, found = ask(TRAIN, 2, "float16")
    assert_same_answer(found, relate(TRAIN, threads=1, precision="float16", **OPTIONS))


@pytest.mark.ray
def test_no_shard_is_started_for_one(ray_cluster):
    assert start_shards(1, cpus=0.1, gpus=0.0, threads=1, wait_s=300.0) == []


@pytest.mark.ray
def test_the_table_is_that_of_one_process_and_progress_reaches_the_end(pair):
    told = []
    found = find_on(
        pair,
        ray.put(TRAIN),
        TRAIN,
        12,
        parts=2,
        progress=lambda *at: told.append(at),
        wait_s=300.0,
        search="exact",
        block_rows=50,
    )
    expect = nearest(TRAIN, 12)
    np.testing.assert_array_equal(found.indices, expect.indices)
    np.testing.assert_array_equal(found.similarities, expect.similarities)
    assert told == sorted(told)
    assert told[-1] == (ROWS, ROWS)
    assert len(told) > 4


@pytest.mark.ray
def test_a_shard_keeps_one_table_and_lets_go_of_it(pair):
    reference = ray.put(TRAIN)

    def held(shard) -> int:
        return ray.get(shard.__ray_call__.remote(lambda living: len(living._searchers)))

    ray.get(pair[0].search.remote([reference], (0, 10), 3, {}))
    assert held(pair[0]) == 1
    other = ray.put(TRAIN[::-1].copy())
    found = ray.get(pair[0].search.remote([other], (0, 10), 3, {}))
    assert held(pair[0]) == 1
    np.testing.assert_array_equal(found.indices, nearest(TRAIN[::-1].copy(), 3, rows=(0, 10)).indices)
    ray.get(pair[0].release.remote())
    assert held(pair[0]) == 0


@pytest.mark.ray
def test_a_refusal_in_a_shard_comes_as_it_is(pair):
    broken = TRAIN.copy()
    broken[7, 3] = np.nan
    find = partial(find_on, pair, parts=2, wait_s=300.0, progress=lambda *_: None)
    with pytest.raises(GraclError, match=r"NaN or infinity in 1 rows \[7\]"):
        find(ray.put(broken), broken, 5)
    with pytest.raises(ConfigError, match="effort >= 0"):
        find(ray.put(TRAIN), TRAIN, 5, effort=-1)


@pytest.mark.ray
def test_a_shard_killed_at_work_comes_back_and_the_table_is_whole(ray_cluster):
    table = features(20_000)
    actors, reference = start_shards(2, cpus=0.1, gpus=0.0, threads=1, wait_s=300.0), ray.put(table)
    pid = ray.get(actors[0].__ray_call__.remote(lambda living: os.getpid()))
    told = []

    def tell(done: int, rows: int) -> None:
        if not told:
            ray.kill(actors[0], no_restart=False)
        told.append(done)

    found = find_on(actors, reference, table, 12, parts=2, progress=tell, wait_s=300.0)
    np.testing.assert_array_equal(found.indices, nearest(table, 12).indices)
    assert told[-1] == 20_000
    assert ray.get(actors[0].__ray_call__.remote(lambda living: os.getpid())) != pid


@pytest.mark.ray
def test_the_relation_actor_killed_at_work_finds_its_shards_again(ray_cluster):
    table = features(20_000)
    board = open_board()
    options = OPTIONS | {"shards": 2}
    actor = start_relation_actor(
        wait_s=300.0, cpus=0.1, gpus=0.0, shards=(0.1, 0.0), images=len(table), options=options, threads=1, board=board
    )
    relator = RayRelator(actor, attempt="test", rank=0, ranks=1, wait_s=300.0)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(relator.relate, 0, FeatureTable(np.arange(len(table)), table))
        until = time.monotonic() + 60
        while ray.get(board.look.remote(0))[0][0] != "knn" and time.monotonic() < until:
            time.sleep(0.02)
        assert not answer.done(), "it was too quick to be killed at work"
        ray.kill(actor, no_restart=False)
        found = answer.result(120)
    assert_same_answer(found, relate(table, threads=1, **OPTIONS))


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_three_raylets_on_this_machine():
    command = [sys.executable, "-m", "benchmarks.bench_shards", "rows=3600", "dim=128", "threads=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["same_labels"]
    assert [row["shards"] for row in told["shards"]] == [1, 2, 3, 3]
    assert told["shards"][2]["moved_mb"] > told["shards"][2]["features_mb"], "features crossed between object stores"

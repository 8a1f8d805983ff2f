"""The page docs/scaling.md: its tables are those of `benchmarks/scaling.py`, whose arithmetic holds by hand."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling import Assumed, Measured, epoch, epoch_bytes, hours, step_bytes, tables
from gracl.learning.encoder import build_encoder
from gracl.relations.proxies import mine_proxies
from gracl.types import Assignment

ROUND = Measured(
    train=1000.0, scan=5000.0, decode=1000.0, view=500.0, search_s=20.0, rest_s=10.0, rows=10**6, own_mb=3000.0
)


def test_the_page_has_the_tables_of_the_figures_as_they_are_now():
    page = Path(__file__).parents[2] / "docs/scaling.md"
    assert tables(Measured.read(), Assumed()) in page.read_text()


def test_an_epoch_by_hand():
    one = epoch(ROUND, Assumed(), 10**6, 8, mapped=True)
    assert (one.scan.what, one.scan.seconds) == ("GPUs", pytest.approx(1e6 / 40000))
    assert (one.train.what, one.train.seconds) == ("GPUs", pytest.approx(1e6 / 8000))
    assert one.relate.seconds == pytest.approx(20 + 10 + 4096e6 / 50e9 + 8 * (8e6 + 24576e6 / 30) / 50e9)
    assert one.seconds == pytest.approx(25 + 125 + 30.21427, rel=1e-5)
    assert one.bottleneck.what == "GPUs"
    assert one.memory == pytest.approx(8.192e9 + 3e9)


def test_the_search_grows_with_the_square_and_is_shared_by_the_nodes():
    few, many = (epoch(ROUND, Assumed(), 10**7, gpus, mapped=True).relate.seconds for gpus in (8, 64))
    copies = 4096e7 / 50e9  # of the features, to each node
    answers = (8e7 + 24576e7 / 30) / 50e9  # to each rank
    assert few - 100 - copies - 8 * answers == pytest.approx(2000)
    assert many - 100 - 8 * copies - 64 * answers == pytest.approx(250)


def test_what_limits_a_phase_is_named():
    starved = epoch(ROUND, replace(Assumed(), cpus_a_gpu=1), 10**6, 8, mapped=True)
    assert (starved.scan.what, starved.scan.seconds) == ("CPUs that decode", pytest.approx(1e6 / 8000))
    assert starved.train.what == "CPUs that make views"
    slow = epoch(ROUND, replace(Assumed(), node_bytes_s=1e8), 10**6, 64, mapped=True)
    assert slow.train.what == "gradients and features between machines"
    streamed = epoch(ROUND, replace(Assumed(), cpus_a_gpu=100), 10**6, 512, mapped=False)
    assert streamed.scan.what == "coordinator of the stream"
    assert streamed.scan.seconds == pytest.approx(512 * 3 * 0.022)  # 31 tickets in blocks of 4, 16 and 11


def test_the_weights_are_those_of_the_network():
    encoder = build_encoder(backbone="resnet50")
    assert sum(weight.numel() for weight in encoder.parameters()) == ROUND.weights
    assert encoder.feature_size == ROUND.dim
    assert step_bytes(ROUND, 1, 64) == (0, 0)
    assert step_bytes(ROUND, 2, 64)[0] == 4 * ROUND.weights


def test_labels_and_proxies_are_as_large_as_what_is_sent():
    images, clusters = 6000, 200
    rows = np.random.default_rng(0).standard_normal((images, ROUND.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.arange(images) % clusters
    sent = len(pickle.dumps(Assignment(0, labels, mine_proxies(rows, labels)), protocol=5))
    said = epoch_bytes(ROUND, images, 8, 1)["labels and proxies to the ranks"] / 8
    assert sent == pytest.approx(said, rel=0.02)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.24, "0.2 s"), (31.4, "31 s"), (99, "99 s"), (120, "2 min"), (5999, "100 min"), (7200, "2.0 h")],
)
def test_seconds_as_people_say_them(seconds, words):
    assert hours(seconds) == words

"""The service as people start it: `deploy/serve.py` with Ray Serve on a private Ray: asked, overfilled, harmed."""

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest

import gracl
from benchmarks.bench_serve import ask_at, figures, running
from gracl.cli import load_config
from gracl.runtime.search import search
from gracl.uses import SearchConfig
from tests.browser import CHROMIUM, browser
from tests.unit.runtime.test_search import place  # noqa: F401  a world with an index
from tests.unit.runtime.test_service import bomb

pytest.importorskip("grpc_reflection", reason="Ray Serve is not installed: pip install 'gracl[serve]'")
pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]

QUEUE = 8


@pytest.fixture(scope="module")
def service(place):  # noqa: F811
    home = Path(tempfile.mkdtemp(prefix="gr-"))
    known = {one.pid for one in psutil.process_iter()}
    with running(f"index={place / 'index'}", f"queue={QUEUE}", "batch=4", "max_mb=1", home=home) as service:
        yield service
    assert service.code == 0, service.err
    assert service.said["failed"] == 0
    assert service.said["answers"] > 0
    # Whatever has come since then and is of this service's home is gone.
    assert wait_until(lambda: not [one for one in started_since(known) if str(home) in one], 30), started_since(known)
    with socket.socket() as line:
        assert line.connect_ex(("127.0.0.1", int(service.url.rsplit(":", 1)[1].strip("/")))) == errno.ECONNREFUSED
    shutil.rmtree(home, ignore_errors=True)


def started_since(known):
    found = []
    for one in psutil.process_iter():
        if one.pid not in known:
            try:
                found.append(" ".join(one.cmdline()) + str(one.environ().get("HOME")))
            except psutil.Error:
                continue  # it has ended meanwhile
    return found


def wait_until(there, seconds):
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def ask(url, body=None):
    """Status, headers, JSON or text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=120) as answer:
            status, headers, content = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        status, headers, content = error.code, error.headers, error.read()
    return status, headers, json.loads(content) if "json" in headers["content-type"] else content


@pytest.fixture(scope="module")
def queries(place):  # noqa: F811
    return sorted((place / "world" / "query").glob("*.jpg"))


def test_features_are_those_of_embed(service, queries, place):  # noqa: F811
    wanted = gracl.embed(place / "model", queries[:4])
    for path, feature in zip(queries, wanted, strict=False):
        status, _, told = ask(service.url + "embed", path.read_bytes())
        assert status == 200
        np.testing.assert_allclose(told["feature"], feature, atol=1e-5)


def test_results_are_those_of_the_door_search(service, queries, place):  # noqa: F811
    config = load_config(SearchConfig, [f"index={place / 'index'}", f"queries={place / 'world' / 'query'}", "k=5"])
    wanted = {line["query"]: line["results"] for line in search(config)["results"]}
    for path in queries[:4]:
        status, _, told = ask(service.url + "search?k=5", path.read_bytes())
        assert status == 200
        assert [hit["path"] for hit in told["results"]] == [hit["path"] for hit in wanted[path.name]]
        similarities = [hit["similarity"] for hit in told["results"]]
        np.testing.assert_allclose(similarities, [hit["similarity"] for hit in wanted[path.name]], atol=1e-5)
    status, headers, content = ask(service.url + told["results"][0]["picture"])
    file = place / "world" / "bounding_box_test" / told["results"][0]["path"]
    assert (status, headers["content-type"], content) == (200, "image/jpeg", file.read_bytes())


def test_bombs_and_words_are_refused(service):
    assert ask(service.url + "embed", bomb())[0] == 413
    status, _, told = ask(service.url + "embed", b"just some words")
    assert (status, told["error"]["do"]) == (415, "send a JPEG, PNG or another picture")


@pytest.mark.parametrize("told_before", [True, False])
def test_a_large_body_is_refused_before_it_is_read(told_before, service):
    """100 MB: where the head says so, nothing of it is waited for; where it does not, 1 MB and what was on its way."""
    host, port = service.url.removeprefix("http://").strip("/").split(":")
    length = b"Content-Length: 100000000" if told_before else b"Transfer-Encoding: chunked"
    piece = bytes(2**16)
    sent = 0
    with socket.create_connection((host, int(port)), timeout=60) as line:
        line.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
        line.settimeout(0.05)
        answer = b""
        while not answer and not told_before and sent < 100_000_000:
            try:
                line.settimeout(60)
                line.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                sent += len(piece)
                line.settimeout(0.005)
                answer = line.recv(2**16)
            except TimeoutError:
                continue
        line.settimeout(60)
        answer = answer or line.recv(2**16)
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert sent < 50_000_000


def test_beyond_the_queue_others_are_put_off_and_nobody_is_lost(service, place):  # noqa: F811
    files = sorted((place / "world" / "bounding_box_test").glob("*.jpg"))
    pictures = [(path.name, path.read_bytes()) for path in files]
    told = asyncio.run(ask_at(service.url, pictures, rate=300, seconds=1))
    found = figures(told, 300, 1)
    assert set(found["statuses"]) == {"200", "503"}, found
    assert sum(found["statuses"].values()) == 300
    assert found["statuses"]["200"] >= QUEUE
    assert (found["wrong_answers"], found["without_an_answer"], found["put_off_without_retry_after"]) == (0, 0, 0)
    text = ask(service.url + "metrics")[2].decode()
    counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert int(counted['gracl_requests_total{way="/search",status="503"}']) == found["statuses"]["503"]
    assert counted["gracl_under_way"] == "0"
    assert float(counted["gracl_batch_size_sum"]) > 1.5 * float(
        counted["gracl_batch_size_count"]
    )  # what waits is put together
    assert asyncio.run(ask_at(service.url, pictures, rate=2, seconds=1))[0].status == 200


def test_a_process_that_dies_loses_no_request_that_was_let_in(service, place):  # noqa: F811
    files = sorted((place / "world" / "bounding_box_test").glob("*.jpg"))
    pictures = [(path.name, path.read_bytes()) for path in files]
    family = psutil.Process(service.process.pid).children(recursive=True)
    (encoders,) = (one for one in family if "ServeReplica:gracl:Encoders" in " ".join(one.cmdline()))

    async def harmed():
        asked = asyncio.create_task(ask_at(service.url, pictures, rate=60, seconds=3))
        await asyncio.sleep(1.5)  # by now the queue is full, so there are pictures at the process that dies
        os.kill(encoders.pid, signal.SIGKILL)
        return await asked

    told = asyncio.run(harmed())
    assert {one.status for one in told} <= {200, 503}
    assert all(one.right for one in told if one.status == 200)
    assert max(one.seconds for one in told if one.status == 200) > 1.5  # some waited for the next process
    assert wait_until(lambda: ask(service.url + "healthz")[0] == 200, 120)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page was not looked at")
def test_the_page_shows_what_is_most_like_a_dropped_picture(service, queries, place, tmp_path):  # noqa: F811
    with browser() as page:
        page.open(service.url)
        page.wait("document.getElementById('about').textContent.includes('pictures in the gallery')")
        page.press("Tab")
        assert page.value("document.activeElement.id") == "drop"
        page.drop("#drop", queries[0])
        page.wait("document.querySelectorAll('#results li').length === 12")
        page.wait("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        wanted = ask(service.url + "search?k=12", queries[0].read_bytes())[2]["results"]
        shown = page.value("[...document.querySelectorAll('#results img')].map((image) => image.alt)")
        for number, (alt, hit) in enumerate(zip(shown, wanted, strict=True), 1):
            assert alt == f"Result {number}: {hit['path']}, camera {hit['camera']}, similarity {hit['similarity']:.3f}"
        assert page.value("document.querySelector('#drop img').alt") == f"Query: {queries[0].name}"
        assert "12 results" in page.value("document.getElementById('status').textContent")
        (tmp_path / "words.jpg").write_text("no picture at all")
        page.choose("#file", tmp_path / "words.jpg")
        page.wait("document.getElementById('status').className === 'bad'")
        assert "send a JPEG, PNG or another picture" in page.value("document.getElementById('status').textContent")
        assert page.value("document.querySelectorAll('#results li').length") == 0
        asked = page.value("performance.getEntriesByType('resource').map((one) => one.name)")
        assert [name for name in asked if not name.startswith((service.url, "blob:", "data:"))] == []
        assert len(page.picture()) > 5000


def test_who_was_let_in_before_the_end_is_answered(service, place):  # noqa: F811
    """The last test: it ends the service, in the middle of questions."""
    files = sorted((place / "world" / "bounding_box_test").glob("*.jpg"))
    pictures = [(path.name, path.read_bytes()) for path in files]

    async def ended():
        asked = asyncio.create_task(ask_at(service.url, pictures, rate=60, seconds=1))
        await asyncio.sleep(0.9)
        service.interrupt()
        return await asked

    before = service.process.poll()
    told = asyncio.run(ended())
    service.stop()
    assert (before, service.code) == (None, 0), service.err
    early = told[: int(60 * 0.8)]
    statuses = {one.status for one in early}
    assert 200 in statuses
    assert statuses <= {200, 503}, "let in and answered, or told to come again"
    assert all(one.right for one in told if one.status == 200)

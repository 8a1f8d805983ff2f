"""The service without Ray Serve: requests to the ASGI application, as a server would bring them."""

import asyncio
import json
import struct
import zlib

import numpy as np
import pytest

import gracl
from gracl.errors import ConfigError, GraclError
from gracl.images.decoding import decode
from gracl.retrieval.calibration import Calibration, Point
from gracl.runtime.service.answering import Describer, Gallery
from gracl.runtime.service.counters import Counters, Histogram
from gracl.runtime.service.web import PAGE, Limits, Service
from tests.unit.runtime.test_search import model, place, run  # noqa: F401  the fixture of a world with an index

SIGNS = ("camera", "index", "path", "similarity", "track")


def ask(app, method, address, body=b"", headers=(), chunks=None, pause=0.0):
    """One request; body in one piece or in chunks. Returns status, headers, content, and how many pieces were read."""
    path, _, query = address.partition("?")
    pieces = list(chunks if chunks is not None else [body])
    told, read = [], 0

    async def receive():
        nonlocal read
        await asyncio.sleep(pause)
        if read >= len(pieces):
            return {"type": "http.disconnect"}
        read += 1
        return {"type": "http.request", "body": pieces[read - 1], "more_body": read < len(pieces)}

    async def send(message):
        told.append(message)

    given = [(name.encode(), value.encode()) for name, value in headers]
    if chunks is None:
        given.append((b"content-length", str(len(body)).encode()))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": given,
        "root_path": "",
        "scheme": "http",
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
        "http_version": "1.1",
    }

    async def answered():
        await app(scope, receive, send)
        return told[0]["status"], dict(told[0]["headers"]), b"".join(part.get("body", b"") for part in told[1:]), read

    return answered


def get(service, address, **more):
    return asyncio.run(ask(service.app, "GET", address, **more)())


def post(service, address, body=b"", **more):
    return asyncio.run(ask(service.app, "POST", address, body, **more)())


def refused(answer):
    error = json.loads(answer[2])["error"]
    return answer[0], f"expected {error['expected']}; came {error['came']}; {error['do']}"


def made(place, *, gallery=True, limits=None, wait=None, ready=True, root=None):  # noqa: F811
    describer = Describer(str(place / "model"), flip=False, threads=1, device="cpu")

    async def describe(picture):
        if wait is not None:
            await wait.wait()
        return describer([picture])[0]

    async def there():
        return ready

    found = Gallery(str(place / "index"), root=root) if gallery else None
    return Service(describe, describer.model, found, ready=there, limits=limits)


@pytest.fixture(scope="module")
def service(place):  # noqa: F811
    return made(place)


@pytest.fixture(scope="module")
def query(place):  # noqa: F811
    return sorted((place / "world" / "query").glob("*.jpg"))[0]


def bomb(width=20_000, height=20_000):
    """A whole PNG of one bit a pixel: few bytes, 400 million pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    lines = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def test_a_picture_gets_the_feature_that_embed_gives(service, query, place):  # noqa: F811
    status, headers, content, _ = post(service, "/embed", query.read_bytes())
    told = json.loads(content)
    (wanted,) = gracl.embed(place / "model", [query])
    assert (status, headers[b"content-type"]) == (200, b"application/json")
    assert told["size"] == len(told["feature"]) == len(wanted)
    np.testing.assert_allclose(told["feature"], wanted, atol=1e-5)


@pytest.mark.parametrize("asked", [{}, {"k": 3}, {"cameras": "[c1]"}])
def test_results_are_those_of_the_door_search(asked, service, query, place):  # noqa: F811
    (wanted,) = run(place, queries=query, **{"k": 10, **asked})["results"]
    address = f"/search?k={asked.get('k', 10)}" + ("&camera=c1" if "cameras" in asked else "")
    status, _, content, _ = post(service, address, query.read_bytes())
    told = json.loads(content)
    assert (status, told["threshold"], "in_gallery" in told) == (200, None, False)
    assert len(told["results"]) == len(wanted["results"])
    for one, other in zip(told["results"], wanted["results"], strict=True):
        assert one.pop("picture") == f"picture/{one.pop('row')}"
        assert sorted(one) == sorted(SIGNS)  # the folder of the gallery is nobody's business
        assert one.pop("similarity") == pytest.approx(other["similarity"], abs=1e-5)
        assert one == {name: other[name] for name in one}


def test_the_querys_own_camera_is_left_out(service, query):
    told = json.loads(post(service, "/search?k=40&own_camera=c1", query.read_bytes())[2])
    assert {hit["camera"] for hit in told["results"]} == {"c2", "c3"}
    both = json.loads(post(service, "/search?k=40&camera=c1&camera=c2", query.read_bytes())[2])
    assert {hit["camera"] for hit in both["results"]} == {"c1", "c2"}


def test_a_form_with_one_file_is_the_same_picture(service, query):
    picture = query.read_bytes()
    head = (
        b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="q.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    kind = [("content-type", 'multipart/form-data; boundary="xyz"')]
    form = head + picture + b"\r\n--xyz--\r\n"
    plain = json.loads(post(service, "/embed", picture)[2])
    assert json.loads(post(service, "/embed", form, headers=kind)[2]) == plain
    for wrong, words in [
        (head + picture + b"\r\n" + form, "a form with one file; came more than one part"),
        (head + picture, "a form with one file; came more than one part, or an end that is missing"),
        (head.replace(b'; filename="q.jpg"', b"") + picture + b"\r\n--xyz--\r\n", "came a field that is none"),
    ]:
        status, told = refused(post(service, "/embed", wrong, headers=kind))
        assert (status, words in told) == (400, True), told
    status, told = refused(post(service, "/embed", form, headers=[("content-type", "multipart/form-data")]))
    assert (status, "a form with its boundary" in told) == (400, True)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "a picture as the body of the request; came nothing"),
        (b"just some words\n" * 9, 415, "send a JPEG, PNG or another picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "no format that is known"),
        (bomb(), 413, "pixels"),
        (bomb(10_000, 6_000), 413, "at most 50000000 pixels; came 10000 x 6000; make the picture smaller"),
    ],
)
def test_what_is_no_picture_is_refused(body, status, words, service):
    before = service.counters.batches.counts[0]
    told = refused(post(service, "/embed", body))
    assert told[0] == status
    assert words in told[1]
    assert service.counters.batches.counts[0] == before  # nobody has decoded it


def test_a_torn_picture_is_refused_and_named(service, query):
    status, told = refused(post(service, "/embed", query.read_bytes()[:-200]))
    assert (status, "the bytes of a whole picture" in told, told.endswith("send a whole picture")) == (400, True, True)


def test_more_bytes_than_allowed_are_not_read(place):  # noqa: F811
    small = made(place, gallery=False, limits=Limits(most_bytes=1000))
    status, _, content, read = post(small, "/embed", bytes(1001))
    assert (status, read) == (413, 0), content
    status, _, _, read = post(small, "/embed", chunks=[bytes(400)] * 50)
    assert (status, read) == (413, 3)
    assert post(small, "/embed", bytes(1000))[0] == 415
    assert post(small, "/embed", chunks=[b""], headers=[("content-length", "many")])[0] == 400


def test_a_request_that_does_not_arrive_ends(place):  # noqa: F811
    slow = made(place, gallery=False, limits=Limits(seconds=0.1))
    status, told = refused(post(slow, "/embed", chunks=[b"x"] * 100, pause=0.03))
    assert (status, "a request that arrives within 0.1 s" in told) == (408, True)
    assert slow.counters.under_way == 0


def test_whoever_hangs_up_gives_the_seat_back(place):  # noqa: F811
    service = made(place, gallery=False)
    assert post(service, "/embed", chunks=[])[0] == 499
    assert service.counters.under_way == 0


def test_beyond_the_queue_others_are_told_to_come_again_and_nobody_is_lost(place, query):  # noqa: F811
    async def crowd():
        gate = asyncio.Event()
        service = made(place, gallery=False, limits=Limits(queue=3), wait=gate)
        asked = [asyncio.create_task(ask(service.app, "POST", "/embed", query.read_bytes())()) for _ in range(8)]
        while sum(one.done() for one in asked) < 5:
            await asyncio.sleep(0.01)
        late = [one.result() for one in asked if one.done()]
        health = await ask(service.app, "GET", "/healthz")()
        gate.set()
        return (
            late,
            health,
            await asyncio.gather(*asked),
            await ask(service.app, "POST", "/embed", query.read_bytes())(),
        )

    late, health, every, after = asyncio.run(crowd())
    assert [refused(one) for one in late] == [
        (503, "expected at most 3 requests at one time; came one more than 3; ask again in 1 s")
    ] * 5
    assert all(1 <= int(one[1][b"retry-after"]) <= 60 for one in late)
    assert health[0] == 200  # asking for health needs no seat
    assert sorted(one[0] for one in every) == [200] * 3 + [503] * 5
    assert after[0] == 200


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/search?k=0", "k from 1 to 100; came 0"),
        ("/search?k=101", "k from 1 to 100; came 101"),
        ("/search?k=ten", "k from 1 to 100; came ten"),
        ("/search?kk=3", "came kk; leave it out"),
        ("/search?k=3&k=4", "came k twice"),
        ("/search?camera=c9", r"cameras of the index (c1, c2, c3); came c9"),
        ("/search?own_camera=", "the name of the query's camera; came none"),
        ("/search?false_match_rate=2", "a false_match_rate between 0 and 1; came 2"),
        ("/search?false_match_rate=nan", "a false_match_rate between 0 and 1; came nan"),
        ("/search?false_match_rate=0.01", "a calibration beside false_match_rate; came none"),
        ("/search?of=pair", "of=pair or of=query, beside false_match_rate; came none"),
        ("/search?false_match_rate=0.1&of=both", "of=pair or of=query, beside false_match_rate; came both"),
        ("/embed?k=3", "settings none in the address; came k; leave it out"),
    ],
)
def test_what_is_asked_is_used_or_refused(address, words, service, query):
    status, told = refused(post(service, address, query.read_bytes()))
    assert (status, words in told) == (400, True), told


def test_a_rate_of_false_matches_judges_the_results(place, query):  # noqa: F811
    digest = Gallery(str(place / "index")).index.facts.model
    points = (Point(0.1, 0.5, 0.4, 0.6, 1.0), Point(0.0001, 0.9, 0.8, 0.95, 0.5))
    kept = place / "model" / "calibration.json"
    kept.write_bytes(Calibration(1, digest, False, "clusters", 9, 3, 99, points).to_json())
    try:
        service = made(place)
        (wanted,) = run(place, queries=query, false_match_rate=0.001, of="pair")["results"]
        told = json.loads(post(service, "/search?false_match_rate=0.001&of=pair", query.read_bytes())[2])
        assert told["in_gallery"] == wanted["in_gallery"]
        assert [hit["same"] for hit in told["results"]] == [hit["same"] for hit in wanted["results"]]
        assert told["threshold"]["rate"] == 0.001
        assert json.loads(get(service, "/about")[2])["rates_of_a_pair"] == [0.0001, 0.1]
        plain = json.loads(post(service, "/search?false_match_rate=0.001", query.read_bytes())[2])
        assert plain["threshold"] == told["threshold"]
        status, words = refused(post(service, "/search?false_match_rate=0.0001&of=query", query.read_bytes()))
        assert (status, "a rate of a query of" in words) == (400, True)
        kept.write_bytes(kept.read_bytes().replace(digest.encode(), b"b" * 64))
        with pytest.raises(ConfigError, match="a calibration of the model"):
            made(place)
    finally:
        kept.unlink()


def test_a_row_has_its_picture_and_no_path_is_taken(service, place):  # noqa: F811
    files = sorted((place / "world" / "bounding_box_test").glob("*.jpg"))
    status, headers, content, _ = get(service, f"/picture/{len(files) - 1}")
    assert (status, headers[b"content-type"], content) == (200, b"image/jpeg", files[-1].read_bytes())
    assert headers[b"x-content-type-options"] == b"nosniff"
    for wrong in (f"{len(files)}", "-1", "1.0", "٣", "99999999999999999999", "..%2f..%2fetc%2fpasswd"):
        assert refused(get(service, f"/picture/{wrong}"))[0] == 404
    assert refused(get(service, "/picture/../../etc/passwd"))[0] == 404


def test_a_picture_that_browsers_do_not_know_goes_out_as_png(service, tmp_path):
    from PIL import Image

    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    kind, content = service._gallery.picture({"source": str(tmp_path), "index": 0, "path": "a.tiff"})
    assert kind == "image/png"
    np.testing.assert_array_equal(decode(content), pixels)


def test_a_picture_that_is_gone_is_told(place, tmp_path):  # noqa: F811
    service = made(place, root=str(tmp_path))
    status, told = refused(get(service, "/picture/0"))
    assert (status, str(tmp_path) in told, "root=" in told) == (404, False, True)


def test_health_says_whether_pictures_are_described(service, place):  # noqa: F811
    status, _, content, _ = get(service, "/healthz")
    assert (status, json.loads(content)["ready"]) == (200, True)
    status, headers, content, _ = get(made(place, gallery=False, ready=False), "/healthz")
    assert (status, json.loads(content)["ready"], headers[b"retry-after"]) == (503, False, b"5")


def test_without_an_index_pictures_are_described_and_searches_refused(place, query):  # noqa: F811
    service = made(place, gallery=False)
    assert post(service, "/embed", query.read_bytes())[0] == 200
    assert refused(post(service, "/search", query.read_bytes())) == (
        404,
        "expected a service with an index; came one that only describes; start it with index=",
    )
    assert json.loads(get(service, "/about")[2])["rows"] == 0


def test_other_ways_and_methods_are_refused(service):
    for method, address, status in (("GET", "/nothing", 404), ("GET", "/embed", 405), ("DELETE", "/", 405)):
        code, told = refused(asyncio.run(ask(service.app, method, address)()))
        assert (code, "POST /embed, /search" in told) == (status, True)


def test_figures_are_what_was_asked(place, query):  # noqa: F811
    service = made(place)
    for _ in range(3):
        post(service, "/embed", query.read_bytes())
    post(service, "/search?k=1", query.read_bytes())
    post(service, "/embed", b"words")
    lines = dict(line.rsplit(" ", 1) for line in get(service, "/metrics")[2].decode().splitlines() if line[0] != "#")
    assert lines['gracl_requests_total{way="/embed",status="200"}'] == "3"
    assert lines['gracl_requests_total{way="/embed",status="415"}'] == "1"
    assert lines["gracl_errors_total"] == "1"
    assert lines['gracl_request_seconds_count{way="/embed"}'] == "4"
    assert lines['gracl_stage_seconds_count{stage="look up"}'] == "1"
    assert (lines["gracl_batch_size_count"], lines["gracl_batch_size_sum"]) == ("4", "4.000000")
    assert service.counters.totals() == {"answers": 6, "refused": 1, "put_off": 0, "failed": 0}


def test_a_histogram_counts_as_numpy_does():
    values, edges = np.random.default_rng(0).exponential(1.0, 500).round(2), (0.1, 0.5, 1.0, 2.0)
    histogram = Histogram(edges)
    for value in values:
        histogram.add(float(value))
    wanted = [int((values <= edge).sum()) for edge in edges] + [500]
    assert [int(line.rsplit(" ", 1)[1]) for line in histogram.lines("x")[:5]] == wanted
    assert histogram.lines("x")[-2:] == [f"x_sum {values.sum():.6f}", "x_count 500"]
    assert 'x_bucket{way="/",le="+Inf"} 500' in histogram.lines("x", 'way="/"')


def test_an_error_of_ours_is_counted(place, query):  # noqa: F811
    async def broken(picture):
        raise GraclError("a fault of ours")

    async def yes():
        return True

    service = Service(broken, "m", ready=yes)
    with pytest.raises(GraclError, match="a fault of ours"):
        post(service, "/embed", query.read_bytes())
    assert (service.counters.totals()["failed"], service.counters.under_way) == (1, 0)
    assert isinstance(service.counters, Counters)


def test_the_page_asks_nobody_else(service):
    status, headers, content, _ = get(service, "/")
    assert (status, content.decode()) == (200, PAGE)
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert "http://" not in PAGE
    assert "https://" not in PAGE


def test_a_torn_picture_does_no_harm_to_its_batch(place, query):  # noqa: F811
    describer = Describer(str(place / "model"), flip=False, threads=2, device="cpu")
    picture = query.read_bytes()
    alone = describer([picture])[0]
    found = describer([b"torn", picture, picture[:-200], picture])
    assert [one.feature is None for one in found] == [True, False, True, False]
    assert [one.tells for one in found] == [True, False, False, False]
    assert {one.batch for one in found} == {4}
    np.testing.assert_allclose(found[1].feature, alone.feature, atol=1e-5)
    np.testing.assert_allclose(found[3].feature, alone.feature, atol=1e-5)

"""One writer at a time: who is refused, who takes over, and that of many who start at once exactly one goes on."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from benchmarks.rehearse_jobs import wait_until
from gracl import locks
from gracl.errors import ConfigError
from gracl.images import storage
from gracl.images.ingesting import ingest_here
from gracl.locks import STALE_S, Holder, holding, is_gone, is_lock, myself, refuse_held
from tests.raw_images import MARKET, fill_folders
from tests.s3 import BUCKET, listening, reached_at, serving

QUICK = {"beat": 0.1, "stale": 10.0}  # a busy machine may stop a thread for seconds


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"disk": str(tmp_path / "a" / "b"), "memory": f"memory://{uuid.uuid4().hex}"}[request.param]


def lay(folder: str, holder: Holder, *, beats: int = 0) -> str:
    """The file of a holder, as another process would have left it."""
    uri = storage.join(folder, f".gracl-lock-{holder.token}.json")
    storage.write_bytes(uri, json.dumps(asdict(holder) | {"beats": beats}).encode())
    return uri


def elsewhere() -> Holder:
    return replace(myself(), host="node7", machine="another boot", pid=4242, token=uuid.uuid4().hex, held=True)


def test_the_second_is_refused_and_told_who_holds_it(folder: str) -> None:
    with holding(folder, "run first"):
        with pytest.raises(ConfigError) as refused, holding(folder, "run first"):
            pass
        me = myself()
        for word in ("run first", me.host, f"process {os.getpid()}", me.user, me.since[:11], "since", sys.argv[0]):
            assert word in str(refused.value)
        assert refused.value.exit_code == 2
        with pytest.raises(ConfigError, match="run first"):
            refuse_held(folder, "run first")
        assert sum(map(is_lock, storage.names_in(folder))) == 1
    refuse_held(folder, "run first")
    with holding(folder, "run first"):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_it_is_given_back_whatever_ends_the_work(folder: str, error: type[BaseException]) -> None:
    seen: list[str] = []

    def work() -> None:
        with holding(folder, "it"):
            seen.extend(storage.names_in(folder))
            raise error

    with pytest.raises(error):
        work()
    assert len(seen) == 1
    assert storage.names_in(folder) == []


def test_folders_that_were_made_for_it_go_with_it(tmp_path: Path) -> None:
    with holding(str(tmp_path / "a" / "b"), "it"):
        pass
    assert list(tmp_path.iterdir()) == []
    with holding(str(tmp_path / "a" / "b"), "it"):
        (tmp_path / "a" / "b" / "run.json").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "run.json"]


def test_a_killed_holder_is_followed_at_once_and_out_loud(tmp_path: Path) -> None:
    code = (
        "import sys, time; from gracl.locks import holding\n"
        "with holding(sys.argv[1], 'it'):\n    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {other.pid}"), holding(str(tmp_path), "it"):
        pass
    other.send_signal(signal.SIGKILL)  # not waited for: it may well be a zombie when it is asked for
    said: list[str] = []
    begun = time.monotonic()
    while time.monotonic() - begun < STALE_S:  # until the kernel has killed it
        try:
            with holding(str(tmp_path), "it", tell=said.append):
                break
        except ConfigError:
            time.sleep(0.01)
    assert time.monotonic() - begun < STALE_S / 2, "it was taken for one that cannot be asked"
    assert len(said) == 1
    assert f"process {other.pid}" in said[0]
    assert "dead; taken over" in said[0]
    other.communicate()


def test_another_process_with_its_number_is_not_taken_for_it(folder: str) -> None:
    lay(folder, replace(myself(), started="1", token="t", held=True))
    said: list[str] = []
    with holding(folder, "it", tell=said.append):
        assert "taken over" in said[0]


def test_who_is_gone() -> None:
    me = myself()
    assert is_gone(me) is False
    assert is_gone(replace(me, started="1")) is True
    assert is_gone(replace(me, started=None)) is False
    assert is_gone(replace(me, machine="another")) is None
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert is_gone(replace(me, pid=child.pid)) is True


def test_a_holder_elsewhere_that_gives_signs_of_life_is_not_disturbed(folder: str) -> None:
    other, stop = elsewhere(), threading.Event()
    uri = lay(folder, other)

    def live() -> None:
        beats = 0
        while not stop.wait(0.1):
            beats += 1
            lay(folder, other, beats=beats)

    thread = threading.Thread(target=live)
    thread.start()
    said: list[str] = []
    try:
        with pytest.raises(ConfigError, match="node7, process 4242"), holding(folder, "it", tell=said.append, **QUICK):
            pass
    finally:
        stop.set()
        thread.join()
    assert "waiting for a sign of life, 10 s at most" in said[0]
    assert storage.exists(uri)


def test_a_holder_elsewhere_that_gives_none_is_followed_after_the_stated_time(folder: str) -> None:
    lay(folder, elsewhere())
    said: list[str] = []
    begun = time.monotonic()
    with holding(folder, "it", tell=said.append, beat=0.1, stale=1.0):
        assert 0.8 < time.monotonic() - begun < STALE_S / 2
    assert [("at most" in words, "dead; taken over" in words) for words in said] == [(True, False), (False, True)]


def test_one_that_was_dead_long_ago_costs_no_time(tmp_path: Path) -> None:
    uri = lay(str(tmp_path), elsewhere())
    os.utime(uri, (1e9, 1e9))
    begun = time.monotonic()
    with holding(str(tmp_path), "it"):
        assert time.monotonic() - begun < STALE_S / 2


def test_a_torn_file_is_judged_by_its_age(tmp_path: Path) -> None:
    torn = tmp_path / ".gracl-lock-x.json"
    torn.write_text('{"host": "no')
    os.utime(torn, (1e9, 1e9))
    said: list[str] = []
    with holding(str(tmp_path), "it", tell=said.append):
        assert str(torn) in said[0]
    assert not torn.exists()


def test_the_file_is_refreshed(tmp_path: Path) -> None:
    with holding(str(tmp_path), "it", **QUICK):
        (name,) = storage.names_in(str(tmp_path))
        os.utime(tmp_path / name, (1e9, 1e9))
        assert wait_until(lambda: (tmp_path / name).stat().st_mtime > 1e9 + 1, 20)
    memory = f"memory://{uuid.uuid4().hex}"
    with holding(memory, "it", **QUICK):
        (name,) = storage.names_in(memory)
        first = storage.read_bytes(storage.join(memory, name))
        assert wait_until(lambda: storage.read_bytes(storage.join(memory, name)) != first, 20)
        assert json.loads(storage.read_bytes(storage.join(memory, name)))["held"]


def test_who_was_taken_over_stops_and_says_so(folder: str) -> None:
    said: list[str] = []

    def work() -> None:
        with holding(folder, "it", tell=said.append, **QUICK):
            (name,) = storage.names_in(folder)
            storage.remove(storage.join(folder, name))
            for _ in range(100):
                time.sleep(0.1)

    with pytest.raises(ConfigError, match="somebody took it over, or deleted it"):
        work()
    assert "stopping" in said[0]


def test_a_store_that_takes_no_sign_of_life_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with holding(str(tmp_path), "it", tell=said.append, **QUICK), monkeypatch.context() as patch:
        patch.setattr(locks.os, "utime", refuse)
        assert wait_until(lambda: bool(said), 20)
        time.sleep(0.3)  # it is not said again
    assert len(said) == 1
    assert "cannot be refreshed ([Errno 5] Input/output error); trying again" in said[0]


def test_passwords_in_a_command_are_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "tracking.uri=http://me:secret@host/x"])
    assert myself().command == "train.py tracking.uri=http://...@host/x"
    monkeypatch.setattr(sys, "argv", ["/x/default_worker.py", "--token=secret"])
    assert myself().command == "a task of Ray"


def contend(folder: str, start: Event, results: "Queue[tuple[float, float] | None]") -> None:
    """One of many who want a folder at once; says when it had it."""
    start.wait()
    try:
        with holding(folder, "it"):
            begun = time.monotonic()
            time.sleep(0.5)
            results.put((begun, time.monotonic()))
    except ConfigError:
        results.put(None)


def assert_one_goes_on(folder: str, many: int) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    racers = [context.Process(target=contend, args=(folder, start, results)) for _ in range(many)]
    for racer in racers:
        racer.start()
    start.set()
    had = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(10)
    times = sorted(one for one in had if one)
    assert times
    assert all(end <= begin for (_, end), (begin, _) in zip(times, times[1:], strict=False))
    assert len(times) == 1 or times[-1][0] > times[0][1]


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_who_start_at_once_one_goes_on(tmp_path: Path, dead: bool) -> None:
    for number in range(3):
        folder = str(tmp_path / str(number))
        if dead:
            lay(folder, replace(myself(), started="1", token="t", held=True))
        assert_one_goes_on(folder, 6)
        assert not os.path.exists(folder) or not any(map(is_lock, os.listdir(folder)))


def test_of_two_who_cannot_ask_for_each_other_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two machines: each has a machine of its own, so only the files say who was first."""
    monkeypatch.setattr(locks, "_machine", lambda: str(threading.get_ident()))
    had: list[str] = []
    ready = threading.Barrier(4)

    def want(number: int) -> None:
        ready.wait()
        try:
            with holding(str(tmp_path), "it", tell=lambda words: None, **QUICK):
                had.append(f"begin {number}")
                time.sleep(0.5)
                had.append(f"end {number}")
        except ConfigError:
            had.append("")

    threads = [threading.Thread(target=want, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    got = [word for word in had if word]
    assert len(had) - len(got) + len(got) // 2 == 4
    assert got
    assert all(begin.split()[1] == end.split()[1] for begin, end in zip(got[::2], got[1::2], strict=True))


@pytest.fixture
def bucket() -> Iterator[str]:
    with listening() as place, serving(place), pytest.MonkeyPatch.context() as patch:
        for name, value in reached_at(place).items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}/runs/first"


def test_on_an_object_store(bucket: str) -> None:
    said: list[str] = []
    with holding(bucket, "run first", tell=said.append, beat=0.3, stale=30.0):
        (name,) = storage.names_in(bucket)
        first = storage.version_of(storage.join(bucket, name))
        with pytest.raises(ConfigError, match="run first"), holding(bucket, "run first"):
            pass
        assert wait_until(lambda: storage.version_of(storage.join(bucket, name)) != first, 30)
    assert storage.names_in(bucket) == []
    lay(bucket, elsewhere())
    begun = time.monotonic()
    with holding(bucket, "run first", tell=said.append, beat=0.3, stale=3.0):
        assert time.monotonic() - begun < STALE_S / 2
    assert "taken over" in said[-1]


def test_two_ingests_to_one_place(tmp_path: Path) -> None:
    raw, out = fill_folders(str(tmp_path / "raw"), MARKET), str(tmp_path / "out")
    options = {"layout": "market1501", "allow_shared_identities": True}
    with holding(out, "the shards"), pytest.raises(ConfigError, match=f"the shards in {out} for this process alone"):
        ingest_here(raw, out, **options)
    assert not Path(out).exists()
    ingest_here(raw, out, **options)
    assert sorted(os.listdir(out)) == ["gallery", "query", "train"]

import mmap
import threading
import time

import numpy as np
import psutil
import pytest

from gracl import measuring
from gracl.errors import GraclError
from gracl.measuring import available_memory, phase, require_memory


def resident():
    return psutil.Process().memory_info().rss / 1e6


def room_of(megabytes):
    """Room that is really taken: every page written, and new from the system (malloc may have some left over)."""
    room = np.frombuffer(mmap.mmap(-1, megabytes * 10**6), np.uint8)
    room[:] = 1
    return room


def held(megabytes, seconds):
    """Room that is taken for a while."""
    room = room_of(megabytes)
    time.sleep(seconds)
    return int(room[-1])


def test_sees_what_is_held_for_a_while_and_only_in_its_phase():
    stats, before = {}, resident()
    with phase("large", stats):
        assert held(200, 0.1) == 1
    with phase("small", stats):
        time.sleep(0.05)
    assert set(stats) == {"large_s", "large_peak_mb", "small_s", "small_peak_mb"}
    assert before + 190 < stats["large_peak_mb"] < before + 300
    assert stats["small_peak_mb"] < before + 100


def test_sees_what_was_there_before_and_what_is_kept():
    stats = {}
    room = room_of(100)
    with phase("after", stats):
        pass
    assert stats["after_peak_mb"] >= resident() - 20 > 100
    before = resident()
    with phase("kept", stats):
        more = room_of(100)
    assert stats["kept_peak_mb"] > before + 90
    assert room[0] == more[0] == 1


def test_measures_seconds():
    stats = {}
    with phase("rest", stats):
        time.sleep(0.1)
    assert 0.1 <= stats["rest_s"] < 2


def watched(stats, fails=False):
    """A phase whose thread is looked at: there inside, gone after."""
    before, seen = set(threading.enumerate()), []
    try:
        with phase("some", stats):
            seen += set(threading.enumerate()) - before
            if fails:
                raise KeyError("broken")
    finally:
        (watch,) = seen
        assert watch.daemon
        assert not watch.is_alive()
        assert watch not in threading.enumerate()


def test_ends_its_thread_also_after_an_error():
    stats = {}
    with pytest.raises(KeyError, match="broken"):
        watched(stats, fails=True)
    assert stats == {}
    watched(stats)
    assert set(stats) == {"some_s", "some_peak_mb"}


def test_phases_may_stand_in_each_other():
    stats = {}
    with phase("outer", stats):
        with phase("inner", stats):
            assert held(150, 0.1) == 1
        time.sleep(0.02)
    assert stats["outer_s"] > stats["inner_s"]
    assert stats["outer_peak_mb"] > stats["inner_peak_mb"] - 20


def test_is_cheap():
    stats = {}
    start = time.perf_counter()
    for _ in range(20):
        with phase("nothing", stats):
            pass
    assert (time.perf_counter() - start) / 20 < 0.02  # ending does not wait for the next look


def control_group(folder, limit, used, inactive, name="inactive_file"):
    files = folder / "max", folder / "current", folder / "stat"
    for file, text in zip(files, (str(limit), str(used), f"anon 5\n{name} {inactive}"), strict=True):
        file.write_text(f"{text}\n")
    return files


def test_memory_is_what_the_control_group_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_GROUPS", (control_group(tmp_path, 10**6, 700_000, 100_000),))
    assert available_memory() == 400_000
    monkeypatch.setattr(measuring, "_GROUPS", (control_group(tmp_path, 10**6, 10**6, 200, "total_inactive_file"),))
    assert available_memory() == 200


def test_memory_is_that_of_the_machine_where_no_group_has_less(tmp_path, monkeypatch):
    machine = psutil.virtual_memory().total
    for limit in ("max", 2**63):
        monkeypatch.setattr(measuring, "_GROUPS", (control_group(tmp_path, limit, 0, 0),))
        assert 10**7 < available_memory() <= machine
    monkeypatch.setattr(measuring, "_GROUPS", (tuple(tmp_path / name for name in ("no", "such", "files")),))
    assert 10**7 < available_memory() <= machine


def test_work_that_memory_is_too_small_for_is_refused(monkeypatch):
    monkeypatch.setattr(measuring, "available_memory", lambda: 3 * 10**9)
    require_memory(3 * 10**9, "three", "never mind")
    with pytest.raises(GraclError, match=r"expected 3.1 GB of free memory for pigs; came 3.0 GB; buy a barn"):
        require_memory(31 * 10**8, "pigs", "buy a barn")

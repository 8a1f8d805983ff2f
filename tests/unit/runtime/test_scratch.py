"""Folders that end with their process, however it ends."""

import subprocess
import sys

import pytest

from gracl.runtime.scratch import scratch


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("GRACL_TMP", str(tmp_path))
    return tmp_path


def test_a_folder_is_there_as_long_as_it_is_used(place):
    with scratch() as folder:
        (folder / "a").write_text("a")
        assert folder.is_relative_to(place)
        assert [path.name for path in folder.iterdir()] == ["a"]
    assert list(place.iterdir()) == []
    with pytest.raises(ValueError, match="work"), scratch():
        raise ValueError("work")
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(place):
    program = (
        "from gracl.runtime.scratch import scratch; import os, sys\n"
        "with scratch() as folder:\n"
        "    (folder / 'state.pt').write_text('half')\n"
        "    print('there', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "there\n"
    (theirs,) = place.iterdir()
    (place / "gracl-of-another-kind").mkdir()
    (place / "else").mkdir()
    with scratch() as mine:
        assert theirs.exists(), "it is at work"
        process.kill()
        process.communicate()
        assert theirs.exists()
        with scratch() as another:
            assert not theirs.exists()
            assert mine.exists()
            assert another != mine
    assert sorted(path.name for path in place.iterdir()) == ["else", "gracl-of-another-kind"]

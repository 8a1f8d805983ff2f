"""A driver that is killed, a second one beside it, a last checkpoint that is torn: through the door, with Ray."""

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.local_twin import learn
from benchmarks.rehearse_jobs import wait_until
from gracl.learning.checkpoint import load_state
from tests.local.test_fit import assert_same_run
from tests.ray.test_survival import Door, kept
from tests.toy import toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS = 8  # enough that the second door is open before the first run is done


@pytest.fixture
def door(toy_shards: str, tmp_path: Path) -> Iterator[Callable[[], Door]]:
    """Opens doors on the same run; nothing of them outlives the test."""
    opened: list[Door] = []
    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as home:  # short: sockets lie in it

        def open_door() -> Door:
            opened.append(Door(toy_shards, tmp_path, home, epochs=EPOCHS))
            return opened[-1]

        yield open_door
        for one in opened:
            one.end()


def locks(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".gracl-lock")]


@pytest.mark.long
@pytest.mark.timeout(900)  # three programs with a Ray each, on a machine that may be busy
def test_a_killed_driver_is_followed_at_once_and_a_torn_epoch_is_learnt_again(
    door: Callable[[], Door], toy_shards: str, tmp_path: Path
) -> None:
    folder = tmp_path / "interrupted"
    first = door()
    assert wait_until(lambda: folder.exists() and bool(locks(folder)), 240)
    second = door()  # beside it
    out, err = second.process.communicate(timeout=120)
    assert second.process.returncode == 2, err
    assert f"ConfigError: expected run interrupted in {tmp_path} for this process alone; came one that is held" in err
    assert f"process {first.process.pid}" in err
    assert first.process.poll() is None, "the first had ended: this proves nothing"
    assert wait_until(lambda: len(list(folder.glob("epoch-*/state.pt"))) > 1, 240)
    for pid in first.family():  # the driver and, since it was all on this machine, its Ray
        os.kill(pid, signal.SIGKILL)
    assert not kept(folder, EPOCHS).exists(), "the run had ended before it was killed: this proves nothing"
    assert len(locks(folder)) == 1

    third = door()
    out, err = third.process.communicate(timeout=300)
    assert third.process.returncode == 0, err
    assert f"process {first.process.pid}" in err
    assert "which is dead; taken over" in err
    assert locks(folder) == []
    unbroken = learn(toy_config(toy_shards, epochs=EPOCHS))
    assert_same_run(load_state(json.loads(out.splitlines()[-1])["checkpoint"]), unbroken)

    last = kept(folder, EPOCHS)
    whole = sorted(int(name.removeprefix("epoch-")) for name in os.listdir(folder) if name.startswith("epoch-"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    fourth = door()
    out, err = fourth.process.communicate(timeout=300)
    if len(whole) == 1:  # the last was the best, and nothing else had been kept
        assert fourth.process.returncode == 2
        assert f"a whole checkpoint among those in {folder}" in err
        return
    assert fourth.process.returncode == 0, err
    assert f"torn-epoch-{EPOCHS:04d}/state.pt now; going on after epoch {whole[0]}" in err
    assert_same_run(load_state(json.loads(out.splitlines()[-1])["checkpoint"]), unbroken)

import io
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from gracl.runtime import terminal
from gracl.runtime.progress import Progress, say
from gracl.runtime.terminal import COLUMNS, EpochsShown, Meter, clock, epoch_row, in_words, long_wait, table, watching

EPOCH = {
    "epoch": 3.0,
    "train/loss": 7.4321,
    "cluster/number": 16.0,
    "cluster/noise_fraction": 0.125,
    "time/scan_s": 0.61,
    "time/relate_s": 12.0,
    "time/train_s": 3.9,
    "time/judge_s": 0.0,
    "time/epoch_s": 16.51,
}
JUDGED = {**EPOCH, "epoch": 10.0, "val/mAP": 0.7569, "val/rank1": 0.85}


class Paper(io.TextIOWrapper):
    """A text file that remembers what was written; with name and mode, without which it would be no `TextIO`."""

    name, mode = "paper", "w"

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="", write_through=True)

    def getvalue(self) -> str:
        return self.buffer.getvalue().decode()


class Screen(Paper):
    """The same as a terminal."""

    def isatty(self) -> bool:
        return True


class Now:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (9.99, "0:09"), (60.0, "1:00"), (3599.0, "59:59"), (3600.0, "1:00:00"), (90061.5, "25:01:01")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_an_epoch_that_was_not_judged_has_dashes():
    row = dict(zip([title for title, _, _ in COLUMNS], epoch_row(EPOCH), strict=True))
    assert (row["epoch"], row["mAP"], row["Rank-1"], row["noise"]) == ("3", "-", "-", "12.5%")
    judged = dict(zip([title for title, _, _ in COLUMNS], epoch_row(JUDGED), strict=True))
    assert (judged["epoch"], judged["mAP"], judged["Rank-1"]) == ("10", "75.7%", "85.0%")


def test_the_table_has_a_line_an_epoch_with_columns_aligned_to_the_right():
    lines = table([EPOCH, JUDGED]).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    place = lines[0].index("mAP") + len("mAP")
    assert [line[:place].split()[-1] for line in lines] == ["mAP", "-", "75.7%"]
    assert all(line[place : place + 2] == "  " for line in lines)
    assert table([]).split() == " ".join(title for title, _, _ in COLUMNS).split()


def test_say_leaves_stdout_to_the_result(capsys):
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_the_meter_guesses_the_time_left_from_the_phase_alone():
    now = Now()
    meter = Meter(Paper(), now=now)
    now.time += 1000
    meter.show("epoch 3/20", "scan", 0, 400)
    now.time += 30
    assert meter.line("epoch 3/20", "scan", 100, 400) == "epoch 3/20  scan  100/400  1:30 left in this phase"
    assert meter.line("epoch 3/20", "scan", 0, 400) == "epoch 3/20  scan  0/400"
    assert meter.line("epoch 3/20", "scan", 400, 400) == "epoch 3/20  scan  400/400"
    assert meter.line("epoch 3/20", "start", 0, 0) == "epoch 3/20  start"
    meter.show("epoch 3/20", "train", 0, 10)
    now.time += 2
    assert meter.line("epoch 3/20", "train", 5, 10).endswith("5/10  0:02 left in this phase")


def test_on_a_terminal_one_line_changes():
    out = Screen()
    meter = Meter(out, now=Now())
    meter.show("e", "scan", 1, 4)
    meter.show("e", "scan", 2, 4)
    meter.clear()
    assert [line.split("  ")[-2:] for line in out.getvalue().split("\r\033[K")[1:3]] == [
        ["1/4", "0:00 left in this phase"],
        ["2/4", "0:00 left in this phase"],
    ]
    assert out.getvalue().endswith("\r\033[K")
    assert "\n" not in out.getvalue()


def test_elsewhere_a_line_is_written_now_and_then():
    out, now = Paper(), Now()
    meter = Meter(out, every=15.0, now=now)
    for done in range(100):
        now.time += 1
        meter.show("e", "scan", done, 100)
    meter.clear()
    lines = out.getvalue().splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("e  scan  14/100  1:2")
    assert "\r" not in out.getvalue()


def test_progress_counts_up_with_rate_and_time_left():
    written = []
    progress = Progress("describe gallery", 10, write=written.append, moving=True)
    progress(4)
    progress(6)
    assert written[0].startswith("\rdescribe gallery: [########            ]  40% 4 of 10 images, ")
    assert written[1].startswith("\rdescribe gallery: [####################] 100% 10 of 10 images, ")
    assert written[1].endswith("\n")


def test_the_line_of_an_epoch_leaves_out_what_is_not_there_and_says_how_long_still():
    line = terminal._epoch_line(EPOCH, 10, pace=20.0)
    assert line.startswith("epoch 3/10: loss 7.432, clusters 16, noise 12.5%, scan s 0.6")
    assert line.endswith("(2:20 left)")
    last = terminal._epoch_line(JUDGED, 10, pace=20.0)
    assert "mAP 75.7%, Rank-1 85.0%" in last
    assert "left" not in last


class FakeBoard:
    """Answers `look` as the board's actor does, a state a call; the last state stays."""

    def __init__(self, states: list[Any], notes: Sequence[str] = ()) -> None:
        self.asked: list[int] = []
        self.look = SimpleNamespace(remote=self._look)
        self.notes = SimpleNamespace(remote=lambda heard: list(notes)[heard:])
        self._states = states

    def _look(self, seen: int) -> Any:
        self.asked.append(seen)
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if isinstance(state, Exception):
            raise state
        progress, epochs = state
        return progress, epochs[seen:]


def watch(
    monkeypatch: pytest.MonkeyPatch, states: list[Any], *, done: int, asks: int, notes: Sequence[str] = ()
) -> tuple[FakeBoard, list[str]]:
    """The board, and what is shown until it has been asked so often."""
    board, out = FakeBoard(states, notes), Screen()
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    with watching(board, epochs=10, done=done, threads=2, stream="ray", out=out):
        deadline = time.monotonic() + 20
        while len(board.asked) < asks and time.monotonic() < deadline:
            time.sleep(0.02)
    return board, out.getvalue().replace("\r\033[K", "\n").split("\n")


def test_watching_shows_each_epoch_once_and_the_phase_after_it(monkeypatch):
    first, second = {**EPOCH, "epoch": 3.0}, {**EPOCH, "epoch": 4.0}
    states = [(("scan", 0, 8), [first]), (("train", 4, 8), [first, second])]
    board, lines = watch(monkeypatch, states, done=2, asks=2)
    assert board.asked[:2] == [0, 1]
    shown = [line.split(":")[0].strip() for line in lines if ": loss" in line]
    assert shown == ["epoch 3/10", "epoch 4/10"]
    assert "epoch 4/10  scan  0/8" in lines
    assert any(line.startswith("epoch 5/10  train  4/8") for line in lines)


def test_watching_passes_on_once_what_a_rank_has_to_say(monkeypatch):
    _, lines = watch(monkeypatch, [(("scan", 0, 8), [])], done=0, asks=3, notes=["goes on", "after step 7"])
    assert [line for line in lines if line.startswith("note")] == ["note: goes on", "note: after step 7"]


def test_an_epoch_that_comes_just_before_the_end_is_shown(monkeypatch):
    """Whoever is looked at has nothing new until the block has ended."""
    late, out, states = {**EPOCH, "epoch": 10.0}, Paper(), [(("train", 8, 8), [])]
    board = FakeBoard(states)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    with watching(board, epochs=10, done=9, threads=2, stream="ray", out=out):
        assert wait_for(lambda: board.asked)
        states[:] = [(("train", 8, 8), [late])]
    assert out.getvalue().count("epoch 10/10: loss") == 1


def wait_for(there) -> bool:
    deadline = time.monotonic() + 20
    while not there() and time.monotonic() < deadline:
        time.sleep(0.001)
    return bool(there())


def test_watching_ends_quietly_when_the_board_is_gone(monkeypatch):
    lost, before = ray.exceptions.RayActorError(), threading.active_count()
    board, lines = watch(monkeypatch, [(("scan", 0, 8), []), lost], done=0, asks=2)
    assert board.asked == [0, 0]
    assert threading.active_count() == before
    assert lines[-1] == "epoch 1/10  scan  0/8"


FED = {"time/train_s": 10.0, "time/train_wait_s": 4.0, "time/train_first_s": 1.0, "time/train_decode_s": 12.0}


def test_a_long_wait_says_how_many_threads_would_do():
    # 12 CPU seconds of pictures in the 6 that the network itself took.
    said = "which take 2.0 CPUs of each: set scale.decode_threads=2 (now 1) where there are as many"
    assert said in long_wait(FED, 1, "ray")
    assert long_wait(FED, 1, "ray").endswith("or scale.keep_pixels=auto")
    assert long_wait(FED, 1, "ray").startswith("workers waited 30% of the training for pictures")
    assert "have 2 threads: CPUs are short" in long_wait(FED, 2, "ray")
    assert "scale.stream=mapped" in long_wait(FED, 2, "ray")
    assert "disk is slow" in long_wait(FED, 2, "mapped")
    assert "scale.stream" not in long_wait(FED, 2, "mapped")


def test_a_short_wait_is_not_worth_a_word():
    assert long_wait(FED | {"time/train_wait_s": 2.0}, 1, "ray") == ""
    assert long_wait(FED | {"time/train_first_s": 3.5}, 1, "ray") == ""
    assert long_wait(EPOCH, 1, "ray") == ""


def test_watching_says_of_the_wait_once(monkeypatch):
    epochs = [{**EPOCH, **FED, "epoch": number} for number in (3.0, 4.0, 5.0)]
    _, lines = watch(monkeypatch, [(("scan", 0, 8), epochs)], done=2, asks=2)
    assert [line.split(":")[1] for line in lines if line.startswith("note")] == [" epoch 3"]


def test_a_collapse_is_said_in_words():
    figures = {"epoch": 3.0, "cluster/number": 9.0, "train/loss": 1.0}
    assert in_words(figures) == in_words(figures | {"cluster/collapsed": 0.0}) == []
    kept = figures | {"cluster/collapsed": 1.0, "cluster/found": 1.0, "cluster/kept_previous": 1.0}
    (text,) = in_words(kept)
    assert text.startswith("the clustering collapsed to 1 clusters; the labels of the epoch before were kept")


def test_an_epoch_is_shown_by_ray_trains_controller_without_what_is_for_mlflow_alone():
    shown = []
    board = SimpleNamespace(close_epoch=SimpleNamespace(remote=shown.append))
    EpochsShown(board).after_report(None, [EPOCH | {"step_losses": [1.0], "system": {"a": 1.0}}, {"system": {}}], None)
    assert shown == [EPOCH]

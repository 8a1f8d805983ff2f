"""What the terminal shows while a run works: the phase, how far, how long still; and a table of its epochs.

Everything goes to stderr, since a door's stdout ends with its one JSON line.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import ray
from ray.train import UserCallback

from gracl.relations.collapse import words
from gracl.runtime.tracking import plain
from gracl.runtime.waiting import BOARD_S

COLUMNS = (
    ("epoch", "epoch", "{:.0f}"),
    ("mAP", "val/mAP", "{:.1%}"),
    ("Rank-1", "val/rank1", "{:.1%}"),
    ("loss", "train/loss", "{:.3f}"),
    ("clusters", "cluster/number", "{:.0f}"),
    ("noise", "cluster/noise_fraction", "{:.1%}"),
    ("scan s", "time/scan_s", "{:.1f}"),
    ("relate s", "time/relate_s", "{:.1f}"),
    ("train s", "time/train_s", "{:.1f}"),
    ("judge s", "time/judge_s", "{:.1f}"),
    ("epoch s", "time/epoch_s", "{:.1f}"),
)
LONG_WAIT = 0.1
_LAST_S = 5.0


def epoch_row(metrics: Mapping[str, float]) -> list[str]:
    """An epoch's cells; '-' where the epoch was not judged."""
    return [form.format(metrics[name]) if name in metrics else "-" for _, name, form in COLUMNS]


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """The epochs of a run, one line each, columns aligned."""
    cells = [[title for title, _, _ in COLUMNS], *(epoch_row(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Meter:
    """Turns (phase, done, total) into a line with a guess of the time left.

    Args:
        out: where to write; one line that changes on a terminal, else a line every `every` seconds.
    """

    def __init__(self, out: TextIO, *, every: float = 15.0, now: Callable[[], float] = time.monotonic) -> None:
        self._out, self._every, self._now = out, every, now
        self._live = out.isatty()
        self._phase, self._since, self._last = "", 0.0, now()

    def show(self, prefix: str, phase: str, done: int, total: int) -> None:
        """Shows the present state if it is time to."""
        now = self._now()
        if phase != self._phase:
            self._phase, self._since = phase, now
        if self._live or now - self._last >= self._every:
            self._last = now
            line = self.line(prefix, phase, done, total)
            self._out.write(f"\r\033[K{line}" if self._live else f"{line}\n")
            self._out.flush()

    def line(self, prefix: str, phase: str, done: int, total: int) -> str:
        """`epoch 3/20  scan  512/2720  0:12 left in this phase`."""
        elapsed = self._now() - self._since
        left = f"  {clock(elapsed * (total - done) / done)} left in this phase" if 0 < done < total else ""
        return f"{prefix}  {phase}  {done}/{total}{left}" if total else f"{prefix}  {phase}"

    def clear(self) -> None:
        """Takes the changing line away so that others can write."""
        if self._live:
            self._out.write("\r\033[K")
            self._out.flush()


class EpochsShown(UserCallback):
    """Shows an epoch as done once Ray Train's controller has its checkpoint, and not when the ranks have handed it in:
    what was shown is not learnt again, whoever dies next."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called after the checkpoint was registered."""
        self._board.close_epoch.remote(plain(metrics[0]))


@contextmanager
def watching(
    board: Any, *, epochs: int, done: int, threads: int, stream: str, out: TextIO | None = None
) -> Iterator[None]:
    """Shows the board of a run until the block ends, from a thread, and each epoch's figures as they come.

    Args:
        board: the run's `Board`.
        epochs: in all.
        done: that were done before, by the run that is resumed.
        threads, stream: how each worker gets its pictures (`scale.decode_threads`, `scale.stream`). The first epoch in
            which workers waited long for them is followed by a note that says what would help.
    """
    stop, out = threading.Event(), out or sys.stderr
    watcher = threading.Thread(target=_watch, args=(board, epochs, done, (threads, stream), out, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=10)


def _watch(board: Any, epochs: int, done: int, feeding: tuple[int, str], out: TextIO, stop: threading.Event) -> None:
    meter, seen, heard, started, waited = Meter(out), 0, 0, time.monotonic(), ""
    over = False
    while not over:
        over = stop.wait(0.5)  # and one more look: the last epoch is shown just before the end
        try:
            asked = [board.look.remote(seen), board.notes.remote(heard)]
            ((phase, count, total), news), asides = ray.get(asked, timeout=_LAST_S if over else BOARD_S)
        except ray.exceptions.GetTimeoutError:
            continue  # a machine that swaps: nothing to show now
        except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError):
            return  # the run is over or lost; its own error says so
        for note in asides:
            heard += 1
            meter.clear()
            out.write(f"note: {note}\n")
        for metrics in news:
            seen += 1
            meter.clear()
            out.write(_epoch_line(metrics, epochs, (time.monotonic() - started) / seen) + "\n")
            notes = in_words(metrics)
            if not waited:  # once is enough
                waited = long_wait(metrics, *feeding)
                notes += [waited] if waited else []
            out.write("".join(f"note: epoch {metrics['epoch']:.0f}: {text}\n" for text in notes))
        if not over:
            meter.show(f"epoch {min(done + seen + 1, epochs)}/{epochs}", phase, count, total)
    meter.clear()


def in_words(metrics: Mapping[str, float]) -> list[str]:
    """What of an epoch has to be said in words."""
    found = {name.removeprefix("cluster/"): value for name, value in metrics.items() if name.startswith("cluster/")}
    return [text for text in (words(found),) if text]


def long_wait(metrics: Mapping[str, float], threads: int, stream: str) -> str:
    """How long the workers waited for pictures while they trained, and what would help; "" for less than a tenth.

    The wait for the first batch does not count: it is there once an epoch, however many CPUs there are.
    """
    trained = metrics.get("time/train_s", 0.0)
    waited = metrics.get("time/train_wait_s", 0.0) - metrics.get("time/train_first_s", 0.0)
    if waited <= LONG_WAIT * trained:
        return ""
    needed = metrics["time/train_decode_s"] / max(trained - metrics["time/train_wait_s"], 1e-9)
    said = f"workers waited {waited / trained:.0%} of the training for pictures, which take {needed:.1f} CPUs of each"
    if needed > threads:
        threads_do = f"scale.decode_threads={math.ceil(needed)} (now {threads})"
        return f"{said}: set {threads_do} where there are as many, or scale.keep_pixels=auto"
    late, do = {
        "ray": ("the stream's tasks are late", "let workers read their own disk with scale.stream=mapped"),
        "mapped": ("the disk is slow", "put the shards on a faster one"),
    }[stream]
    return f"{said}, and have {threads} threads: CPUs are short, or {late}. Leave CPUs free, or {do}"


def _epoch_line(metrics: Mapping[str, float], epochs: int, pace: float) -> str:
    cells = [
        f"{title} {cell}"
        for (title, _, _), cell in zip(COLUMNS[1:], epoch_row(metrics)[1:], strict=True)
        if cell != "-"
    ]
    epoch = int(metrics["epoch"])
    left = f"  ({clock(pace * (epochs - epoch))} left)" if epoch < epochs else ""
    return f"epoch {epoch}/{epochs}: " + ", ".join(cells) + left

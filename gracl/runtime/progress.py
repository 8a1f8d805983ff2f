"""Words to the person at the terminal, and how far something is. No Ray here: doors that need none speak, too."""

import sys
import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 5.0


def say(text: str) -> None:
    """One line to the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Says how many images are done and how long it will still take, on stderr.

    On a terminal it is one line that moves, elsewhere a line every few seconds.

    Args:
        what: is done; the line begins with it.
        images: how many there are.
        write: takes the text; None: stderr.
        moving: whether `write` leads to a terminal; None: whether stderr does.
    """

    def __init__(
        self, what: str, images: int, *, write: Callable[[str], object] | None = None, moving: bool | None = None
    ) -> None:
        self._what, self._images = what, images
        self._write = to_stderr if write is None else write
        self._moving = sys.stderr.isatty() if moving is None else moving
        self._done = 0
        self._begun = self._said = time.monotonic()

    def __call__(self, images: int) -> None:
        """Counts images that were finished."""
        self._done += images
        now = time.monotonic()
        last = self._done >= self._images
        if self._moving:
            self._write(f"\r{self._line(now)}\x1b[K" + ("\n" if last else ""))
        elif last or now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            self._write(f"{self._line(now)}\n")

    def _line(self, now: float) -> str:
        share = self._done / max(1, self._images)
        rate = self._done / max(1e-9, now - self._begun)
        left = (self._images - self._done) / max(1e-9, rate)
        bar = "#" * int(20 * share)
        return (
            f"{self._what}: [{bar:<20}] {share:4.0%} {self._done:,} of {self._images:,} images, "
            f"{rate:,.0f}/s, {left:,.0f} s left"
        )


def to_stderr(text: str) -> None:
    """Text as it is, at once."""
    sys.stderr.write(text)
    sys.stderr.flush()

"""What waits while others are worked on is worked on together next.

`ray.serve.batch` (Ray 2.60) closes a batch when its first member has waited for a moment, whether or not anybody is
free to work on it; under load there is then a queue of batches of one: 1.1 pictures each were measured at 80 requests a
second with 64 under way. Here a batch is closed when the worker is free.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

One = TypeVar("One")
Answer = TypeVar("Answer")


class Together(Generic[One, Answer]):
    """Turns a function of lists into one that is awaited for single things, side by side; of one event loop.

    Args:
        work: answers a list, one for each in order; called in a thread, never twice at a time.
        most: things in a list.
        wait: seconds that the first of a list waits for others where nothing is being worked on.
    """

    def __init__(self, work: Callable[[list[One]], list[Answer]], *, most: int, wait: float) -> None:
        self._work, self._most, self._wait = work, most, wait
        self._waiting: deque[tuple[One, asyncio.Future[Answer]]] = deque()
        self._busy: asyncio.Task[None] | None = None

    async def __call__(self, one: One) -> Answer:
        """The answer for one thing; what `work` raises is raised for each that was in the list."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        if self._busy is None or self._busy.done():
            self._busy = asyncio.create_task(self._until_nobody_waits())
        return await future

    async def _until_nobody_waits(self) -> None:
        if len(self._waiting) < self._most:
            await asyncio.sleep(self._wait)
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [(one, future) for one, future in taken if not future.done()]  # who has hung up is left out
            if not batch:
                continue
            try:
                answers = await asyncio.to_thread(self._work, [one for one, _ in batch])
                pairs = list(zip(batch, answers, strict=True))
            except Exception as error:  # raised again for each that waits for it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in pairs:
                if not future.done():
                    future.set_result(answer)

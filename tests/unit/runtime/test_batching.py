"""What is worked on together: nothing twice, nothing lost, and as much at a time as there is."""

import asyncio
import threading

import pytest

from gracl.runtime.service.batching import Together


class Worker:
    """Doubles numbers; remembers the lists, and waits for `go` before each answer where there is one."""

    def __init__(self, go=None):
        self.lists, self._go, self._inside = [], go, threading.Lock()

    def __call__(self, numbers):
        assert self._inside.acquire(blocking=False), "two lists at a time"
        try:
            self.lists.append(list(numbers))
            if self._go is not None:
                assert self._go.wait(10)
            if -1 in numbers:
                raise ValueError("a list that fails")
            return [2 * number for number in numbers]
        finally:
            self._inside.release()


def test_each_gets_its_own_answer():
    async def all_of_them():
        worker = Worker()
        together = Together(worker, most=4, wait=0.01)
        return worker, await asyncio.gather(*(together(number) for number in range(10)))

    worker, answers = asyncio.run(all_of_them())
    assert answers == [2 * number for number in range(10)]
    assert worker.lists == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_who_comes_while_others_are_worked_on_is_taken_together():
    """`ray.serve.batch` would make lists of one of these, which come further apart than the wait."""

    async def trickle():
        go = threading.Event()
        worker = Worker(go)
        together = Together(worker, most=8, wait=0.001)
        asked = []
        for number in range(6):
            asked.append(asyncio.create_task(together(number)))
            await asyncio.sleep(0.02)
        go.set()
        return worker, await asyncio.gather(*asked)

    worker, answers = asyncio.run(trickle())
    assert worker.lists == [[0], [1, 2, 3, 4, 5]]
    assert answers == [0, 2, 4, 6, 8, 10]


def test_a_list_that_fails_does_not_stop_the_next():
    async def some():
        worker = Worker()
        together = Together(worker, most=2, wait=0.0)
        return await asyncio.gather(*(together(number) for number in (1, -1, 3, 4)), return_exceptions=True)

    first, second, *rest = asyncio.run(some())
    assert isinstance(first, ValueError)
    assert isinstance(second, ValueError)
    assert rest == [6, 8]


def test_too_few_answers_are_told_to_all():
    async def some():
        together = Together(lambda numbers: numbers[:1], most=4, wait=0.01)
        return await asyncio.gather(together(1), together(2), return_exceptions=True)

    assert [type(one) for one in asyncio.run(some())] == [ValueError, ValueError]


def test_who_has_hung_up_is_not_worked_on():
    async def some():
        go = threading.Event()
        worker = Worker(go)
        together = Together(worker, most=1, wait=0.0)
        asked = [asyncio.create_task(together(number)) for number in range(3)]
        await asyncio.sleep(0.05)
        asked[1].cancel()
        go.set()
        return worker, await asyncio.gather(*asked, return_exceptions=True)

    worker, answers = asyncio.run(some())
    assert worker.lists == [[0], [2]]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert (answers[0], answers[2]) == (0, 4)


@pytest.mark.parametrize("pause", [0.0, 0.03])
def test_it_goes_on_after_nobody_waited(pause):
    async def twice():
        together = Together(Worker(), most=4, wait=0.001)
        first = await together(1)
        await asyncio.sleep(pause)
        return first, await together(2)

    assert asyncio.run(twice()) == (2, 4)

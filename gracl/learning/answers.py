"""Relations that were asked for: there already, or under way while the training goes on (docs/decisions/0012)."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from gracl.types import Assignment, FeatureTable


def ask(
    relate: Callable[[int, FeatureTable], Assignment], epoch: int, part: FeatureTable, *, wait: bool
) -> "Future[Assignment]":
    """The relation of a scan: there when this returns, or (without `wait`) under way in a thread of its own.

    The thread ends with its answer, whether anybody still waits for it or not: after an error in the training nobody
    does but Python, at its own end (a daemon would be killed there in the midst of compiled code, and abort).
    """
    if wait:
        return settled(relate(epoch, part))
    thread = ThreadPoolExecutor(1, thread_name_prefix=f"relate-{epoch}")
    answer = thread.submit(relate, epoch, part)
    thread.shutdown(wait=False)
    return answer


def settled(assignment: Assignment) -> "Future[Assignment]":
    """An answer that is there already."""
    answer: Future[Assignment] = Future()
    answer.set_result(assignment)
    return answer

"""States within an epoch: when one is due, and what is in it (docs/decisions/0023).

For epochs that last hours. Weights, optimizer and teacher are those of any rank, and so are the banks: every rank moves
them alike. Running statistics are those of rank 0, which are the only ones that outlive an epoch: in training nothing
depends on them. The rest of an epoch follows from its labels and the number of the step, since plan and dice do.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future

import torch
from torch import Tensor

from gracl.learning.checkpoint import Midway, TrainState
from gracl.learning.encoder import Encoder
from gracl.learning.epoch_report import Clock
from gracl.learning.losses import Criterion
from gracl.learning.teacher import Teacher
from gracl.types import Assignment, RetrievalReport

Keeper = Callable[[TrainState], None]
Kept = Callable[[list[Tensor], int], None]


class MidwayKeeper:
    """Hands the state over within epochs, at the same steps on every rank.

    Args:
        keeper: is given the state on every rank, before anything in it moves.
        every_steps: steps from one state to the next, counted from the epoch's first; 0 for none.
        every_minutes: minutes from one state to the next, of whatever kind, by the clock of rank 0; 0 for none.
        look: is called with epoch and step before a state is handed over, and raises where it is not to be kept.
        gather: `Ranks.gather`.
        encoder, criterion, optimizer, teacher: those that learn.
    """

    def __init__(
        self,
        keeper: Keeper,
        every_steps: int,
        every_minutes: float,
        *,
        look: Callable[[int, int], None],
        gather: Callable[[Tensor], Tensor],
        encoder: Encoder,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        teacher: Teacher | None,
    ) -> None:
        self._keeper, self._every_steps, self._every_seconds = keeper, every_steps, 60 * every_minutes
        self._look, self._gather, self._encoder = look, gather, encoder
        self._criterion, self._optimizer = criterion, optimizer
        self._teacher = teacher.encoder if teacher else None

    def of(
        self,
        state: TrainState,
        clock: Clock,
        assignment: Assignment,
        answer: "Future[Assignment] | None",
        untrained: RetrievalReport | None,
    ) -> Kept | None:
        """What is to be called after each step of an epoch with the losses so far and the number of steps in all.

        Args:
            state: at the epoch's beginning.
            clock: of the epoch.
            assignment: what it learns.
            answer: what the next one will, which no state goes without: the first waits until it is there.
            untrained: how the first weights were judged, where this epoch is to tell it.
        """
        if not (self._every_steps or self._every_seconds):
            return None
        kept_step, kept_at = state.midway.step if state.midway else 0, clock.started

        def after_step(rows: list[Tensor], steps: int) -> None:
            nonlocal kept_step, kept_at
            # After the last step the epoch's own state is next.
            if len(rows) < steps and self._due(rows, kept_step, kept_at, answer):
                clock.lap("train")
                self._look(state.epoch, len(rows) - 1)
                losses = self._gather(torch.stack(rows)[None])
                midway = Midway(len(rows), assignment, self._criterion.moved(), losses, dict(clock.seconds), untrained)
                self._keeper(
                    state.within(
                        midway,
                        encoder=self._encoder,
                        optimizer=self._optimizer,
                        assignment=answer.result() if answer else None,
                        teacher=self._teacher,
                    )
                )
                clock.lap("keep")
                kept_step, kept_at = len(rows), time.perf_counter()

        return after_step

    def _due(self, rows: list[Tensor], step: int, at: float, answer: "Future[Assignment] | None") -> bool:
        """Whether it is time; where clocks or threads have a say, rank 0 decides for all."""
        due = bool(self._every_steps) and len(rows) - step >= self._every_steps
        if not self._every_seconds and (answer is None or not due):
            return due
        due = due or (self._every_seconds > 0 and time.perf_counter() - at >= self._every_seconds)
        ready = answer is None or answer.done()
        return bool(self._gather(torch.tensor([int(due and ready)], device=rows[0].device))[0])

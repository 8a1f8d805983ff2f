"""What an epoch says of itself: seconds by phase, and the report made of what its four lines returned."""

import time
import zlib
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from gracl.types import Assignment, Batch, EpochReport, Plan, RetrievalReport

PHASES = ("keep", "scan", "relate", "plan", "train", "judge", "epoch")
# The name under which an epoch reports the loss of each step.
STEP_LOSSES = "step_losses"
FEEDING = ("scan_wait", "scan_decode", "train_wait", "train_decode", "train_first")


class Clock:
    """Seconds by phase of one epoch, 0 for a phase that did not take place.

    What was spent on reporting the epoch before it, and on states within it, is this epoch's phase `keep`; `relate` is
    the waiting for labels, before the training or (with `overlap`) after it. How the network was fed stands beside the
    phases: `_wait` is that part of a phase in which it waited for pictures (`train_first`: for the first of them),
    `_decode` the CPU time that the threads took to make them.
    """

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.seconds = dict.fromkeys((*PHASES, *FEEDING), 0.0)
        self._before = 0.0

    def next(self) -> "Clock":
        """The clock of the next epoch, which begins where the last lap of this one ended."""
        clock = Clock()
        clock.started = clock.last = self.last
        clock.lap("keep")
        return clock

    def lap(self, phase: str) -> None:
        """Everything since the last lap belongs to `phase`, beside what belongs to it already."""
        now = time.perf_counter()
        self.seconds[phase] += now - self.last
        self.last, self.seconds["epoch"] = now, self._before + now - self.started

    def fed(self, phase: str, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of a phase, with how long they were waited for. Letting go of it lets go of them."""
        first = f"{phase}_first" in self.seconds
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - begun
            self.seconds[f"{phase}_wait"] += waited
            if first:
                self.seconds[f"{phase}_first"] += waited
                first = False
            if batch is None:
                return
            self.seconds[f"{phase}_decode"] += batch.decoding_s
            yield batch

    def share(self, average: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """How the network was fed becomes the mean over the ranks; all of them have to ask."""
        mean = average(torch.tensor([self.seconds[name] for name in FEEDING], device=device))
        self.seconds |= dict(zip(FEEDING, mean.tolist(), strict=True))

    def take_up(self, seconds: dict[str, float]) -> None:
        """The epoch was begun by another process, which had taken so long in each phase."""
        self.seconds = {phase: spent + seconds.get(phase, 0.0) for phase, spent in self.seconds.items()}
        self._before = seconds.get("epoch", 0.0)


def describe_epoch(
    epoch: int,
    losses: Float[Tensor, "steps 5"],
    assignment: Assignment,
    plan: Plan,
    clock: Clock,
    retrieval: RetrievalReport | None,
    untrained: RetrievalReport | None,
) -> EpochReport:
    """The report of an epoch from what its four lines returned.

    All that it says of labels is said of those that were learnt. `cluster/label_age` is the epochs between their scan
    and this epoch: 0, or 1 where the relation went on meanwhile (their `cluster/*_s` then are the scan's, not ours).
    """
    loss, inter, intra, instance, camera = losses.mean(0).tolist()
    return EpochReport(
        epoch=epoch,
        loss=loss,
        inter_loss=inter,
        intra_loss=intra,
        instance_loss=instance,
        camera_loss=camera,
        clusters=assignment.clusters,
        noise_fraction=float((assignment.labels < 0).mean()),
        images_per_second=plan.tickets.size / clock.seconds["train"],
        seconds=clock.seconds,
        stats=assignment.stats | {"label_age": float(epoch - assignment.epoch)},
        checksums={"labels": zlib.crc32(assignment.labels.tobytes()), "plan": zlib.crc32(plan.tickets.tobytes())},
        retrieval=retrieval,
        untrained=untrained,
        step_losses=tuple(losses[:, 0].tolist()),
    )

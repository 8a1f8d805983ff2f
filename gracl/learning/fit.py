"""THE EPOCH, and the ports it asks for.

An epoch of GRACL is four lines: scan the images into features, relate the features into labels and proxies, plan which
image is learnt when, pick and train. They are written here once; `gracl.local` and `gracl.runtime` bring the ports.
An epoch starts from weights (those of a teacher too, where there is one), optimizer and epoch number alone (with
`overlap` also from the assignment that is one epoch old, with `fall_back` from its labels), so a crash costs at
most the epoch under way, and less where `midway.py` keeps states within it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor, nn

from gracl.errors import expected
from gracl.learning.answers import ask, settled
from gracl.learning.casting import autocast
from gracl.learning.checkpoint import TrainState
from gracl.learning.encoder import Encoder
from gracl.learning.encoding import encode
from gracl.learning.epoch_report import Clock, describe_epoch
from gracl.learning.guards import NOWHERE, Study, bad_step, check_weights, guarded_loss
from gracl.learning.losses import Criterion
from gracl.learning.midway import Keeper, Kept, MidwayKeeper
from gracl.learning.optim import can_pass_over, load_optimizer, no_longer_passing_over, pass_over_bad, set_rate
from gracl.learning.pixels import to_device
from gracl.learning.sameness import SameWeights
from gracl.learning.teacher import Teacher
from gracl.learning.travel import Leaving, sent
from gracl.types import Assignment, Batch, EpochReport, FeatureTable, Plan, RetrievalReport


@runtime_checkable
class Batches(Protocol):
    """Where pictures come from. Every rank gets its own share; no batch carries a label."""

    def images(self, split: str) -> int:
        """How many images a split has."""
        ...

    def scan(self, split: str) -> Iterator[Batch]:
        """This rank's share of a split, every image once, seen plainly."""
        ...

    def picks(self, plan: Plan, first: int = 0) -> Iterator[Batch]:
        """This rank's share of a plan from its ticket `first` on, seen as training images."""
        ...

    def again(self, epoch: int) -> Iterator[Batch]:
        """This rank's share of the train split, every image once, seen as a training image."""
        ...


@runtime_checkable
class Relator(Protocol):
    """Where the whole set meets. Each call waits until all ranks have handed in their part; one call at a time."""

    def relate(self, epoch: int, part: FeatureTable, previous: Int64[ndarray, "images"] | None = None) -> Assignment:
        """Labels and proxies of the train split; with `overlap` called in a thread of its own.

        `previous` labels, those of the epoch before, are there to fall back on.
        """
        ...

    def judge(self, epoch: int, query: FeatureTable, gallery: FeatureTable) -> RetrievalReport:
        """How well queries find their gallery."""
        ...

    def stability(self, epoch: int, part: FeatureTable, labels: Int64[ndarray, "images"]) -> float:
        """How far other features of the train split give the same labels; see `relations.stability`."""
        ...


@runtime_checkable
class Ranks(Protocol):
    """The processes that learn together."""

    rank: int
    size: int

    def parallel(self, encoder: Encoder) -> nn.Module:
        """The encoder so wrapped that backward averages gradients over the ranks."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in order of rank, on every rank."""
        ...

    def average(self, values: Tensor) -> Tensor:
        """The mean over the ranks."""
        ...

    def share_buffers(self, encoder: Encoder) -> None:
        """Gives every rank the buffers (running statistics) of rank 0."""
        ...


Planner = Callable[[int, Int64[ndarray, "images"]], Plan]
Reporter = Callable[[EpochReport, TrainState], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Splits:
    """The names of the splits; query and gallery may both be empty: then nothing is judged."""

    train: str = "train"
    query: str = ""
    gallery: str = ""


def fit(
    state: TrainState,
    *,
    encoder: Encoder,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    relator: Relator,
    ranks: Ranks,
    planner: Planner,
    rate: Callable[[int], float],
    reporter: Reporter,
    progress: Progress,
    splits: Splits,
    epochs: int,
    eval_every: int = 10,
    eval_untrained: bool = True,
    eval_stability: int = 0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    clip_norm: float = 0.0,
    overlap: bool = False,
    teacher_decay: float = 0.0,
    every_steps: int = 0,
    every_minutes: float = 0.0,
    keeper: Keeper = lambda state: None,
    fall_back: bool = False,
    check_ranks_every: int = 0,
    study: Study = NOWHERE,
) -> TrainState:
    """Trains from `state` (whose weights are loaded here when it has taken a step) until `epochs` are done.

    Longer than our rule for functions because it is the page on which the method is read.

    Args:
        state: where to start; `state.epoch` epochs are done already, and the steps of `state.midway`.
        planner: (epoch, labels) -> plan; pure, so that every rank plans the same.
        rate: epoch -> learning rate.
        reporter: called once an epoch with its report and the state to keep.
        progress: called with (phase, done, total) as work goes on.
        epochs: epochs in all.
        eval_every: epochs between evaluations; the last is always judged.
        eval_stability: epochs between looks at `cluster/stability`, the last always among them; 0 for none. The train
            split is described once more by the same weights, as training images, and clustered. Not with `overlap`,
            whose labels are of other weights.
        overlap: relate while the epoch trains, on the labels of the scan one epoch before (docs/decisions/0012). Where
            there is none (the first epoch; the first of a run that was done and is made longer) the epoch relates
            first and waits, as without it. The last epoch makes neither scan nor relation: both phases took 0 seconds.
        teacher_decay: of a `Teacher`, which then is scanned with, judged and kept beside the encoder; 0 for none.
        every_steps, every_minutes, keeper: who is given the state within epochs, and how often, see `MidwayKeeper`.
        fall_back: the relator is told the labels of the epoch before, which the state then keeps.
        check_ranks_every: steps between looks whether the ranks hold the same weights, see `SameWeights`.
        study: where a batch is left whose loss or gradient is none.

    Returns:
        The state after the last epoch.

    Raises:
        NonFiniteLoss: on all ranks, before any of them takes the step.
        RanksDiffer: on all ranks.
        ClusteringCollapsed: from the relator; with `overlap` after the training that went on meanwhile.
    """
    device = next(encoder.parameters()).device
    casting = autocast(device, precision)
    if state.model:
        encoder.load_state_dict(state.model)
        load_optimizer(optimizer, state.optimizer)
    teacher = Teacher(encoder, teacher_decay) if teacher_decay else None
    if teacher and state.teacher:
        teacher.encoder.load_state_dict(state.teacher)
    model = teacher.encoder if teacher else encoder
    judged = bool(splits.query)

    def describe(split: str, phase: str, scan: Iterator[Batch] | None = None) -> FeatureTable:
        seen = watched(progress, phase, batches.images(split), ranks.size)
        return encode(model, scan or batches.scan(split), casting, seen)

    def judge(epoch: int) -> RetrievalReport:
        return relator.judge(epoch, describe(splits.query, "query"), describe(splits.gallery, "gallery"))

    untrained = judge(0) if judged and eval_untrained and not state.model else None
    learner, clock = ranks.parallel(encoder), Clock()
    same = SameWeights(ranks, encoder, optimizer, check_ranks_every, teacher=teacher.encoder if teacher else None)

    def look(epoch: int, step: int) -> None:
        same.before_keeping(epoch, step)
        check_weights(model, epoch)

    midway = MidwayKeeper(
        keeper,
        every_steps,
        every_minutes,
        look=look,
        gather=ranks.gather,
        encoder=encoder,
        criterion=criterion,
        optimizer=optimizer,
        teacher=teacher,
    )
    for epoch in range(state.epoch, epochs):
        clock = clock.next()
        set_rate(optimizer, rate(epoch))
        assignment, answer, begun = state.assignment if overlap else None, None, state.midway
        if begun:
            assignment, untrained = begun.assignment, begun.untrained
            answer = settled(state.assignment) if state.assignment else None
            clock.take_up(begun.seconds)
        elif assignment is None or epoch + 1 < epochs:  # else nobody would learn from it
            part = describe(splits.train, "scan", clock.fed("scan", batches.scan(splits.train)))
            clock.lap("scan")
            previous = state.assignment.labels if fall_back and state.assignment else None
            relate = partial(relator.relate, previous=previous)
            answer = ask(relate, epoch, part, wait=assignment is None)
            assignment = assignment or answer.result()
        clock.lap("relate")
        if eval_stability and not begun and ((epoch + 1) % eval_stability == 0 or epoch + 1 == epochs):
            part = describe(splits.train, "scan again", clock.fed("scan", batches.again(epoch)))
            clock.lap("scan")
            stability = relator.stability(epoch, part, assignment.labels)
            assignment = replace(assignment, stats=assignment.stats | {"stability": stability})
            clock.lap("relate")
        plan = planner(epoch, assignment.labels)
        criterion.begin_epoch(assignment, device)
        if begun:
            criterion.take_up(begun.moved)
        clock.lap("plan")
        losses = train_epoch(
            learner,
            criterion,
            optimizer,
            clock.fed("train", batches.picks(plan, begun.step if begun else 0)),
            torch.from_numpy(plan.tickets),
            ranks,
            casting,
            clip_norm,
            progress,
            [partial(same.after_step, epoch), *following(teacher, encoder, epoch * len(plan.tickets))],
            taken=begun.rows(ranks.rank, ranks.size, device) if begun else (),
            kept=midway.of(state, clock, assignment, answer if overlap else None, untrained),
            study=replace(study, labels=assignment.labels),
        )
        same.after_epoch(epoch)
        ranks.share_buffers(encoder)
        if teacher:
            ranks.share_buffers(teacher.encoder)
        check_weights(model, epoch)
        clock.share(ranks.average, device)
        clock.lap("train")
        pending = answer.result() if answer and overlap else None
        clock.lap("relate")
        retrieval = judge(epoch + 1) if judged and ((epoch + 1) % eval_every == 0 or epoch + 1 == epochs) else None
        clock.lap("judge")
        report = describe_epoch(epoch, losses, assignment, plan, clock, retrieval, untrained)
        state = state.after(
            report.metrics(),
            encoder=encoder,
            optimizer=optimizer,
            assignment=pending or (assignment.bare() if fall_back and not overlap else None),
            teacher=teacher.encoder if teacher else None,
        )
        reporter(report, state)
        untrained = None
    return state


def following(teacher: Teacher | None, encoder: Encoder, before: int) -> list[Callable[[int], None]]:
    """What a teacher does after each step; nothing where there is none. `before`: steps of the epochs before."""
    return [partial(teacher.follow, encoder, before)] if teacher else []


def train_epoch(
    learner: nn.Module,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    picks: Iterator[Batch],
    tickets: Int64[Tensor, "steps batch"],
    ranks: Ranks,
    casting: AbstractContextManager[object],
    clip_norm: float,
    progress: Progress,
    stepped: Sequence[Callable[[int], None]] = (),
    taken: Sequence[Float32[Tensor, "5"]] = (),
    kept: Kept | None = None,
    study: Study = NOWHERE,
    ahead: bool | None = None,
) -> Float[Tensor, "steps 5"]:
    """One pass over the plan: pick, pull to the proxies, step, move the proxies.

    `tickets` are those of the whole plan, on the host, so each rank knows the others' images without asking.
    Those `stepped` are told the number of each step once it has been taken. `taken` are the rows of the steps that were
    taken before, with which `picks` must not begin again; `kept` is called at the end of each step.

    With `ahead`, the default on a GPU where nothing is `kept`, the next pictures go through the network before anybody
    looks whether the last gradient was one, so that the GPU need not wait for the host: the same numbers, since the
    network knows no proxies. What is bad is not learnt either way: the optimizer itself takes no such step.

    Returns:
        Loss, inter-ID, intra-ID, instance and camera term of each step, the mean over the ranks.

    Raises:
        NonFiniteLoss: on all ranks.
        ValueError: tickets on a device; `ahead` where states are kept, or an optimizer cannot pass over a step.
    """
    learner.train()
    parameters = [weight for weight in learner.parameters() if weight.requires_grad]
    device = parameters[0].device
    steps, part = tickets.shape[0], tickets.shape[1] // ranks.size
    mine = slice(ranks.rank * part, (ranks.rank + 1) * part)
    ahead = goes_ahead(device, optimizer, kept) if ahead is None else ahead
    _check_going_on(tickets, ahead, optimizer, kept)
    there = sent(tickets, device)
    rows = list(taken)

    def look(batch: Batch, features: Tensor, norm: Tensor, leaving: Leaving) -> Tensor:
        seen = ranks.gather(features)
        # Gradients are averages over the ranks by now: a bad loss anywhere is a bad norm everywhere.
        if not torch.isfinite(leaving.arrived()):
            raise bad_step(study, batch, there, seen, norm, criterion, learner, ranks.rank)
        return seen

    def follow(batch: Batch, seen: Callable[[], Tensor]) -> None:
        criterion.update(seen(), tickets[batch.ticket])

    due: Callable[[], None] | None = None
    with no_longer_passing_over(optimizer):
        for batch in picks:
            pictures = to_device(batch, device)
            with casting:
                features = learner(pictures)
            if due:
                due()
            terms = criterion(features, there[batch.ticket, mine])
            optimizer.zero_grad(set_to_none=True)
            guarded_loss(terms, features).backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf)
            asked = partial(look, batch, features.detach(), norm, Leaving(norm))
            # A first step makes the moments: torch would leave them as they come, were it to be passed over.
            if ahead and optimizer.state:
                pass_over_bad(optimizer, norm)
                optimizer.step()
                due = partial(follow, batch, asked)
            else:
                seen = asked()
                optimizer.step()
                criterion.update(seen, tickets[batch.ticket])
            for tell in stepped:
                tell(len(rows))
            rows.append(terms.row())
            progress("train", len(rows), steps)
            if kept:
                kept(rows, steps)
        if due:
            due()
    if len(rows) != steps:
        raise RuntimeError(f"our mistake: the plan has {steps} steps, {len(rows)} came")
    return ranks.average(torch.stack(rows))


def goes_ahead(device: torch.device, optimizer: torch.optim.Optimizer, kept: Kept | None) -> bool:
    """Whether `train_epoch` lets a GPU work on before it has looked at the last gradient.

    Not where states are kept within the epoch: such a state has the proxies of its own step.
    """
    return device.type == "cuda" and kept is None and can_pass_over(optimizer)


def _check_going_on(tickets: Tensor, ahead: bool, optimizer: torch.optim.Optimizer, kept: Kept | None) -> None:
    """Refuses what `train_epoch` cannot do."""
    if tickets.device.type != "cpu":
        raise ValueError(expected("tickets on the host", tickets.device, "give torch.from_numpy(plan.tickets)"))
    if ahead and not can_pass_over(optimizer):
        came = f"{type(optimizer).__name__} without fused=True"
        raise ValueError(expected("a fused optimizer for ahead=True", came, "make it by build_optimizer"))
    if ahead and kept:
        raise ValueError(expected("nothing kept within the epoch for ahead=True", "kept", "leave ahead out"))


def watched(progress: Progress, phase: str, images: int, ranks: int) -> Callable[[int], None]:
    """A rank's count of images as the progress of all, since the ranks go in step."""
    return lambda done: progress(phase, min(done * ranks, images), images)

"""Do all ranks hold the same weights? Averaged gradients keep them equal bit for bit; a fault that is silent does not.

Sums of bits are compared, one for each tensor: any change of one number changes them. Batch-norm statistics are left
out, which ranks are free to have of their own within an epoch.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from gracl.errors import RanksDiffer, expected

_SHOWN = 3
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@runtime_checkable
class Gathers(Protocol):
    """What is asked of the ranks."""

    size: int

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in order of rank, on every rank."""
        ...


class SameWeights:
    """Looks whether the ranks hold the same parameters, the same optimizer state and the same teacher.

    Args:
        ranks: who is compared; one alone is not looked at.
        encoder: whose parameters.
        optimizer: whose state.
        teacher: whose parameters, too; each rank has its own copy.
        every: steps between looks, beside that at each epoch's end; 0: at its end alone; below 0: never.
    """

    def __init__(
        self,
        ranks: Gathers,
        encoder: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int = 0,
        *,
        teacher: nn.Module | None = None,
    ) -> None:
        self._ranks, self._encoder, self._optimizer, self._every = ranks, encoder, optimizer, every
        self._teacher = teacher

    def after_step(self, epoch: int, step: int) -> None:
        """Looks where it is time to; steps count from 0.

        Raises:
            RanksDiffer: on all ranks.
        """
        if self._every > 0 and (step + 1) % self._every == 0:
            self.before_keeping(epoch, step)

    def before_keeping(self, epoch: int, step: int) -> None:
        """Looks after a step whose state is to be kept: what is wrong then would be gone on with.

        Raises:
            RanksDiffer: on all ranks.
        """
        if self._every >= 0:
            self._look(f"epoch {epoch}, step {step}")

    def after_epoch(self, epoch: int) -> None:
        """Looks at an epoch's end.

        Raises:
            RanksDiffer: on all ranks.
        """
        if self._every >= 0:
            self._look(f"the end of epoch {epoch}")

    def _look(self, when: str) -> None:
        if self._ranks.size == 1:
            return
        held = held_tensors(self._encoder, self._optimizer, self._teacher)
        sums = torch.stack([bit_sum(one) for one in held.values()])
        found = self._ranks.gather(sums[None]).tolist()
        if all(row == found[0] for row in found):
            return
        most = list(Counter(map(tuple, found)).most_common(1)[0][0])
        others = [rank for rank, row in enumerate(found) if row != most]
        names = [name for place, name in enumerate(held) if any(row[place] != most[place] for row in found)]
        raise RanksDiffer(
            expected(
                f"the same weights on all {self._ranks.size} ranks at {when}",
                f"others on ranks {others}, in {len(names)} of {len(held)} tensors, among them {names[:_SHOWN]}",
                "the last checkpoint is untouched: resume from it, and look after memory and cards of those ranks; "
                "on unlike cards, where rounding may part them, set scale.check_ranks_every=-1",
            )
        )


def held_tensors(
    encoder: nn.Module, optimizer: torch.optim.Optimizer, teacher: nn.Module | None = None
) -> Mapping[str, Tensor]:
    """What has to be the same on all ranks, by name: parameters, also a teacher's, and what the optimizer has gathered
    for each."""
    held: dict[str, Tensor] = dict(encoder.named_parameters())
    for name, weight in list(held.items()):
        for what, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor):
                held[f"{name} ({what})"] = value
    return held | ({f"teacher.{name}": weight for name, weight in teacher.named_parameters()} if teacher else {})


def bit_sum(values: Tensor) -> Int64[Tensor, ""]:
    """The sum of the bits of each number, as a whole number, times 1, 3, 5, ... in order; modulo 2 to the 64th.

    On the device of the parameters and without a look at it. Odd factors: no change of a single number is lost, and two
    that are swapped are seen.
    """
    words = values.detach().reshape(-1).view(_WORDS[values.element_size()]).to(torch.int64)
    factors = 2 * torch.arange(len(words), device=words.device) + 1
    return (words * factors).sum()

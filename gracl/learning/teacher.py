"""The teacher: a running mean of the encoder's weights over the steps (Tarvainen & Valpola, NeurIPS 2017).

It clusters, it is judged and it is what a checkpoint is used for; the encoder learns from the labels it makes.
"""

import copy

import torch

from gracl.learning.compiling import like
from gracl.learning.encoder import Encoder


class Teacher:
    """An encoder that nobody trains.

    Args:
        encoder: what it starts as; it is copied.
        decay: weight of the old mean at each step, below 1. The first steps weigh less, (1 + t) / (10 + t) after t
            steps: else the untrained weights would make up most of the mean for 1 / (1 - decay) steps.
    """

    def __init__(self, encoder: Encoder, decay: float) -> None:
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        like(self.encoder, encoder)
        self._decay = decay

    @torch.no_grad()
    def follow(self, encoder: Encoder, before: int, step: int) -> None:
        """Takes in the encoder's weights and running statistics after a step.

        Args:
            before: steps taken before this epoch.
            step: number of the step in its epoch, from 0.
        """
        steps = before + step
        keep = min(self._decay, (1 + steps) / (10 + steps))
        mine, theirs = self.encoder.state_dict(), encoder.state_dict()
        numbers = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in numbers], [theirs[name] for name in numbers], 1 - keep)
        for name in mine.keys() - set(numbers):  # counts of batches
            mine[name].copy_(theirs[name])

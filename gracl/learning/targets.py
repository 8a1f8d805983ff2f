"""What the softmax over clusters should say: the label, softened by what the neighbours say (method.md 7)."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from gracl.types import Consensus


class SoftLabels:
    """Targets `(1 - smoothing) * one_hot(label) + smoothing * share of the neighbours' clusters`.

    Unlike even smoothing this takes only from the label what goes to clusters that the image may belong to as well:
    an identity that was split into two clusters is pushed apart less.

    Args:
        smoothing: from 0 to 1.
    """

    def __init__(self, *, smoothing: float) -> None:
        self.smoothing = smoothing

    def begin(self, consensus: Consensus, clusters: int, device: torch.device | str) -> None:
        """A new epoch's neighbours."""
        self._size = clusters
        self._clusters = torch.tensor(consensus.clusters, device=device)
        self._shares = torch.tensor(consensus.shares, device=device)

    def of(self, images: Int64[Tensor, "batch"], labels: Int64[Tensor, "batch"]) -> Float32[Tensor, "batch clusters"]:
        """Rows that add up to 1. An image none of whose neighbours has a cluster keeps its label whole."""
        shares = self.smoothing * self._shares[images]
        targets = shares.new_zeros((len(images), self._size))
        # Empty places have share 0, so it does not matter where they are added.
        targets.scatter_add_(1, self._clusters[images].long().clamp_min(0), shares)
        return targets.scatter_add_(1, labels[:, None], 1 - shares.sum(1, keepdim=True))

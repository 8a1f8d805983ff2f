"""Contrast with two proxies per cluster: the two terms, and the banks that follow the encoder.

The terms are equations 5 to 7 of method.md 4.2; the update is its section 4.6 with the options D3 (mined once per
epoch, updated in each batch), E1, F1, G1, H1 of section 4.5.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from gracl.errors import ConfigError, expected
from gracl.types import Assignment


@dataclass(frozen=True)
class Terms:
    """The loss of a batch and the two means it is made of; `loss` carries the gradient."""

    loss: Float32[Tensor, ""]
    inter: Float32[Tensor, ""]
    intra: Float32[Tensor, ""]


class ProxyContrast:
    """Pulls each feature to the two proxies of its cluster, away from those of all others.

    Not a module: nothing here is trained, and the banks are made anew at each epoch. State changes in `begin_epoch`
    and `update` alone, never in a forward or backward pass.

    Args:
        inter_temperature: tau of the inter-ID term, above 0.
        intra_temperature: tau of the intra-ID term, above 0.
        intra_weight: lambda of `loss = inter + lambda * intra`, 0 or more.
        momentum: m, the weight of the old entry at an update, from 0 (replace) to 1 (keep).

    Attributes:
        inter, intra: the banks, float32 (clusters, dim), rows of length 1.
        cluster_sums: S_k, the sum of the features of each cluster at the epoch's start, float32 (clusters, dim).
        total: S, the sum of all S_k, float32 (dim).

    Raises:
        ConfigError: an option out of its bounds.
    """

    inter: Float32[Tensor, "clusters dim"]
    intra: Float32[Tensor, "clusters dim"]
    cluster_sums: Float32[Tensor, "clusters dim"]
    total: Float32[Tensor, "dim"]

    def __init__(
        self,
        *,
        inter_temperature: float = 0.05,
        intra_temperature: float = 0.05,
        intra_weight: float = 1.0,
        momentum: float = 0.1,
    ) -> None:
        _check_bounds("inter_temperature above 0", inter_temperature, inter_temperature > 0)
        _check_bounds("intra_temperature above 0", intra_temperature, intra_temperature > 0)
        _check_bounds("intra_weight of 0 or more", intra_weight, intra_weight >= 0)
        _check_bounds("momentum from 0 to 1", momentum, 0 <= momentum <= 1)
        self.inter_temperature = inter_temperature
        self.intra_temperature = intra_temperature
        self.intra_weight = intra_weight
        self.momentum = momentum

    def begin_epoch(self, assignment: Assignment, device: torch.device | str) -> None:
        """Takes the epoch's proxies and cluster sums, as copies on `device`."""
        proxies = assignment.proxies
        self.inter = torch.tensor(proxies.inter, device=device)
        self.intra = torch.tensor(proxies.intra, device=device)
        self.cluster_sums = torch.tensor(proxies.cluster_sums, device=device)
        self.total = self.cluster_sums.sum(0)

    def __call__(self, features: Float[Tensor, "batch dim"], labels: Int64[Tensor, "batch"]) -> Terms:
        """The loss of a batch of unit features with clusters 0..C-1; needs `begin_epoch` first."""
        self._check_begun()
        inter = proxy_loss(features, labels, self.inter, self.inter_temperature)
        intra = proxy_loss(features, labels, self.intra, self.intra_temperature)
        return Terms(loss=inter + self.intra_weight * intra, inter=inter.detach(), intra=intra.detach())

    @torch.no_grad()
    def update(self, features: Float[Tensor, "batch dim"], labels: Int64[Tensor, "batch"]) -> None:
        """Moves the entries of the clusters in the batch, once each; to be called after the optimizer's step.

        The inter entry moves to the row least like all other clusters (E1: lowest z . (S - S_k)), the intra entry to
        the row least like its own (F1: lowest z . S_k). Entries of absent clusters stay.

        Args:
            features: the features the loss has seen, of ALL ranks in the order of the global batch, so that every
                rank makes the same move.
            labels: their clusters.
        """
        self._check_begun()
        features = features.float()
        own = (features * self.cluster_sums[labels]).sum(1)
        foreign = (features * (self.total - self.cluster_sums[labels])).sum(1)
        _move(self.inter, features, *select_lowest(foreign, labels), self.momentum)
        _move(self.intra, features, *select_lowest(own, labels), self.momentum)

    def _check_begun(self) -> None:
        """Refuses to work without banks."""
        if not hasattr(self, "inter"):
            raise RuntimeError(expected("banks", "none yet", "call begin_epoch(assignment, device) first"))


def proxy_loss(
    features: Float[Tensor, "batch dim"],
    labels: Int64[Tensor, "batch"],
    bank: Float32[Tensor, "clusters dim"],
    temperature: float,
) -> Float32[Tensor, ""]:
    """InfoNCE against a bank that is constant: mean over the batch of `-log softmax(z . P / tau)[label]`.

    In float32 under autocast too: at tau = 0.05 a bfloat16 logit of 20 is wrong by up to 0.06.

    Args:
        features: unit rows; they receive the gradient.
        labels: row of the bank that each feature belongs to.
        bank: unit rows; receives no gradient.
        temperature: tau, above 0.
    """
    with torch.autocast(features.device.type, enabled=False):
        logits = features.float() @ bank.detach().T / temperature
        return F.cross_entropy(logits, labels)


def select_lowest(
    scores: Float[Tensor, "batch"], labels: Int64[Tensor, "batch"]
) -> tuple[Int64[Tensor, "present"], Int64[Tensor, "present"]]:
    """For each label in the batch, ascending, the row with the lowest score; of equal scores the first row.

    Two stable sorts and no atomics, so the answer is the same on every device and every run.

    Returns:
        The labels that are present, and the row selected for each.
    """
    by_score = torch.argsort(scores, stable=True)
    by_label = torch.argsort(labels[by_score], stable=True)
    rows = by_score[by_label]
    ordered = labels[rows]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first], rows[first]


def _move(
    bank: Float32[Tensor, "clusters dim"],
    features: Float32[Tensor, "batch dim"],
    clusters: Int64[Tensor, "present"],
    rows: Int64[Tensor, "present"],
    momentum: float,
) -> None:
    """Moves the entries of `clusters` to the selected rows: `unit(m * old + (1 - m) * z)`, in place."""
    bank[clusters] = F.normalize(momentum * bank[clusters] + (1 - momentum) * features[rows], dim=1)


def _check_bounds(what: str, came: float, holds: bool) -> None:
    """Refuses an option out of its bounds."""
    if not holds:
        raise ConfigError(expected(what, came, "correct this setting of the loss"))

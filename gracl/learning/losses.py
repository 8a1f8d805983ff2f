"""Contrast with two proxies per cluster: equations 5 to 7 of method.md 4.2 over the two banks of `banks.py`.

The defaults are GRACL as read from its abstract: D3 (mined once per epoch, updated in each batch), E1, F1, G1, H1 of
method.md 4.5. With other settings the same two terms are the losses of its neighbours.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from gracl.errors import ConfigError, expected
from gracl.learning.banks import Bank, Clusters, InterChoice, IntraChoice, Start, Update
from gracl.types import Assignment

Negatives = Literal["own", "both"]


@dataclass(frozen=True)
class Terms:
    """The loss of a batch and the two means it is made of; `loss` carries the gradient."""

    loss: Float32[Tensor, ""]
    inter: Float32[Tensor, ""]
    intra: Float32[Tensor, ""]


@runtime_checkable
class Criterion(Protocol):
    """What an epoch is learnt by."""

    def begin_epoch(self, assignment: Assignment, device: torch.device | str) -> None:
        """A new epoch's labels and proxies."""
        ...

    def __call__(self, features: Float[Tensor, "batch dim"], images: Int64[Tensor, "batch"]) -> Terms:
        """The loss of a batch of the train split's `images`, none of which is noise."""
        ...

    def update(self, features: Float[Tensor, "batch dim"], images: Int64[Tensor, "batch"]) -> None:
        """After the step, with the features and images of all ranks in the order of the global batch."""
        ...


class ProxyContrast:
    """Pulls each feature to the two proxies of its cluster, away from those of all others.

    Not a module: nothing here is trained, and the banks are made anew at each epoch. State changes in `begin_epoch`
    and `update` alone, never in a forward or backward pass.

    Args:
        inter_temperature: tau of the inter-ID term, above 0.
        intra_temperature: tau of the intra-ID term, above 0.
        inter_weight, intra_weight: of `loss = inter_weight * inter + intra_weight * intra`, 0 or more, not both 0. A
            term of weight 0 is still told, and is out of the gradient.
        momentum: m, the weight of the old entry at an update, from 0 (replace) to 1 (keep).
        negatives: "own" (H1): each term sees its own bank; "both" (H2): the foreign rows of both banks.
        inter_start, intra_start, inter_choice, intra_choice, inter_update, intra_update: see `banks.Bank`.

    Attributes:
        inter, intra: the banks, float32 (clusters, dim), rows of length 1.

    Raises:
        ConfigError: an option out of its bounds.
    """

    def __init__(
        self,
        *,
        inter_temperature: float = 0.05,
        intra_temperature: float = 0.05,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        momentum: float = 0.1,
        negatives: Negatives = "own",
        inter_start: Start = "mined",
        intra_start: Start = "mined",
        inter_choice: InterChoice = "foreign_sum",
        intra_choice: IntraChoice = "own_sum",
        inter_update: Update = "selected",
        intra_update: Update = "selected",
    ) -> None:
        _check_bounds("inter_temperature above 0", inter_temperature, inter_temperature > 0)
        _check_bounds("intra_temperature above 0", intra_temperature, intra_temperature > 0)
        _check_bounds("inter_weight of 0 or more", inter_weight, inter_weight >= 0)
        _check_bounds("intra_weight of 0 or more", intra_weight, intra_weight >= 0)
        _check_bounds("inter_weight or intra_weight above 0", "both 0", inter_weight + intra_weight > 0)
        _check_bounds("momentum from 0 to 1", momentum, 0 <= momentum <= 1)
        self.inter_temperature, self.intra_temperature = inter_temperature, intra_temperature
        self.inter_weight, self.intra_weight, self.negatives = inter_weight, intra_weight, negatives
        self._inter = Bank(start=inter_start, choice=inter_choice, update=inter_update, momentum=momentum)
        self._intra = Bank(start=intra_start, choice=intra_choice, update=intra_update, momentum=momentum)

    @property
    def inter(self) -> Float32[Tensor, "clusters dim"]:
        """The bank of inter-ID proxies."""
        return self._inter.rows

    @property
    def intra(self) -> Float32[Tensor, "clusters dim"]:
        """The bank of intra-ID proxies."""
        return self._intra.rows

    def begin_epoch(self, assignment: Assignment, device: torch.device | str) -> None:
        """Takes the epoch's proxies and cluster sums, as copies on `device`."""
        proxies = assignment.proxies
        self._labels = torch.tensor(assignment.labels, device=device)
        self._clusters = Clusters.of(proxies, device)
        self._inter.begin(torch.tensor(proxies.inter, device=device), self._clusters)
        self._intra.begin(torch.tensor(proxies.intra, device=device), self._clusters)

    def __call__(self, features: Float[Tensor, "batch dim"], images: Int64[Tensor, "batch"]) -> Terms:
        """The loss of a batch of unit features of images that have a cluster; needs `begin_epoch` first."""
        labels = self._labels_of(images)
        more = (self.intra, self.inter) if self.negatives == "both" else (None, None)
        inter = proxy_loss(features, labels, self.inter, self.inter_temperature, more[0])
        intra = proxy_loss(features, labels, self.intra, self.intra_temperature, more[1])
        weighted = ((self.inter_weight, inter), (self.intra_weight, intra))
        loss = torch.stack([weight * term for weight, term in weighted if weight]).sum()
        return Terms(loss=loss, inter=inter.detach(), intra=intra.detach())

    @torch.no_grad()
    def update(self, features: Float[Tensor, "batch dim"], images: Int64[Tensor, "batch"]) -> None:
        """Moves the entries of the clusters in the batch; to be called after the optimizer's step.

        By default the inter entry moves to the row least like all other clusters (E1: lowest z . (S - S_k)), the intra
        entry to the row least like its own (F1: lowest z . S_k), once each. Entries of absent clusters stay.

        Args:
            features: the features the loss has seen, of ALL ranks in the order of the global batch, so that every
                rank makes the same move.
            images: which they are of.
        """
        labels, features = self._labels_of(images), features.float()
        self._inter.follow(features, labels, self._clusters)
        self._intra.follow(features, labels, self._clusters)

    def _labels_of(self, images: Int64[Tensor, "batch"]) -> Int64[Tensor, "batch"]:
        """The clusters of images; refuses to work without banks."""
        if not hasattr(self, "_labels"):
            raise RuntimeError(expected("banks", "none yet", "call begin_epoch(assignment, device) first"))
        return self._labels[images]


def proxy_loss(
    features: Float[Tensor, "batch dim"],
    labels: Int64[Tensor, "batch"],
    bank: Float32[Tensor, "clusters dim"],
    temperature: float,
    negatives: Float32[Tensor, "clusters dim"] | None = None,
) -> Float32[Tensor, ""]:
    """InfoNCE against a bank that is constant: mean over the batch of `-log softmax(z . P / tau)[label]`.

    In float32 under autocast too: at tau = 0.05 a bfloat16 logit of 20 is wrong by up to 0.06.

    Args:
        features: unit rows; they receive the gradient.
        labels: row of the bank that each feature belongs to.
        bank: unit rows; receives no gradient.
        temperature: tau, above 0.
        negatives: another bank whose foreign rows are negatives too (H2: 2C - 1 logits); no gradient either.
    """
    with torch.autocast(features.device.type, enabled=False):
        logits = features.float() @ bank.detach().T / temperature
        if negatives is not None:
            more = features.float() @ negatives.detach().T / temperature
            logits = torch.cat([logits, more.scatter(1, labels[:, None], -torch.inf)], dim=1)
        return F.cross_entropy(logits, labels)


def _check_bounds(what: str, came: object, holds: bool) -> None:
    """Refuses an option out of its bounds."""
    if not holds:
        raise ConfigError(expected(what, came, "correct this setting of the loss"))

"""The memory of proxies: how a bank begins an epoch, and how it follows the encoder (method.md 4.5 D to G).

A bank has a row for each cluster. It begins at the mined proxies or at the centroids, and after each step the rows of
the clusters in the batch move towards what the batch has shown of them. The choices of D are pairs of these: mined
and frozen is D1 (chosen once per epoch), centroid and selected D2 (chosen in each batch), mined and selected D3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from gracl.learning.travel import sent
from gracl.types import Proxies

Start = Literal["mined", "centroid"]
Update = Literal["selected", "every", "mean", "frozen"]
InterChoice = Literal["foreign_sum", "foreign_proxies", "nearest_centroid"]
IntraChoice = Literal["own_sum", "own_proxy"]


@dataclass(frozen=True)
class Clusters:
    """What an epoch's clusters were at its start, on the device.

    Attributes:
        sums: S_k, the sum of the features of each cluster.
        total: S, the sum of all S_k.
        centroids: the S_k brought to length 1.
    """

    sums: Float32[Tensor, "clusters dim"]
    total: Float32[Tensor, "dim"]
    centroids: Float32[Tensor, "clusters dim"]

    @staticmethod
    def of(proxies: Proxies, device: torch.device | str) -> "Clusters":
        """As copies on `device`."""
        sums = torch.tensor(proxies.cluster_sums, device=device)
        return Clusters(sums, sums.sum(0), F.normalize(sums, dim=1))


class Bank:
    """One row for each cluster, of length 1; no gradient reaches it.

    Args:
        start: "mined": the proxies that the relation has chosen; "centroid": the means of the clusters.
        choice: which row of the batch is selected: the one with the lowest score of `scores`.
        update: what a row moves to, once the step is taken: "selected" (G1: the selected row of its cluster),
            "every" (G2: every row of its cluster in turn, in the order of the batch), "mean" (their mean), "frozen"
            (G3: nothing).
        momentum: m of `unit(m * old + (1 - m) * new)`; 0 replaces (G4).

    Attributes:
        rows: float32 (clusters, dim); to be used after `begin`.
    """

    rows: Float32[Tensor, "clusters dim"]

    def __init__(self, *, start: Start, choice: InterChoice | IntraChoice, update: Update, momentum: float) -> None:
        self.start, self.choice, self.update, self.momentum = start, choice, update, momentum

    def begin(self, mined: Float32[Tensor, "clusters dim"], clusters: Clusters) -> None:
        """A new epoch's rows, as copies."""
        self.rows = (mined if self.start == "mined" else clusters.centroids).clone()

    def follow(
        self, features: Float32[Tensor, "batch dim"], labels: Int64[Tensor, "batch"], clusters: Clusters
    ) -> None:
        """Moves the rows of the clusters in the batch; those of others stay.

        The labels are told on the host, so that nobody has to ask a GPU how many rows are to be moved.
        """
        if self.update == "selected":
            chosen = scores(self.choice, features, sent(labels, features.device), self.rows, clusters)
            present, rows = select_lowest(chosen, labels)
            mix(self.rows, present, features[rows], self.momentum)
        elif self.update == "every":
            mix_in_turn(self.rows, labels, features, self.momentum)
        elif self.update == "mean":
            mix(self.rows, *means(features, labels), self.momentum)


def mix(
    bank: Float32[Tensor, "entries dim"],
    entries: Int64[Tensor, "moved"],
    towards: Float32[Tensor, "moved dim"],
    momentum: float,
) -> None:
    """The entries, all different, become `unit(momentum * old + (1 - momentum) * new)`, in place."""
    bank[entries] = F.normalize(momentum * bank[entries] + (1 - momentum) * towards, dim=1)


def mix_in_turn(
    bank: Float32[Tensor, "entries dim"],
    entries: Int64[Tensor, "batch"],
    features: Float32[Tensor, "batch dim"],
    momentum: float,
) -> None:
    """The same for every row of the batch, one after the other where an entry comes more than once.

    `entries` are told on the host.
    """
    for rows in in_turn(entries):
        here, there = sent(entries[rows], bank.device), sent(rows, bank.device)
        mix(bank, here, features[there], momentum)


def scores(
    choice: InterChoice | IntraChoice,
    features: Float32[Tensor, "batch dim"],
    labels: Int64[Tensor, "batch"],
    bank: Float32[Tensor, "clusters dim"],
    clusters: Clusters,
) -> Float32[Tensor, "batch"]:
    """What the selected row of a cluster has least of (method.md 4.5 E and F).

    Args:
        choice: "foreign_sum" (E1) z . (S - S_k); "foreign_proxies" (E2) the mean similarity to the other rows of the
            bank, up to a factor; "nearest_centroid" (E3) the highest similarity to another cluster's centroid, minus
            infinity where there is no other; "own_sum" (F1) z . S_k; "own_proxy" (F2) z . bank_k.
    """
    if choice == "nearest_centroid":
        similarities = features @ clusters.centroids.T
        return similarities.scatter(1, labels[:, None], -torch.inf).amax(1)
    against = {
        "foreign_sum": lambda: clusters.total - clusters.sums[labels],
        "foreign_proxies": lambda: bank.sum(0) - bank[labels],
        "own_sum": lambda: clusters.sums[labels],
        "own_proxy": lambda: bank[labels],
    }
    return (features * against[choice]()).sum(1)


def select_lowest(
    scores: Float[Tensor, "batch"], labels: Int64[Tensor, "batch"]
) -> tuple[Int64[Tensor, "present"], Int64[Tensor, "present"]]:
    """For each label in the batch, ascending, the row with the lowest score; of equal scores the first row.

    Two stable sorts and no atomics, so the answer is the same on every device and every run.

    Args:
        scores: on any device.
        labels: on the host.

    Returns:
        The labels that are present, and the row selected for each; on the device of the scores.
    """
    ordered = labels.sort().values
    first = _starts(ordered).nonzero().flatten()
    by_score = torch.argsort(scores, stable=True)
    by_label = torch.argsort(sent(labels, scores.device)[by_score], stable=True)
    rows = by_score[by_label]
    return sent(ordered[first], scores.device), rows[sent(first, scores.device)]


def in_turn(labels: Int64[Tensor, "batch"]) -> Iterator[Int64[Tensor, "rows"]]:
    """The first row of each label, then the second of each that has one, and so on: labels do not wait for others."""
    order = torch.argsort(labels, stable=True)
    place = torch.arange(len(labels), device=labels.device)
    begun = torch.where(_starts(labels[order]), place, 0).cummax(0).values if len(labels) else place
    turn = place - begun
    for each in range(int(turn.max()) + 1 if len(labels) else 0):
        yield order[turn == each]


def means(
    features: Float32[Tensor, "batch dim"], labels: Int64[Tensor, "batch"]
) -> tuple[Int64[Tensor, "present"], Float32[Tensor, "present dim"]]:
    """The labels that are present, ascending, and the mean of the rows of each, on the device of the features.

    As a product: sums by index would be made in an order of no certainty on a GPU. The labels are told on the host.
    """
    present = torch.unique(labels)
    member = sent((present[:, None] == labels).to(features.dtype), features.device)
    return sent(present, features.device), member @ features / member.sum(1, keepdim=True)


def _starts(ordered: Int64[Tensor, "batch"]) -> Tensor:
    """Where a run of equal labels starts."""
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first

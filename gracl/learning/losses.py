"""Contrast with two proxies per cluster: equations 5 to 7 of method.md 4.2 over the two banks of `banks.py`.

The defaults are GRACL as read from its abstract: D3 (mined once per epoch, updated in each batch), E1, F1, G1, H1 of
method.md 4.5. With other settings the same two terms are the losses of its neighbours. Beside them there may be a
third over single instances (`instances.py`) and a fourth over camera proxies (`camera_bank.py`), and what the two
pull to may be softened (`targets.py`).
"""

from dataclasses import dataclass, fields
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from gracl.errors import CheckpointError, ConfigError, expected
from gracl.learning.banks import Bank, Clusters, InterChoice, IntraChoice, Start, Update
from gracl.learning.camera_bank import CameraBank
from gracl.learning.instances import InstanceBank
from gracl.learning.targets import SoftLabels
from gracl.types import Assignment

Negatives = Literal["own", "both"]
Part = TypeVar("Part")


@dataclass(frozen=True)
class Terms:
    """The loss of a batch and the means it is made of; `loss` alone carries the gradient."""

    loss: Float32[Tensor, ""]
    inter: Float32[Tensor, ""]
    intra: Float32[Tensor, ""]
    instance: Float32[Tensor, ""]
    camera: Float32[Tensor, ""]

    def row(self) -> Float32[Tensor, "5"]:
        """All of them in this order, without gradient."""
        return torch.stack([getattr(self, term.name).detach() for term in fields(self)])


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
        """After the step, with the features and images of all ranks in the order of the global batch.

        The images are on the host: which rows they move is then known there, without a question to the device.
        """
        ...

    def moved(self) -> dict[str, Tensor]:
        """What `update` has changed since `begin_epoch`, by name; no copies."""
        ...

    def take_up(self, moved: dict[str, Tensor]) -> None:
        """After `begin_epoch`: goes on from what `moved` told in another process."""
        ...


class ProxyContrast:
    """Pulls each feature to the two proxies of its cluster, away from those of all others.

    Not a module: nothing here is trained, and the banks are made anew at each epoch. State changes in `begin_epoch`
    and `update` alone, never in a forward or backward pass.

    Args:
        inter_temperature: tau of the inter-ID term, above 0.
        intra_temperature: tau of the intra-ID term, above 0.
        inter_weight, intra_weight: of `loss = inter_weight * inter + intra_weight * intra`, 0 or more. A term of weight
            0 is still told, and is out of the gradient. Not all four weights may be 0.
        instance_weight: of the third term, which asks for `Assignment.instances`; 0 leaves it out.
        instance_temperature: its temperature, above 0.
        camera_weight: of the fourth term, which asks for `Assignment.camera_proxies`; 0 leaves it out.
        camera_temperature: its temperature, above 0.
        smoothing: of the targets of the inter- and intra-ID terms, from 0 to 1, see `SoftLabels`; asks for
            `Assignment.consensus` where it is not 0.
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
        instance_weight: float = 0.0,
        instance_temperature: float = 0.1,
        camera_weight: float = 0.0,
        camera_temperature: float = 0.07,
        smoothing: float = 0.0,
        momentum: float = 0.9,
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
        _check_bounds("instance_weight of 0 or more", instance_weight, instance_weight >= 0)
        _check_bounds("instance_temperature above 0", instance_temperature, instance_temperature > 0)
        _check_bounds("camera_weight of 0 or more", camera_weight, camera_weight >= 0)
        _check_bounds("camera_temperature above 0", camera_temperature, camera_temperature > 0)
        weights = inter_weight + intra_weight + instance_weight + camera_weight
        _check_bounds("inter_weight, intra_, instance_ or camera_weight above 0", "all 0", weights > 0)
        _check_bounds("smoothing from 0 to 1", smoothing, 0 <= smoothing <= 1)
        _check_bounds("momentum from 0 to 1", momentum, 0 <= momentum <= 1)
        self.inter_temperature, self.intra_temperature = inter_temperature, intra_temperature
        self.inter_weight, self.intra_weight, self.negatives = inter_weight, intra_weight, negatives
        self.instance_weight, self.instance_temperature = instance_weight, instance_temperature
        self._instances = InstanceBank(momentum=momentum) if instance_weight else None
        self.camera_weight, self.camera_temperature = camera_weight, camera_temperature
        self._cameras = CameraBank(momentum=momentum) if camera_weight else None
        self._soft = SoftLabels(smoothing=smoothing) if smoothing else None
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
        """Takes the epoch's proxies and cluster sums, as copies on `device`.

        Raises:
            ConfigError: an assignment without what a term asks for.
        """
        proxies = assignment.proxies
        if self._instances:
            shown = _asked_for(assignment.instances, "instances", "instance_weight")
            self._instances.begin(shown, len(assignment.labels), device)
        if self._cameras:
            self._cameras.begin(_asked_for(assignment.camera_proxies, "camera_proxies", "camera_weight"), device)
        if self._soft:
            told = _asked_for(assignment.consensus, "consensus", "smoothing")
            self._soft.begin(told, assignment.clusters, device)
        self._labels_here = torch.tensor(assignment.labels)
        self._labels = self._labels_here.to(device)
        self._clusters = Clusters.of(proxies, device)
        self._inter.begin(torch.tensor(proxies.inter, device=device), self._clusters)
        self._intra.begin(torch.tensor(proxies.intra, device=device), self._clusters)

    def __call__(self, features: Float[Tensor, "batch dim"], images: Int64[Tensor, "batch"]) -> Terms:
        """The loss of a batch of unit features of images that have a cluster; needs `begin_epoch` first."""
        self._refuse_without_banks()
        labels = self._labels[images]
        more = (self.intra, self.inter) if self.negatives == "both" else (None, None)
        soft = self._soft.of(images, labels) if self._soft else None
        inter = proxy_loss(features, labels, self.inter, self.inter_temperature, more[0], soft)
        intra = proxy_loss(features, labels, self.intra, self.intra_temperature, more[1], soft)
        instance = inter.new_zeros(())
        if self._instances:
            instance = self._instances.loss(features, labels, self.instance_temperature)
        camera = inter.new_zeros(())
        if self._cameras:
            camera = self._cameras.loss(features, images, self.camera_temperature)
        terms = (inter, intra, instance, camera)
        weights = (self.inter_weight, self.intra_weight, self.instance_weight, self.camera_weight)
        loss = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True) if weight]).sum()
        return Terms(loss, *(term.detach() for term in terms))

    @torch.no_grad()
    def update(self, features: Float[Tensor, "batch dim"], images: Int64[Tensor, "batch"]) -> None:
        """Moves the entries of the clusters in the batch; to be called after the optimizer's step.

        By default the inter entry moves to the row least like all other clusters (E1: lowest z . (S - S_k)), the intra
        entry to the row least like its own (F1: lowest z . S_k), once each. Entries of absent clusters stay.

        Args:
            features: the features the loss has seen, of ALL ranks in the order of the global batch, so that every
                rank makes the same move.
            images: which they are of, on the host.
        """
        self._refuse_without_banks()
        labels, features = self._labels_here[images], features.float()
        self._inter.follow(features, labels, self._clusters)
        self._intra.follow(features, labels, self._clusters)
        if self._instances:
            self._instances.follow(features, images)
        if self._cameras:
            self._cameras.follow(features, images)

    def moved(self) -> dict[str, Tensor]:
        """The rows of all banks; all else is as `begin_epoch` made it."""
        banks = {"inter": self._inter, "intra": self._intra, "instances": self._instances, "cameras": self._cameras}
        return {name: bank.rows for name, bank in banks.items() if bank}

    def take_up(self, moved: dict[str, Tensor]) -> None:
        """Gives all banks the rows that `moved` told.

        Raises:
            CheckpointError: other banks, or rows of another shape.
        """
        mine = self.moved()
        shapes, came = ({name: tuple(rows.shape) for name, rows in banks.items()} for banks in (mine, moved))
        if shapes != came:
            raise CheckpointError(
                expected(f"banks of {shapes}", came, "resume with the settings that the epoch was begun with")
            )
        for name, rows in mine.items():
            rows.copy_(moved[name])

    def _refuse_without_banks(self) -> None:
        if not hasattr(self, "_labels"):
            raise RuntimeError(expected("banks", "none yet", "call begin_epoch(assignment, device) first"))


def proxy_loss(
    features: Float[Tensor, "batch dim"],
    labels: Int64[Tensor, "batch"],
    bank: Float32[Tensor, "clusters dim"],
    temperature: float,
    negatives: Float32[Tensor, "clusters dim"] | None = None,
    soft: Float32[Tensor, "batch clusters"] | None = None,
) -> Float32[Tensor, ""]:
    """InfoNCE against a bank that is constant: mean over the batch of `-log softmax(z . P / tau)[label]`.

    In float32 under autocast too: at tau = 0.05 a bfloat16 logit of 20 is wrong by up to 0.06.

    Args:
        features: unit rows; they receive the gradient.
        labels: row of the bank that each feature belongs to.
        bank: unit rows; receives no gradient.
        temperature: tau, above 0.
        negatives: another bank whose foreign rows are negatives too (H2: 2C - 1 logits); no gradient either.
        soft: targets in place of the labels, rows that add up to 1: the mean of `-sum(target * log softmax)`.
    """
    with torch.autocast(features.device.type, enabled=False):
        logits = features.float() @ bank.detach().T / temperature
        scores = logits
        if negatives is not None:
            more = features.float() @ negatives.detach().T / temperature
            scores = torch.cat([logits, more.scatter(1, labels[:, None], -torch.inf)], dim=1)
        if soft is not None:
            return (scores.logsumexp(1) - (soft * logits).sum(1)).mean()
        return F.cross_entropy(scores, labels)


def _asked_for(part: Part | None, name: str, setting: str) -> Part:
    """A part of the assignment that a term cannot do without."""
    if part is None:
        raise ConfigError(expected(f"an assignment with {name}", "none", f"set relations.{name}, or loss.{setting}=0"))
    return part


def _check_bounds(what: str, came: object, holds: bool) -> None:
    """Refuses an option out of its bounds."""
    if not holds:
        raise ConfigError(expected(what, came, "correct this setting of the loss"))

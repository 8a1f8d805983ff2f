"""Numbers that are none: found before anybody learns from them, and left for study.

A term, a feature or a proxy that is NaN or infinite makes the loss of its rank NaN, and with it the gradient that is
averaged over the ranks: so every rank sees it in the one number that the step reads anyway, without asking the others.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor, nn

from gracl.errors import NonFiniteLoss, NonFiniteValue, expected
from gracl.learning.losses import Criterion, Terms
from gracl.types import Assignment, Batch, FeatureTable

TERMS = tuple(term.name for term in fields(Terms))
_SHOWN = 5
_ROWS = 4096


@dataclass(frozen=True)
class Study:
    """Where what is bad is left, as JSON files, and the labels of the epoch that is learnt.

    Attributes:
        folder: path or URI; "" for nowhere.
        write: (place, bytes) -> a file that is there whole or not at all.
        labels: of the train split; -1 noise. Empty where nobody knows them.
    """

    folder: str = ""
    write: Callable[[str, bytes], object] | None = None
    labels: Int64[ndarray, "images"] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    def place(self, name: str) -> str:
        """Where a file of that name lies."""
        return f"{self.folder.rstrip('/')}/{name}"

    def keep(self, name: str, record: Mapping[str, Any]) -> str:
        """Writes a record; returns the words that say where, or why not: an error that it belongs to is to be seen."""
        if not self.folder or self.write is None:
            return "nothing was kept of it: there is no folder"
        try:
            self.write(self.place(name), json.dumps(_plain(record), indent=1).encode())
        except Exception as error:  # a full disk or a store that is away: told beside what matters more
            return f"it could not be kept at {self.place(name)}: {type(error).__name__}: {error}"
        return f"kept for study in {self.place(name)}"


NOWHERE = Study()


def guarded_loss(terms: Terms, features: Float[Tensor, "batch dim"]) -> Float32[Tensor, ""]:
    """The loss as it is, bit for bit; NaN, and so is its gradient, where a term or a feature is NaN or infinite.

    Also where the term has no weight, and would be out of the gradient. Nothing is read from the device.
    """
    return terms.loss * (1 + (terms.row() * 0).sum() + features.detach().sum() * 0)


def bad_step(
    study: Study,
    batch: Batch,
    tickets: Int64[Tensor, "steps batch"],
    features: Float[Tensor, "rows dim"],
    norm: Tensor,
    criterion: Criterion,
    learner: nn.Module,
    rank: int,
) -> NonFiniteLoss:
    """The error of a step whose gradient is none, with its batch kept in `non_finite-epoch-XXXX-step-YYYY.json`.

    Every rank makes the same record from the features of all, and whoever is first writes it: the file is there before
    any rank ends.

    Args:
        study: where it is kept.
        batch: this rank's part.
        tickets: of the whole plan.
        features: those of all ranks, in the order of the ticket.
        norm: of the gradient.
        criterion: makes the terms of each rank once more.
        learner: whose weights are looked through; clipping has made all its gradients what the norm is.
        rank: this one.
    """
    images = tickets[batch.ticket]
    rows = len(batch.indices)
    parts = [
        _part(study, criterion, number, images[first : first + rows], features[first : first + rows])
        for number, first in enumerate(range(0, len(images), rows))
    ]
    proxies = {name: found for name, bank in criterion.moved().items() if (found := _bad_rows(bank))}
    weights = {name.removeprefix("module."): weight for name, weight in learner.named_parameters()}
    bad = [part for part in parts if part["bad_features"] or _bad_terms(part)]
    record = {
        "epoch": batch.epoch,
        "step": batch.ticket,
        "bad_ranks": [part["rank"] for part in bad],
        "gradient_norm": norm.item(),
        "bad_proxies": proxies,
        "bad_weights": [name for name, weight in weights.items() if _is_bad(weight)],
        "ranks": parts,
    }
    kept = study.keep(f"non_finite-epoch-{batch.epoch:04d}-step-{batch.ticket:04d}.json", record)
    loss, seen = parts[rank]["loss"], [_told(part) for part in bad[:_SHOWN]]
    seen += [f"proxies {rows[:_SHOWN]} of bank {name}" for name, rows in proxies.items()]
    where = f"at epoch {batch.epoch}, step {batch.ticket} (rank {rank})"
    return NonFiniteLoss(
        expected(
            "a finite loss and gradient",
            f"loss {loss:.4g}, gradient norm {norm.item():.4g} {where}; bad: {', '.join(seen) or 'the gradient alone'}",
            f"lower optim.rate, raise the temperatures, or set clip_norm; the last checkpoint is untouched; {kept}",
        )
    )


def _part(
    study: Study, criterion: Criterion, rank: int, images: Int64[Tensor, "rows"], features: Float[Tensor, "rows dim"]
) -> dict[str, Any]:
    """What one rank had in hand."""
    with torch.no_grad():
        terms = criterion(features, images)
    indices = images.cpu().numpy()
    known = len(study.labels) > 0
    return {
        "rank": rank,
        "images": indices.tolist(),
        "labels": study.labels[indices].tolist() if known else None,
        **{name: getattr(terms, name).item() for name in TERMS},
        "bad_features": indices[_bad_rows(features)].tolist(),
    }


def _told(part: Mapping[str, Any]) -> str:
    bad = part["bad_features"]
    what = (
        f"features of images {bad[:_SHOWN]}"
        if bad
        else " and ".join(f"{name} {part[name]:g}" for name in _bad_terms(part))
    )
    return f"{what} of rank {part['rank']}"


def _bad_terms(part: Mapping[str, Any]) -> list[str]:
    return [name for name in TERMS if not math.isfinite(part[name])]


def check_weights(model: nn.Module, epoch: int) -> None:
    """Refuses to keep weights or running statistics that are none; one look for all of them, once an epoch.

    Raises:
        NonFiniteLoss: the epoch's last steps broke them, on every rank alike.
    """
    numbers = {name: one for name, one in model.state_dict().items() if one.is_floating_point()}
    if bool(torch.stack([torch.isfinite(one).all() for one in numbers.values()]).all()):
        return
    bad = [name for name, one in numbers.items() if _is_bad(one)]
    advice = "lower optim.rate or set clip_norm; the last checkpoint is untouched"
    what = f"finite weights after epoch {epoch + 1}"
    raise NonFiniteLoss(expected(what, f"NaN or infinity in {len(bad)} tensors, among them {bad[:_SHOWN]}", advice))


def bad_features(part: FeatureTable) -> Int64[ndarray, "bad"]:
    """The images whose features are NaN or infinite, in blocks: the table may be large."""
    starts = range(0, len(part.indices), _ROWS)
    found = [np.flatnonzero(~np.isfinite(part.features[start : start + _ROWS]).all(1)) + start for start in starts]
    return np.sort(part.indices[np.concatenate([np.zeros(0, np.int64), *found])])


def check_assignment(assignment: Assignment) -> None:
    """Refuses proxies that are none: every rank has the same ones, so every rank refuses them.

    Raises:
        NonFiniteValue: says which.
    """
    proxies = assignment.proxies
    tables = {"inter": proxies.inter, "intra": proxies.intra, "cluster_sums": proxies.cluster_sums}
    if assignment.instances:
        tables["instances"] = assignment.instances.rows
    if assignment.camera_proxies:
        tables["camera_proxies"] = assignment.camera_proxies.rows
    for name, table in tables.items():
        bad = np.flatnonzero(~np.isfinite(table).all(1))
        if len(bad):
            came = f"NaN or infinity in {len(bad)} rows of {name}, among them {bad[:_SHOWN].tolist()}"
            what = f"finite proxies of epoch {assignment.epoch}"
            raise NonFiniteValue(expected(what, came, "look for the step in which the loss broke"))


def _bad_rows(rows: Tensor) -> list[int]:
    found: list[int] = (~torch.isfinite(rows)).any(1).nonzero().flatten().tolist()
    return found


def _is_bad(values: Tensor) -> bool:
    return not bool(torch.isfinite(values).all())


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become their names."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

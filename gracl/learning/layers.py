"""The two poolings, and batch norm over groups of a chosen size."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gracl.errors import ConfigError, expected


class AveragePool(nn.Module):
    """The mean over all places of a feature map."""

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels"]:
        """Pools each channel of each map to one number."""
        return maps.mean((2, 3))


class GeneralizedMeanPool(nn.Module):
    """Generalised mean over all places of a feature map: `mean(x^p)^(1/p)` with a learnable `p` (starts at 3).

    p = 1 is average pooling, large p approaches the maximum. Values below `eps` are raised to it, because a power of
    a negative number is none. Source: Radenović, Tolias, Chum, "Fine-tuning CNN image retrieval with no human
    annotation" (2018), equation 3; Cluster Contrast's default (method.md section 7).
    """

    def __init__(self, *, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels"]:
        """Pools each channel of each map to one number."""
        return maps.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1.0 / self.p)


class GroupBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over contiguous groups of rows; see `group_batch_norm`. State-dict keys are unchanged."""

    group: int = 0

    def forward(self, input: Tensor) -> Tensor:
        """Normalises each group of rows by its own statistics (training) or by the running ones (evaluation)."""
        first, *others = _groups(self, input, self.group)
        if others and torch.compiler.is_compiling() and _is_common(self):
            return at_once(self, input)
        return _join(super().forward(first), [_own_statistics(self, rows) for rows in others])


class GroupBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over contiguous groups of rows; see `group_batch_norm`. State-dict keys are unchanged."""

    group: int = 0

    def forward(self, input: Tensor) -> Tensor:
        """Normalises each group of rows by its own statistics (training) or by the running ones (evaluation)."""
        first, *others = _groups(self, input, self.group)
        if others and torch.compiler.is_compiling() and _is_common(self):
            return at_once(self, input)
        return _join(super().forward(first), [_own_statistics(self, rows) for rows in others])


def group_batch_norm(module: nn.Module, group: int) -> None:
    """Makes every batch norm inside `module` see groups of `group` rows, as if each were alone on a device.

    In training the batch is cut into contiguous groups, each normalised by its own mean and variance; the running
    statistics follow the FIRST group only, as they do where the first replica's survive. Evaluation is plain. A group
    of 0, or one not smaller than the batch, is plain batch norm. Parameters and buffers stay the same objects.
    Source: method.md section 5.1 (without it one process falls from 83 to 60 mAP on Market-1501).

    Args:
        module: changed in place; a batch norm that is `module` itself cannot be replaced and is refused.
        group: rows per group, 0 or at least 2 (one row has no variance).

    Raises:
        ConfigError: a group below 0 or of 1; a kind of batch norm that cannot be grouped (synchronised, or fused with
            its activation as in some timm models). At the forward pass: a batch that is no multiple of the group.
    """
    if group < 0 or group == 1:
        raise ConfigError(expected("bn_group 0 (the whole batch) or at least 2", group, "use 64 as the papers do"))
    if isinstance(module, _BatchNorm):
        raise ConfigError(
            expected(
                "a module that contains batch norms", f"{type(module).__name__} itself", "wrap it in nn.Sequential"
            )
        )
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _grouped(child, group))


def _grouped(norm: _BatchNorm, group: int) -> _BatchNorm:
    """The same batch norm, same parameters and buffers, that sees groups of `group` rows."""
    kinds: dict[type, type[GroupBatchNorm1d] | type[GroupBatchNorm2d]] = {
        nn.BatchNorm1d: GroupBatchNorm1d,
        nn.BatchNorm2d: GroupBatchNorm2d,
        GroupBatchNorm1d: GroupBatchNorm1d,
        GroupBatchNorm2d: GroupBatchNorm2d,
    }
    if type(norm) not in kinds:
        if group == 0:
            return norm
        raise ConfigError(
            expected(
                "nn.BatchNorm1d or nn.BatchNorm2d in every place",
                f"{type(norm).__module__}.{type(norm).__name__}",
                "set encoder.bn_group=0 for this backbone, or take another backbone",
            )
        )
    twin = kinds[type(norm)](norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    # The dictionaries are taken over whole, so that an optimizer that already holds the parameters stays right.
    twin._parameters, twin._buffers = norm._parameters, norm._buffers
    twin.group = group
    return twin.train(norm.training)


def _groups(norm: nn.Module, rows: Tensor, group: int) -> tuple[Tensor, ...]:
    """Cuts the rows into contiguous groups; all in one where batch norm is to be plain."""
    if not norm.training or group == 0 or group >= len(rows):
        return (rows,)
    if len(rows) % group:
        raise ConfigError(
            expected(
                f"a batch that is a multiple of bn_group={group}",
                f"{len(rows)} rows in this process",
                "choose a batch size whose share per worker is a multiple of encoder.bn_group, or bn_group=0",
            )
        )
    return torch.split(rows, group)


def _own_statistics(norm: _BatchNorm, rows: Tensor) -> Tensor:
    """Batch norm that leaves the running statistics alone."""
    return F.batch_norm(rows, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


def at_once(norm: GroupBatchNorm1d | GroupBatchNorm2d, rows: Tensor) -> Tensor:
    """All groups in one expression, the form that torch's compiler makes few kernels of; without it, the slower one.

    Args:
        norm: in training, with statistics that move by a fixed part.
        rows: a multiple of its group, more than one.
    """
    seen = rows.view(-1, norm.group, *rows.shape[1:]).float()
    variance, mean = torch.var_mean(seen, (1, *range(3, seen.ndim)), correction=0, keepdim=True)
    channels = (-1, *[1] * (seen.ndim - 3))
    normal = (seen - mean) * torch.rsqrt(variance + norm.eps)
    normal = normal * norm.weight.view(channels) + norm.bias.view(channels)
    _follow(norm, mean[0].detach().flatten(), variance[0].detach().flatten(), seen[0, :, 0].numel())
    return normal.flatten(0, 1).to(rows.dtype)


def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Running statistics move towards those of the first group."""
    kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    if norm.momentum is None or kept[0] is None or kept[1] is None or kept[2] is None:
        raise RuntimeError("our mistake: a batch norm without statistics that move by a fixed part")
    kept[0].lerp_(mean, norm.momentum)
    kept[1].lerp_(variance * (count / (count - 1)), norm.momentum)
    kept[2].add_(1)


def _is_common(norm: _BatchNorm) -> bool:
    """Affine, with running statistics that move by a fixed part: as in every trunk of ours."""
    return bool(norm.affine and norm.track_running_stats and norm.momentum is not None)


def _join(first: Tensor, others: list[Tensor]) -> Tensor:
    """Puts the groups in order again.

    A loop and a join, and not groups folded into channels: folding moves every number twice in channels_last, and was
    the slower of the two on a CPU in every size tried (docs/decisions/0004-group-batch-norm.md).
    """
    return torch.cat([first, *others]) if others else first

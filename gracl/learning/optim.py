"""The optimizer, and its rate as a pure function of the epoch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gracl.errors import ConfigError, expected

OPTIMIZERS = ("adam", "sgd")
WARMUP_START = 0.01


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    optimizer: str = "adam",
    rate: float = 3.5e-4,
    weight_decay: float = 5e-4,
) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9, over all parameters that are trained.

    One parameter group: a group per tensor, as the reference code of the family has it, keeps the optimizer from
    working on all tensors at once (peers.md 7b). The fused form is taken, which measured 4 to 6 times faster than the
    other two with Adam on a CPU (11 million parameters, 2 threads: 9 ms against 44 and 62) and is also there on CUDA.

    Args:
        parameters: those that need no gradient (the neck's bias) are left out.
        optimizer: "adam" (method.md section 7) or "sgd" (transformers want it, section 5.4).
        rate: learning rate of factor 1; see `set_rate`.
        weight_decay: added to the gradient as weight times this.

    Raises:
        ConfigError: an unknown name, a number out of bounds, nothing to train.
    """
    if rate <= 0 or weight_decay < 0:
        raise ConfigError(
            expected("rate above 0 and weight_decay of 0 or more", f"{rate} and {weight_decay}", "correct them")
        )
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ConfigError(expected("parameters to train", "none that need a gradient", "give encoder.parameters()"))
    if optimizer == "adam":
        return torch.optim.Adam(trained, lr=rate, weight_decay=weight_decay, fused=True)
    if optimizer == "sgd":
        return torch.optim.SGD(trained, lr=rate, weight_decay=weight_decay, momentum=0.9, fused=True)
    raise ConfigError(expected(f"an optimizer of {', '.join(OPTIMIZERS)}", optimizer, "correct its name"))


def rate_factor(epoch: int, *, warmup_epochs: int = 0, decay_every: int = 20, decay_factor: float = 0.1) -> float:
    """What the rate of an epoch is multiplied with: a linear warm-up times a staircase.

    The warm-up starts at 0.01 in epoch 0 and reaches 1 in epoch `warmup_epochs`; the staircase multiplies by
    `decay_factor` once more at each multiple of `decay_every`. A pure function of the epoch, so that nothing has to
    be saved for a resumed run.

    Args:
        epoch: counted from 0.
        warmup_epochs: 0 for none.
        decay_every: epochs per stair; 0 for a constant rate.
        decay_factor: above 0.

    Raises:
        ConfigError: a number out of bounds.
    """
    if epoch < 0 or warmup_epochs < 0 or decay_every < 0 or decay_factor <= 0:
        raise ConfigError(
            expected(
                "epoch, warmup_epochs and decay_every of 0 or more, decay_factor above 0",
                f"{epoch}, {warmup_epochs}, {decay_every}, {decay_factor}",
                "correct the schedule",
            )
        )
    stairs = decay_factor ** (epoch // decay_every) if decay_every else 1.0
    if epoch >= warmup_epochs:
        return stairs
    return stairs * (WARMUP_START + (1.0 - WARMUP_START) * epoch / warmup_epochs)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes up what an optimizer has gathered (moments, steps), and keeps the settings that this one was made with.

    torch loads the settings of the other one as well: a run that goes on from a checkpoint with another weight decay
    would go on with the old one.
    """
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def can_pass_over(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `pass_over_bad` works with it: the fused forms of torch alone look at what it sets."""
    return bool(optimizer.defaults.get("fused"))


def pass_over_bad(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Lets the next step change nothing if the gradient's norm is NaN or infinite, without a look at it by the host.

    As torch's `GradScaler` does where a scaled gradient overflows: the kernel reads a flag on the device.
    """
    told: Any = optimizer  # the flag is no part of the class; torch's scaler sets it from outside, too
    told.found_inf = (~torch.isfinite(norm)).float()


@contextmanager
def no_longer_passing_over(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Whatever ends it: steps that are taken afterwards are taken."""
    try:
        yield
    finally:
        if hasattr(optimizer, "found_inf"):
            del optimizer.found_inf


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of all that the optimizer trains."""
    for group in optimizer.param_groups:
        group["lr"] = rate

"""To the device and back without waiting for it: on a GPU both are copies that go on beside its work."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Shaped
from torch import Tensor

_AHEAD = 2


def sent(rows: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """The same rows on the device. Work that is given to the device afterwards finds them there."""
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)


class Leaving:
    """A tensor that is copied to the host's memory as soon as the device has made it, while both go on.

    Args:
        made: by work that the device has been given; nobody may change it before it has `arrived`.
    """

    def __init__(self, made: Shaped[Tensor, "*shape"]) -> None:
        self._made, self._done = made, None
        if made.is_cuda:
            self._made = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
            self._made.copy_(made, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(made.device))

    def arrived(self) -> Shaped[Tensor, "*shape"]:
        """What was made, on the host; waits for this copy alone, and not for what the device was given after it."""
        if self._done is None:
            return self._made.cpu()
        self._done.synchronize()
        return self._made.clone()  # pinned memory is dear: it goes back


def brought(made: Iterable[Shaped[Tensor, "..."]], ahead: int | None = None) -> Iterator[Shaped[Tensor, "..."]]:
    """Each tensor on the host, in order.

    Args:
        made: the tensors, each made when it is asked for.
        ahead: how many more are asked for before one is waited for; None: two where they are made on a GPU, else none.
    """
    under_way: deque[Leaving] = deque()
    for one in made:
        under_way.append(Leaving(one))
        if len(under_way) > (ahead if ahead is not None else _AHEAD * one.is_cuda):
            yield under_way.popleft().arrived()
    while under_way:
        yield under_way.popleft().arrived()

"""The ranks of a Ray Train worker group, over torch's process group (gloo on CPU, nccl on GPU)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gracl.learning.compiling import as_written
from gracl.learning.encoder import Encoder


class TorchRanks:
    """The `Ranks` port of `learning/fit.py`; with one rank nothing is sent anywhere.

    Args:
        rank, size: of this process, and how many there are.
        height, width: pixels of the images that the encoder will learn from.
    """

    def __init__(self, rank: int, size: int, *, height: int, width: int) -> None:
        self.rank, self.size, self._view = rank, size, (height, width)

    def parallel(self, encoder: Encoder) -> nn.Module:
        """The encoder in torch's data parallelism; buffers stay each rank's own until `share_buffers`.

        torch packs gradients anew after the first backward pass, and where a number lies decides in which order three
        ranks or more add it up. So that a resumed run adds as an unbroken one does, the first pass is one that nobody
        learns from.
        """
        if self.size == 1:
            return encoder
        device = next(encoder.parameters()).device
        devices = [device] if device.type == "cuda" else None
        learner = DistributedDataParallel(
            encoder, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        ).eval()  # running statistics stay
        pixels = torch.ones(2, *self._view, 3, device=device).permute(0, 3, 1, 2)  # in memory as `pixels.normalise`'s
        with as_written(encoder):
            learner(pixels).sum().backward()
        encoder.zero_grad(set_to_none=True)
        return learner

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in order of rank."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def average(self, values: Tensor) -> Tensor:
        """The mean over the ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def share_buffers(self, encoder: Encoder) -> None:
        """Everybody gets the running statistics of rank 0: those of the first batch-norm group, as with one rank."""
        if self.size > 1:
            for buffer in encoder.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()

"""Pixels on the device where they become features."""

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from gracl.types import IMAGENET_MEAN, IMAGENET_STD, Batch


def to_device(batch: Batch, device: torch.device) -> Float[Tensor, "rows 3 height width"]:
    """Pixels travel as bytes and become numbers on the device: a quarter of the traffic."""
    images = torch.from_numpy(batch.images)
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
    return normalise(images)


def normalise(images: UInt8[Tensor, "batch height width 3"]) -> Float32[Tensor, "batch 3 height width"]:
    """Floats for the network, on the device where the pictures are: ImageNet mean 0 and deviation 1 per channel.

    The result lies in memory as the pictures do (channels last), which costs nothing and suits convolutions.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).mul_(255).view(3, 1, 1)
    scale = torch.tensor(IMAGENET_STD, device=images.device).mul_(255).reciprocal_().view(3, 1, 1)
    return images.permute(0, 3, 1, 2).float().sub_(mean).mul_(scale)

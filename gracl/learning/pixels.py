"""Pixels on the device where they become features."""

from functools import lru_cache

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from gracl.learning.travel import sent
from gracl.types import IMAGENET_MEAN, IMAGENET_STD, MEAN_COLOUR, Augmentations, Batch


def to_device(batch: Batch, device: torch.device) -> Float[Tensor, "rows 3 height width"]:
    """Pixels travel as bytes and become numbers on the device: a quarter of the traffic. Augmentations that were
    only drawn are made there."""
    images = sent(torch.from_numpy(batch.images), device)
    if batch.augmentations:
        images = augmented(images, batch.augmentations)
    return normalise(images)


def augmented(
    images: UInt8[Tensor, "rows height width 3"], augmentations: Augmentations
) -> UInt8[Tensor, "rows height width 3"]:
    """What `images/views.py: train_view` makes of the same pictures with the same dice, byte for byte.

    All pictures at once, without waiting for an answer of the device, and of one shape whatever was drawn.
    """
    _, height, width, _ = images.shape
    device = images.device
    moves = sent(torch.from_numpy(augmentations.moves), device).T[..., None]
    mirrored, down, right, top, left, rows, columns = moves
    if (augmentations.light != 1).any():
        images = _relit(images, sent(torch.from_numpy(augmentations.light), device))
    down_from, right_from = torch.arange(height, device=device), torch.arange(width, device=device)
    y, x = down_from - down, right_from - right
    there = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    x = torch.where(mirrored > 0, width - 1 - x, x)
    every = torch.arange(len(images), device=device)[:, None, None]
    moved = images[every, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]]
    box = _between(down_from, top, rows)[:, :, None] & _between(right_from, left, columns)[:, None, :]
    erased = torch.where(there[..., None], moved, torch.zeros((), dtype=torch.uint8, device=device))
    return torch.where(box[..., None], _constant(MEAN_COLOUR, torch.uint8, device), erased)


def _between(
    places: Int64[Tensor, "places"], first: Int64[Tensor, "rows 1"], number: Int64[Tensor, "rows 1"]
) -> Tensor:
    return (places >= first) & (places < first + number)


def _relit(images: UInt8[Tensor, "rows height width 3"], light: Tensor) -> UInt8[Tensor, "rows height width 3"]:
    """Brightness and contrast about each picture's own grey, by a table of its 256 levels as on the CPU."""
    flat = images.flatten(1).long()
    grey = flat.sum(1, keepdim=True).double() / flat.shape[1]
    brightness, contrast = light[:, :1], light[:, 1:]
    levels = ((torch.arange(256, device=images.device).double() - grey) * contrast + grey) * brightness
    return levels.round().clamp(0, 255).to(torch.uint8).gather(1, flat).view_as(images)


def normalise(images: UInt8[Tensor, "batch height width 3"]) -> Float32[Tensor, "batch 3 height width"]:
    """Floats for the network, on the device where the pictures are: ImageNet mean 0 and deviation 1 per channel.

    The result lies in memory as the pictures do (channels last), which costs nothing and suits convolutions.
    """
    mean = (_constant(IMAGENET_MEAN, torch.float32, images.device) * 255).view(3, 1, 1)
    scale = (_constant(IMAGENET_STD, torch.float32, images.device) * 255).reciprocal_().view(3, 1, 1)
    return images.permute(0, 3, 1, 2).float().sub_(mean).mul_(scale)


def _constant(values: tuple[float, ...] | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return (
        _sent_once(values, dtype, device) if device.type == "cuda" else torch.tensor(values, dtype=dtype, device=device)
    )


@lru_cache
def _sent_once(values: tuple[float, ...] | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number that is sent again at each step makes the host wait, each time, for all that the device has to do."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)

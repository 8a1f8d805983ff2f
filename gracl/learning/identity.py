"""Which model is it? One name for what an encoder computes, so that features of two models are never compared."""

import hashlib
import json
from collections.abc import Mapping

import torch

from gracl.learning.encoder import Encoder

# Settings that change the features and leave no trace in the weights' names and shapes, and those beside them.
_TELLING = ("backbone", "pooling", "last_stride", "feature_size")


def model_digest(encoder: Encoder, view: Mapping[str, int]) -> str:
    """Sha256, in hexadecimal, of all that decides which feature a picture gets.

    Equal for two encoders of the same architecture, weights and view, whatever their device, mode or place; another one
    as soon as one bit of one weight differs. Counters of batches, which no feature depends on, are left out.

    Args:
        encoder: on any device.
        view: "height" and "width" of the pictures that it wants.
    """
    found = hashlib.sha256()
    told = {name: encoder.options.get(name) for name in _TELLING} | {
        side: int(view[side]) for side in ("height", "width")
    }
    found.update(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

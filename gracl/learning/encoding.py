"""Pictures to features: what an epoch begins with, and all that a trained encoder is used for."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from gracl.learning.compiling import compiled_where_it_pays
from gracl.learning.encoder import Encoder
from gracl.learning.pixels import to_device
from gracl.learning.travel import brought
from gracl.types import Batch, FeatureTable


@torch.inference_mode()
def encode(
    encoder: Encoder,
    scan: Iterator[Batch],
    casting: AbstractContextManager[object],
    progress: Callable[[int], None],
) -> FeatureTable:
    """The features of a scan, in eval mode; each keeps the index of its image."""
    encoder.eval()
    device = next(encoder.parameters()).device
    indices, features, done = [np.zeros(0, np.int64)], [np.zeros((0, encoder.feature_size), np.float32)], 0

    def described() -> Iterator[Tensor]:
        for batch in scan:
            with casting, compiled_where_it_pays(encoder, len(batch.indices)):
                rows = encoder(to_device(batch, device))
            indices.append(batch.indices)
            yield rows.float()

    for rows in brought(described()):
        features.append(rows.numpy())
        done += len(rows)
        progress(done)
    return FeatureTable(np.concatenate(indices), np.concatenate(features))

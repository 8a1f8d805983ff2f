"""An encoder as others load it: pictures in, unit features out. Needs neither Ray nor MLflow nor a config."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from gracl.errors import GraclError, expected
from gracl.learning.checkpoint import load_encoder
from gracl.learning.pixels import normalise


class Served:
    """An encoder with the one method that MLflow's models have.

    Args:
        checkpoint: folder of a checkpoint, or its `state.pt`.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        self._encoder, view = load_encoder(checkpoint)
        self._size = view["height"], view["width"]

    @torch.inference_mode()
    def predict(self, model_input: ndarray, params: dict[str, Any] | None = None) -> Float32[ndarray, "batch dim"]:
        """Features of length 1, of one picture or more.

        Args:
            model_input: uint8 [batch, height, width, 3], red first, of the size that the encoder was trained on; see
                `gracl.images.views.eval_view` for a picture of another one.
            params: none are known.

        Raises:
            GraclError: pictures of another kind or size.
        """
        images = np.asarray(model_input)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self._size, 3) or not len(images):
            raise GraclError(
                expected(
                    f"pictures as uint8 [batch, {self._size[0]}, {self._size[1]}, 3]",
                    f"{images.dtype} {list(images.shape)}",
                    "resize them with gracl.images.views.eval_view",
                )
            )
        if params:
            raise GraclError(expected("no params", sorted(params), "leave them out"))
        features = self._encoder(normalise(torch.from_numpy(np.ascontiguousarray(images))))
        return np.asarray(features.float().numpy())


def _load_pyfunc(data_path: str) -> Served:
    """What MLflow calls (`loader_module`) with the folder that it kept."""
    return Served(data_path)

"""Several instance proxies per cluster, and the hardest of them (method.md 2.2 and 7, DCMIP).

Where a cluster's two proxies say what it looks like at its edges, its instances say what it is made of: an image is
pulled to the instance of its own cluster that is least like it and pushed from that of every other cluster that is
most like it, over all clusters and not only those in the batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from gracl.learning.banks import mix_in_turn
from gracl.learning.travel import sent
from gracl.types import Instances


class InstanceBank:
    """The instances of an epoch, one row for each image among them; no gradient reaches it.

    Args:
        momentum: m of `unit(m * old + (1 - m) * new)` when an image that is a row is learnt from.

    Attributes:
        rows: float32 (rows, dim), of length 1; to be used after `begin`.
    """

    rows: Float32[Tensor, "rows dim"]

    def __init__(self, *, momentum: float) -> None:
        self.momentum = momentum

    def begin(self, instances: Instances, images: int, device: torch.device | str) -> None:
        """A new epoch's rows, as copies; `images` are those of the split."""
        self.rows = torch.tensor(instances.rows, device=device)
        known, table = torch.unique(torch.tensor(instances.images), return_inverse=True)
        self._table = table.to(device)
        self._row_of = torch.full((images,), -1)
        self._row_of[known] = torch.arange(len(known))

    def hardest(
        self, features: Float[Tensor, "batch dim"], labels: Int64[Tensor, "batch"]
    ) -> Float32[Tensor, "batch clusters"]:
        """The similarity to the least similar instance of the own cluster, and to the most similar of each other."""
        similarities = (features @ self.rows.T)[:, self._table]
        nearest, own = similarities.amax(2), labels[:, None, None].expand(-1, 1, similarities.shape[2])
        farthest = similarities.gather(1, own).amin(2)
        return nearest.scatter(1, labels[:, None], farthest)

    def loss(
        self, features: Float[Tensor, "batch dim"], labels: Int64[Tensor, "batch"], temperature: float
    ) -> Float32[Tensor, ""]:
        """InfoNCE over `hardest`, mean over the batch; in float32 under autocast too.

        Args:
            features: unit rows; they receive the gradient.
            labels: their clusters.
            temperature: above 0.
        """
        with torch.autocast(features.device.type, enabled=False):
            return F.cross_entropy(self.hardest(features.float(), labels) / temperature, labels)

    def follow(self, features: Float32[Tensor, "batch dim"], images: Int64[Tensor, "batch"]) -> None:
        """Moves the rows of the images in the batch towards what they are now, in the order of the batch.

        The images are told on the host.
        """
        rows = self._row_of[images]
        shown = (rows >= 0).nonzero().flatten()
        mix_in_turn(self.rows, rows[shown], features[sent(shown, features.device)], self.momentum)

"""A proxy for each cluster in each camera, and contrast within a camera and across cameras (method.md 2: CAP).

Within a camera an image is told from the other clusters seen there, which no difference of cameras can help with;
across cameras it is pulled to what its own cluster looks like elsewhere.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from gracl.learning.banks import mix_in_turn
from gracl.types import CameraProxies

# CAP's own constants: the weight of the term across cameras, and the nearest foreign proxies that are its negatives.
ACROSS, NEGATIVES = 0.5, 50


class CameraBank:
    """The camera proxies of an epoch; no gradient reaches them.

    Args:
        momentum: m of `unit(m * old + (1 - m) * new)` for each image learnt from, in the order of the batch.

    Attributes:
        rows: float32 (proxies, dim), of length 1; to be used after `begin`.
    """

    rows: Float32[Tensor, "proxies dim"]

    def __init__(self, *, momentum: float) -> None:
        self.momentum = momentum

    def begin(self, proxies: CameraProxies, device: torch.device | str) -> None:
        """A new epoch's rows, as copies."""
        self.rows = torch.tensor(proxies.rows, device=device)
        self._clusters = torch.tensor(proxies.clusters, device=device)
        self._cameras = torch.tensor(proxies.cameras, device=device)
        self._of_image_here = torch.tensor(proxies.of_image)
        self._of_image = self._of_image_here.to(device)

    def loss(
        self, features: Float[Tensor, "batch dim"], images: Int64[Tensor, "batch"], temperature: float
    ) -> Float32[Tensor, ""]:
        """`within + 0.5 * across`, means over the batch, in float32 under autocast too.

        `within` is InfoNCE over the proxies of the image's own camera. `across` is the mean, over the proxies of its
        cluster in other cameras, of `-log softmax` over all of them and the 50 nearest proxies of other clusters; 0
        for an image whose cluster is seen by one camera alone.

        Args:
            features: unit rows; they receive the gradient.
            images: which they are of; none is noise.
            temperature: above 0.
        """
        with torch.autocast(features.device.type, enabled=False):
            logits = features.float() @ self.rows.T / temperature
            own = self._of_image[images]
            camera, cluster = self._cameras[own][:, None], self._clusters[own][:, None]
            elsewhere = self._cameras != camera
            within = F.cross_entropy(logits.masked_fill(elsewhere, -torch.inf), own)
            same = self._clusters == cluster
            nearest = logits.masked_fill(same, -torch.inf).topk(min(NEGATIVES, len(self.rows)), dim=1).values
            positive = same & elsewhere
            norm = torch.cat([logits.masked_fill(~positive, -torch.inf), nearest], dim=1).logsumexp(1)
            count = positive.sum(1)
            pulled = (norm[:, None] - logits).masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
            return within + ACROSS * pulled.mean()

    def follow(self, features: Float32[Tensor, "batch dim"], images: Int64[Tensor, "batch"]) -> None:
        """Moves the rows of the images in the batch towards them, one after the other; `images` are on the host."""
        mix_in_turn(self.rows, self._of_image_here[images], features, self.momentum)

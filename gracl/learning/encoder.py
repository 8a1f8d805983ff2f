"""Images to unit features: trunk, pooling, BN neck.

The neck is a batch norm whose bias stays 0, after Luo et al., "Bag of tricks and a strong baseline for deep person
re-identification" (2019); the order trunk, pooling, neck, unit length is method.md section 4.6.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from gracl.errors import CheckpointError, ConfigError, expected
from gracl.learning.layers import AveragePool, GeneralizedMeanPool, group_batch_norm
from gracl.learning.mobilenet import MobileNetV2
from gracl.learning.plain_files import load_plain
from gracl.learning.resnet import DEPTHS, ResNet
from gracl.randomness import rng

BACKBONES = (*DEPTHS, *(f"{depth}_ibn_a" for depth in DEPTHS), "mobilenet_v2")
POOLINGS = ("gem", "average", "token")
TIMM = "timm:"
# Names under which the published state dicts keep their classifier.
CLASSIFIERS = ("fc.", "classifier.", "head.", "head_dist.")


class Encoder(nn.Module):
    """Images to unit features, float32 whatever autocast does to the trunk.

    Attributes:
        feature_size: length of a feature.
        options: the keywords of `build_encoder` that make this architecture again, plain values; `weights` is None
            there, because whoever rebuilds an encoder loads its state afterwards.
        backend, most_rows: what its calls are compiled by, and the largest batch of a scan so far, see `compiling.py`.
    """

    backend: str | Callable[..., Any] = ""
    most_rows = 0

    def __init__(self, trunk: nn.Module, pool: nn.Module, *, width: int, feature_size: int = 0) -> None:
        super().__init__()
        self.trunk = trunk
        self.pool = pool
        self.feature_size = feature_size or width
        self.embed = nn.Linear(width, feature_size, bias=False) if feature_size else nn.Identity()
        if isinstance(self.embed, nn.Linear):
            nn.init.kaiming_normal_(self.embed.weight, mode="fan_out")
        self.neck = nn.BatchNorm1d(self.feature_size)
        self.neck.bias.requires_grad_(False)
        self.options: dict[str, Any] = {}

    def forward(self, images: Float32[Tensor, "batch 3 height width"]) -> Float32[Tensor, "batch dim"]:
        """Normalised images to rows of length 1."""
        maps = self.trunk(images)
        with torch.autocast(images.device.type, enabled=False):
            features = self.neck(self.embed(self.pool(maps.float())))
            return F.normalize(features, dim=1)


def build_encoder(
    *,
    backbone: str = "resnet50",
    weights: str | Path | None = None,
    pooling: str = "gem",
    last_stride: int = 1,
    bn_group: int = 64,
    feature_size: int = 0,
    seed: int = 0,
) -> Encoder:
    """Builds an encoder on the CPU, in training mode.

    Args:
        backbone: one of `BACKBONES`, or `timm:<model>` for a convolutional or token model of timm (extra `backbones`).
        weights: file of a state dict for the trunk; its classifier is left out. None starts from random weights.
        pooling: "gem" (generalised mean), "average", or "token" (the class token; timm transformers only).
        last_stride: stride of the trunk's last size change, 1 or 2. timm models keep their own: ask for 2.
        bn_group: rows per batch-norm group in training, 0 for the whole batch (method.md section 5.1).
        feature_size: length of the features; 0 takes the trunk's width, more adds a linear map without bias.
        seed: of the initial weights. The global generator is left as it was.

    Raises:
        ConfigError: an unknown name, a value out of bounds, a combination that does not exist, timm not installed.
        CheckpointError: weights that are missing, unreadable, or do not fit; each name is listed.
    """
    _check(backbone, pooling, last_stride, feature_size)
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: `torch.manual_seed` would also reseed the devices, which fork_rng then leaves so.
        torch.default_generator.manual_seed(int(rng(seed, "encoder").integers(2**63)))
        trunk, width = _trunk(backbone, pooling, last_stride)
        pool = GeneralizedMeanPool() if pooling == "gem" else AveragePool()
        encoder = Encoder(trunk, pool, width=width, feature_size=feature_size)
    group_batch_norm(encoder, bn_group)
    if weights is not None:
        body = trunk.model if isinstance(trunk, TimmTrunk) else trunk
        load_exactly(body, read_weights(weights), source=str(weights), ignore=CLASSIFIERS)
    encoder.options = {
        "backbone": backbone,
        "weights": None,
        "pooling": pooling,
        "last_stride": last_stride,
        "bn_group": bn_group,
        "feature_size": feature_size,
        "seed": seed,
    }
    return encoder


def _check(backbone: str, pooling: str, last_stride: int, feature_size: int) -> None:
    """Refuses what cannot be built, before anything is."""
    timm = backbone.startswith(TIMM)
    if not timm and backbone not in BACKBONES:
        raise ConfigError(
            expected(f"a backbone of {', '.join(BACKBONES)} or timm:<model>", backbone, "correct its name")
        )
    if pooling not in POOLINGS:
        raise ConfigError(expected(f"a pooling of {', '.join(POOLINGS)}", pooling, "correct its name"))
    if pooling == "token" and not timm:
        raise ConfigError(expected("a transformer for pooling=token", backbone, "use pooling=gem or average"))
    if last_stride not in (1, 2):
        raise ConfigError(expected("last_stride 1 or 2", last_stride, "use 1 for re-identification"))
    if timm and last_stride != 2:
        raise ConfigError(
            expected("last_stride=2 for timm models, whose strides are their own", last_stride, "set last_stride=2")
        )
    if feature_size < 0:
        raise ConfigError(expected("feature_size 0 (the trunk's width) or more", feature_size, "use 0"))


def _trunk(backbone: str, pooling: str, last_stride: int) -> tuple[nn.Module, int]:
    """The trunk of that name and the number of its channels."""
    if backbone.startswith(TIMM):
        trunk = TimmTrunk(backbone.removeprefix(TIMM), pooling)
        return trunk, trunk.width
    if backbone == "mobilenet_v2":
        return MobileNetV2(last_stride=last_stride), MobileNetV2.width
    depth = backbone.removesuffix("_ibn_a")
    resnet = ResNet(depth, ibn=depth != backbone, last_stride=last_stride)
    return resnet, resnet.width


class TimmTrunk(nn.Module):
    """A timm model without pooling and classifier; tokens are handed on as maps of one column.

    Args:
        name: the model's name in timm, for example "vit_small_patch16_224" or "resnet26".
        pooling: "token" keeps the class token alone, "average" all tokens but the leading ones; for convolutional
            models any but "token".

    Raises:
        ConfigError: timm is not installed, has no such model, or the pooling does not suit it.
    """

    def __init__(self, name: str, pooling: str) -> None:
        super().__init__()
        self.model = _timm_model(name)
        self.width = int(self.model.num_features)
        self.token = pooling == "token"
        # Only token models have leading tokens; a class token is one of them.
        leading = getattr(self.model, "num_prefix_tokens", None)
        self.leading = int(leading or 0)
        if leading is not None and pooling == "gem":
            raise ConfigError(expected("pooling=token or average for tokens", "gem", "set pooling=token"))
        if self.token and not self.leading:
            raise ConfigError(expected("a model with a class token", f"timm:{name}", "set pooling=average or gem"))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """The maps; of tokens, the class token as one place or all patches as one column."""
        seen: Tensor = self.model(images)
        if seen.ndim == 3:
            seen = seen[:, :1] if self.token else seen[:, self.leading :]
            return seen.transpose(1, 2).unsqueeze(3)
        if seen.ndim != 4 or seen.shape[1] != self.width:
            raise ConfigError(
                expected(
                    "a timm model that gives tokens, or maps with the channels first",
                    f"an output of shape {tuple(seen.shape)} with {self.width} channels",
                    "choose another backbone",
                )
            )
        return seen


def _timm_model(name: str) -> Any:
    """The model of that name with random weights, of any input size where it can be."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            expected(f"timm for backbone=timm:{name}", "no such package", "pip install 'gracl[backbones]'")
        ) from error
    if not timm.is_model(name):
        raise ConfigError(expected("a model that timm knows", name, "see timm.list_models()"))
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "global_pool": ""}
    try:
        return timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:
        # Convolutional models take any size and do not know the word.
        return timm.create_model(name, **options)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a file of weights: tensors by name, also where they lie under `state_dict`, `model` or `module.`.

    Raises:
        CheckpointError: no such file, or something else than tensors in it. Code in the file is never run.
    """
    try:
        loaded = load_plain(path)
    except Exception as error:  # bytes that are no checkpoint can fail in the reader in any way
        raise CheckpointError(
            expected(
                f"a readable file of weights at {path}",
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}",
                "give a file made by torch.save(model.state_dict(), path)",
            )
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(
            expected(f"tensors by name in {path}", type(loaded).__name__, "save model.state_dict() alone and give that")
        )
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def load_exactly(module: nn.Module, weights: dict[str, Tensor], *, source: str, ignore: tuple[str, ...] = ()) -> None:
    """Fills `module` with `weights`; every name and shape must fit.

    Args:
        module: changed in place, or not at all.
        weights: tensors by name.
        source: where they come from, for the error.
        ignore: beginnings of names that may stand in `weights` though the module has none such.

    `num_batches_tracked` may be missing: files of old do not have it, and gracl never reads it.

    Raises:
        CheckpointError: names missing, unexpected, or of another shape; all are listed.
    """
    own = module.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if name in own or not name.startswith(ignore)}
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    misfits = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if missing or unexpected or misfits:
        raise CheckpointError(
            expected(
                f"weights in {source} that fit the encoder",
                f"{len(missing)} missing {missing}, {len(unexpected)} unexpected {unexpected}, "
                f"{len(misfits)} of another shape {misfits}",
                "check that the file belongs to this backbone",
            )
        )
    module.load_state_dict(weights, strict=False)

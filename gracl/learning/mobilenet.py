"""MobileNetV2 (width 1.0) trunk with the parameter names of torchvision.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: inverted residuals and linear bottlenecks" (2018), table 2.
Without pooling and classifier.
"""

from jaxtyping import Float
from torch import Tensor, nn

# expansion, output channels, blocks, stride of the first block: the rows of the paper's table
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST_STRIDED = 5  # the stage of 160 channels is the last that halves the maps


class InvertedResidual(nn.Module):
    """1x1 wide, 3x3 each channel by itself, 1x1 narrow without activation; added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [_conv_norm_relu(inputs, hidden, kernel=1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_norm_relu(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, maps: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        """The narrow maps, added to the input where size and width are kept."""
        seen: Tensor = self.conv(maps)
        return maps + seen if self.adds else seen


class MobileNetV2(nn.Module):
    """Images to feature maps of 1280 channels, at 1/16 (last_stride 1) or 1/32 (last_stride 2) of their size.

    Args:
        last_stride: stride of the last stage that halves the maps (the one of 160 channels).

    The initial weights come from the global generator (Kaiming normal): whoever builds decides its state. Fan in, not
    torchvision's fan out, which counts all channels of a convolution that sees one: with it the maps of an untrained
    network in evaluation mode shrink to 1e-9, below the floor of GeM, and all images look the same.
    """

    width = 1280

    def __init__(self, *, last_stride: int = 1) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv_norm_relu(3, 32, kernel=3, stride=2)]
        inputs = 32
        for stage, (expansion, outputs, repeats, stride) in enumerate(STAGES):
            first = last_stride if stage == LAST_STRIDED else stride
            for block in range(repeats):
                step = first if block == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, stride=step, expansion=expansion))
                inputs = outputs
        blocks.append(_conv_norm_relu(inputs, self.width, kernel=1))
        self.features = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in")

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """The maps after the last 1x1 convolution."""
        out: Tensor = self.features(images)
        return out


def _conv_norm_relu(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size up to its stride, batch norm, ReLU capped at 6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )

"""ResNet-18/34/50 trunks and their IBN-a variants, with the parameter names of torchvision and of IBN-Net.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), with the stride of a bottleneck in its 3x3
convolution as torchvision has it; Pan, Luo, Shi, Tang, "Two at once: IBN-Net" (2018) for instance norm on half of the
channels. Without pooling and classifier.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the rest (IBN-a)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widths = [channels // 2, channels - channels // 2]
        self.IN = nn.InstanceNorm2d(self.widths[0], affine=True)
        self.BN = nn.BatchNorm2d(self.widths[1])

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Normalises both halves and puts them side by side again."""
        first, second = maps.split(self.widths, dim=1)
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a way past them (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, *, stride: int, ibn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = InstanceBatchNorm(planes) if ibn else nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, maps: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch planes h w"]:
        """The block's own view added to what came in."""
        seen = self.relu(self.bn1(self.conv1(maps)))
        seen = self.bn2(self.conv2(seen))
        past: Tensor = maps if self.downsample is None else self.downsample(maps)
        out: Tensor = self.relu(seen + past)
        return out


class Bottleneck(nn.Module):
    """1x1 narrow, 3x3, 1x1 wide by four, and a way past them (ResNet-50)."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, *, stride: int, ibn: bool) -> None:
        super().__init__()
        wide = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = InstanceBatchNorm(planes) if ibn else nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, wide, stride)

    def forward(self, maps: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch wide h w"]:
        """The block's own view added to what came in."""
        seen = self.relu(self.bn1(self.conv1(maps)))
        seen = self.relu(self.bn2(self.conv2(seen)))
        seen = self.bn3(self.conv3(seen))
        past: Tensor = maps if self.downsample is None else self.downsample(maps)
        out: Tensor = self.relu(seen + past)
        return out


DEPTHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """Images to feature maps of `width` channels, at 1/16 (last_stride 1) or 1/32 (last_stride 2) of their size.

    Args:
        depth: "resnet18", "resnet34" or "resnet50".
        ibn: instance norm on half of the channels of the first norm of each block of layers 1 to 3 (IBN-a).
        last_stride: stride of layer 4. Re-ID keeps it at 1 for finer maps (Luo et al., "Bag of tricks", 2019).

    The initial weights come from the global generator (Kaiming normal, fan out): whoever builds decides its state.
    """

    def __init__(self, depth: str, *, ibn: bool = False, last_stride: int = 1) -> None:
        super().__init__()
        block, repeats = DEPTHS[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        wide = block.expansion
        self.layer1 = _layer(block, 64, 64, repeats[0], stride=1, ibn=ibn)
        self.layer2 = _layer(block, 64 * wide, 128, repeats[1], stride=2, ibn=ibn)
        self.layer3 = _layer(block, 128 * wide, 256, repeats[2], stride=2, ibn=ibn)
        self.layer4 = _layer(block, 256 * wide, 512, repeats[3], stride=last_stride, ibn=False)
        self.width = 512 * wide
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """The maps after layer 4."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        out: Tensor = maps
        return out


def _layer(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, repeats: int, *, stride: int, ibn: bool
) -> nn.Sequential:
    """Blocks in a row; the first one changes size and width."""
    first = block(inputs, planes, stride=stride, ibn=ibn)
    rest = [block(planes * block.expansion, planes, stride=1, ibn=ibn) for _ in range(repeats - 1)]
    return nn.Sequential(first, *rest)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The way past a block: a 1x1 convolution where size or width change, nothing elsewhere."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

import pytest
import torch
from torch import nn

from gracl.learning.resnet import DEPTHS, InstanceBatchNorm, ResNet

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
REPEATS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
TRUNK_PARAMETERS = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032}


def norm_shapes(name, channels):
    return {f"{name}.{part}": () if part == "num_batches_tracked" else (channels,) for part in NORM}


def torchvision_shapes(depth):
    """Names and shapes of torchvision's file without `fc`, written from the published layout."""
    deep = depth == "resnet50"
    wide = 4 if deep else 1
    shapes = {"conv1.weight": (64, 3, 7, 7), **norm_shapes("bn1", 64)}
    inputs = 64
    for layer, (planes, repeats) in enumerate(zip((64, 128, 256, 512), REPEATS[depth], strict=True), start=1):
        for block in range(repeats):
            name = f"layer{layer}.{block}"
            kernels = [(planes, inputs, 1), (planes, planes, 3), (planes * 4, planes, 1)]
            if not deep:
                kernels = [(planes, inputs, 3), (planes, planes, 3)]
            for number, (outputs, seen, size) in enumerate(kernels, start=1):
                shapes[f"{name}.conv{number}.weight"] = (outputs, seen, size, size)
                shapes |= norm_shapes(f"{name}.bn{number}", outputs)
            if block == 0 and (layer > 1 or deep):
                shapes[f"{name}.downsample.0.weight"] = (planes * wide, inputs, 1, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", planes * wide)
            inputs = planes * wide
    return shapes


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_shapes_are_those_of_torchvision(depth):
    network = ResNet(depth)
    expected = torchvision_shapes(depth)
    assert shapes_of(network) == expected
    assert list(network.state_dict()) == list(expected)
    assert sum(parameter.numel() for parameter in network.parameters()) == TRUNK_PARAMETERS[depth]


def test_counts_of_the_published_files():
    # 62, 110 and 161 learnt tensors with `fc.weight` and `fc.bias`, as the files of torchvision have.
    counts = [sum(1 for _ in ResNet(depth).parameters()) for depth in DEPTHS]
    assert counts == [60, 108, 159]


@pytest.mark.parametrize("depth", DEPTHS)
def test_same_maps_as_torchvision(depth):
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    theirs = getattr(models, depth)(weights=None).eval()
    ours = ResNet(depth, last_stride=2).eval()
    ours.load_state_dict({name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")})
    images = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        maps = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        maps = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(maps))))
        torch.testing.assert_close(ours(images), maps)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("last_stride", "size"), [(1, (4, 2)), (2, (2, 1))])
def test_last_stride_decides_the_size_of_the_maps(depth, last_stride, size):
    network = ResNet(depth, last_stride=last_stride).eval()
    with torch.inference_mode():
        maps = network(torch.randn(2, 3, 64, 32))
    assert maps.shape == (2, network.width, *size)
    # The same file fits both.
    assert shapes_of(network) == torchvision_shapes(depth)


def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution():
    block = ResNet("resnet50").layer2[0]
    assert block.conv1.stride == (1, 1)
    assert block.conv2.stride == (2, 2)
    assert block.downsample[0].stride == (2, 2)


@pytest.mark.parametrize("depth", DEPTHS)
def test_ibn_stands_first_in_each_block_of_layers_1_to_3(depth):
    network = ResNet(depth, ibn=True)
    places = {name for name, module in network.named_modules() if isinstance(module, InstanceBatchNorm)}
    assert places == {f"layer{layer}.{block}.bn1" for layer in (1, 2, 3) for block in range(REPEATS[depth][layer - 1])}
    names = {name for name in network.state_dict() if name.startswith("layer1.0.bn1.")}
    halves = {f"layer1.0.bn1.BN.{part}" for part in NORM}
    assert names == {"layer1.0.bn1.IN.weight", "layer1.0.bn1.IN.bias"} | halves
    assert network.layer1[0].bn1.IN.weight.shape == (32,)
    assert network.layer1[0].bn1.BN.weight.shape == (32,)
    with torch.inference_mode():
        assert network.eval()(torch.randn(1, 3, 64, 32)).shape == (1, network.width, 4, 2)


def test_ibn_normalises_each_half_in_its_own_way():
    maps = torch.randn(4, 6, 5, 3)
    seen = InstanceBatchNorm(6)(maps)
    torch.testing.assert_close(seen[:, :3], nn.InstanceNorm2d(3)(maps[:, :3]))
    torch.testing.assert_close(seen[:, 3:], nn.BatchNorm2d(3)(maps[:, 3:]))


def test_gradients_reach_every_parameter():
    network = ResNet("resnet50", ibn=True)
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())

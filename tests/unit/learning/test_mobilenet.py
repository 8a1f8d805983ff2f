from pathlib import Path

import pytest
import torch

from gracl.learning.mobilenet import MobileNetV2

FILE = "shared/weights/mobilenet_v2_imagenet/mobilenet_v2_imagenet_from_tflite.pth"
WEIGHTS = Path(__file__).resolve().parents[4] / FILE


def shared_weights():
    if not WEIGHTS.is_file():
        pytest.skip("../shared/weights is absent")
    loaded = torch.load(WEIGHTS, weights_only=True)
    return {name: tensor for name, tensor in loaded.items() if not name.startswith("classifier.")}


def test_counts_of_the_published_layout():
    network = MobileNetV2()
    # 3,504,872 with the classifier of 1000 classes
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_504_872 - 1280 * 1000 - 1000
    assert len(network.state_dict()) == 312
    assert tuple(network.state_dict()["features.1.conv.0.0.weight"].shape) == (32, 1, 3, 3)
    assert tuple(network.state_dict()["features.17.conv.2.weight"].shape) == (320, 960, 1, 1)
    assert tuple(network.state_dict()["features.18.0.weight"].shape) == (1280, 320, 1, 1)


def test_names_order_and_shapes_equal_the_shared_file():
    shapes = {name: tuple(tensor.shape) for name, tensor in MobileNetV2().state_dict().items()}
    assert list(shapes.items()) == [(name, tuple(tensor.shape)) for name, tensor in shared_weights().items()]


def test_same_maps_as_torchvision():
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    theirs = models.mobilenet_v2(weights=None).eval()
    ours = MobileNetV2(last_stride=2).eval()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name.startswith("features.")})
    images = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs.features(images))


@pytest.mark.parametrize(("last_stride", "size"), [(1, (6, 4)), (2, (3, 2))])
def test_last_stride_decides_the_size_of_the_maps(last_stride, size):
    network = MobileNetV2(last_stride=last_stride).eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 96, 64)).shape == (2, 1280, *size)
    assert network.features[14].conv[1][0].stride == (last_stride, last_stride)


def test_blocks_add_where_size_and_width_are_kept():
    blocks = list(MobileNetV2().features)[1:-1]
    assert [number for number, block in enumerate(blocks, start=1) if block.adds] == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]


def test_an_untrained_network_is_not_blind_in_evaluation_mode():
    torch.manual_seed(0)
    with torch.inference_mode():
        maps = MobileNetV2().eval()(torch.randn(2, 3, 64, 64))
    assert 0.2 < (maps > 1e-3).float().mean() < 0.8
    assert (maps[0] - maps[1]).abs().max() > 1e-2


def test_gradients_reach_every_parameter():
    network = MobileNetV2()
    network(torch.randn(4, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())

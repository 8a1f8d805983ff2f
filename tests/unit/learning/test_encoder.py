import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gracl.errors import CheckpointError, ConfigError
from gracl.learning.encoder import BACKBONES, build_encoder, load_exactly, read_weights
from gracl.learning.layers import GroupBatchNorm1d, GroupBatchNorm2d

FILE = "shared/weights/mobilenet_v2_imagenet/mobilenet_v2_imagenet_from_tflite.pth"
WEIGHTS = Path(__file__).resolve().parents[4] / FILE


def images(rows=4, *, height=64, width=32, seed=0):
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(seed))


def small(**options):
    return build_encoder(**{"backbone": "resnet18", "bn_group": 0} | options)


def saved(trunk, path, wrap=lambda state: state):
    torch.save(wrap(trunk.state_dict()), path)
    return path


def assert_unit(features, rows, size):
    assert features.shape == (rows, size)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    torch.testing.assert_close(features.norm(dim=1), torch.ones(rows))


@pytest.mark.parametrize(("backbone", "pooling"), [*((name, "gem") for name in BACKBONES), ("resnet18", "average")])
def test_every_backbone_gives_unit_features(backbone, pooling):
    encoder = build_encoder(backbone=backbone, pooling=pooling, bn_group=2)
    with torch.no_grad():
        assert_unit(encoder(images()), 4, encoder.feature_size)
        assert_unit(encoder.eval()(images(1)), 1, encoder.feature_size)


@pytest.mark.parametrize(("backbone", "size"), [("resnet18", 512), ("resnet50", 2048), ("mobilenet_v2", 1280)])
def test_the_feature_is_as_wide_as_the_trunk_or_as_asked(backbone, size):
    plain, embedded = build_encoder(backbone=backbone), build_encoder(backbone=backbone, feature_size=96)
    assert plain.feature_size == size
    assert embedded.feature_size == 96
    assert embedded.embed.bias is None
    with torch.no_grad():
        assert_unit(embedded.eval()(images()), 4, 96)


def test_the_neck_is_learnt_but_for_its_bias():
    encoder = small()
    encoder(images())[:, 0].sum().backward()
    assert encoder.neck.weight.eq(1).all()
    assert encoder.neck.weight.grad.abs().sum() > 0
    assert not encoder.neck.bias.requires_grad
    assert encoder.neck.bias.eq(0).all()
    names = [name for name, parameter in encoder.named_parameters() if not parameter.requires_grad]
    assert names == ["neck.bias"]


def test_forward_is_pool_neck_and_unit_length():
    encoder = small(pooling="average").eval()
    with torch.no_grad():
        encoder.neck.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        maps = encoder.trunk(images())
        pooled = (maps.mean((2, 3)) - encoder.neck.running_mean) / (encoder.neck.running_var + 1e-5).sqrt()
        torch.testing.assert_close(encoder(images()), pooled / pooled.norm(dim=1, keepdim=True))


def test_gem_is_learnt():
    encoder = small(pooling="gem")
    encoder(images())[:, 0].sum().backward()
    assert encoder.pool.p.grad.abs().sum() > 0


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_bfloat16_autocast_gives_finite_unit_float32(backbone):
    encoder = build_encoder(backbone=backbone, bn_group=2)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(images())
        features[:, 0].sum().backward()
        assert encoder.trunk(images()).dtype == torch.bfloat16
    assert_unit(features.detach(), 4, encoder.feature_size)
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.requires_grad]
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_bfloat16_autocast_sees_nearly_the_same(backbone):
    encoder = build_encoder(backbone=backbone).eval()
    with torch.inference_mode():
        full = encoder(images())
        with torch.autocast("cpu", torch.bfloat16):
            low = encoder(images())
    assert_unit(low, 4, encoder.feature_size)
    assert (low * full).sum(1).min() > 0.999
    assert not torch.equal(low, full)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = small(seed=3), small(seed=3), small(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    third = small(seed=3)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert torch.equal(tensor, third.state_dict()[name]), name
    assert not torch.equal(first.trunk.conv1.weight, other.trunk.conv1.weight)


def test_an_embedding_does_not_change_the_trunk_of_a_seed():
    assert torch.equal(small().trunk.conv1.weight, small(feature_size=8).trunk.conv1.weight)


def test_options_build_the_same_encoder_again():
    encoder = small(pooling="average", last_stride=2, feature_size=7, seed=9)
    twin = build_encoder(**encoder.options)
    assert twin.options == encoder.options
    assert all(type(value) in (str, int, type(None)) for value in encoder.options.values())
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), twin.parameters(), strict=True))


def test_groups_reach_every_norm_the_neck_included():
    encoder = build_encoder(backbone="resnet18_ibn_a", bn_group=8)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 21
    assert all(isinstance(norm, GroupBatchNorm1d | GroupBatchNorm2d) and norm.group == 8 for norm in norms)
    assert isinstance(encoder.neck, GroupBatchNorm1d)


def test_a_grouped_batch_equals_its_parts_alone():
    whole, alone = small(bn_group=4), small()
    with torch.no_grad():
        seen = whole(images(8))
        parts = [alone(part) for part in images(8).split(4)]
    torch.testing.assert_close(seen, torch.cat(parts), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="bn_group=4"):
        whole(images(6))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backbone": "resnet19"}, "resnet19"),
        ({"pooling": "max"}, "max"),
        ({"pooling": "token"}, "transformer"),
        ({"last_stride": 3}, "last_stride"),
        ({"bn_group": -1}, "bn_group"),
        ({"bn_group": 1}, "bn_group"),
        ({"feature_size": -1}, "feature_size"),
        ({"backbone": "timm:vit_small_patch16_224"}, "last_stride=2"),
    ],
)
def test_what_cannot_be_built_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        small(**options)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)},
        lambda state: {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "model and module", "classifier", "file of old"],
)
def test_weights_are_taken_from_every_usual_wrapping(tmp_path, wrap):
    source = small(seed=1)
    path = saved(source.trunk, tmp_path / "w.pth", wrap)
    loaded = small(seed=2, weights=path)
    for name, tensor in source.trunk.named_parameters():
        assert torch.equal(tensor, loaded.trunk.get_parameter(name)), name
    assert loaded.options["weights"] is None
    assert torch.equal(small(seed=2, weights=str(path)).trunk.conv1.weight, source.trunk.conv1.weight)


def test_weights_that_do_not_fit_are_refused_and_listed(tmp_path):
    def wrap(state):
        wrong = {**state, "stray.weight": torch.zeros(1), "bn1.bias": torch.zeros(3)}
        del wrong["conv1.weight"]
        return wrong

    path = saved(small().trunk, tmp_path / "w.pth", wrap)
    with pytest.raises(CheckpointError) as caught:
        small(weights=path)
    for part in ("1 missing ['conv1.weight']", "1 unexpected ['stray.weight']", "bn1.bias (3,) instead of (64,)"):
        assert part in str(caught.value)


def test_a_refused_load_changes_nothing():
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError, match="missing"):
        load_exactly(module, {"weight": torch.zeros(2, 2)}, source="here")
    assert torch.equal(module.weight, before)


def test_a_shallow_file_does_not_pass_for_a_deep_backbone(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        build_encoder(backbone="resnet34", weights=saved(small().trunk, tmp_path / "w.pth"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x02}q\x00.", bytes(range(256)) * 4])
def test_files_that_are_no_weights_are_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    if content == b"\x80\x02}q\x00.":
        path.write_bytes(b"")
        torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_weights(path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="none.pth"):
        small(weights=tmp_path / "none.pth")


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"conv1.weight": Trap()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_the_shared_imagenet_weights_load_and_see_otherwise_than_random():
    if not WEIGHTS.is_file():
        pytest.skip("../shared/weights is absent")
    trained = build_encoder(backbone="mobilenet_v2", weights=WEIGHTS).eval()
    random = build_encoder(backbone="mobilenet_v2").eval()
    views = images(3, height=96, width=96)
    with torch.inference_mode():
        assert_unit(trained(views), 3, 1280)
        assert (trained(views) * random(views)).sum(1).abs().max() < 0.9


# timm


class DollOfTokens(nn.Module):
    """What gracl uses of a timm transformer: one class token before the patches, 6 channels."""

    num_features = 6
    num_prefix_tokens = 1

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 6, 16, stride=16)

    def forward(self, x):
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True) + 1, tokens], 1)


class DollOfMaps(nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 6, 16, stride=16)

    def forward(self, x):
        return self.proj(x)


@pytest.fixture
def doll(monkeypatch):
    def create_model(name, **options):
        assert options.pop("pretrained") is False
        assert options.pop("num_classes") == 0
        assert options.pop("global_pool") == ""
        if name == "tokens":
            assert options == {"dynamic_img_size": True}
            return DollOfTokens()
        if options:
            raise TypeError("unexpected keyword")
        return DollOfMaps()

    timm = SimpleNamespace(create_model=create_model, is_model=lambda name: name in ("tokens", "maps"))
    monkeypatch.setitem(sys.modules, "timm", timm)


@pytest.mark.usefixtures("doll")
def test_tokens_and_maps_of_timm_are_pooled_as_asked(tmp_path):
    options = {"last_stride": 2, "bn_group": 0}
    token = build_encoder(backbone="timm:tokens", pooling="token", **options)
    mean = build_encoder(backbone="timm:tokens", pooling="average", **options)
    views = images()
    seen = token.trunk.model(views)
    torch.testing.assert_close(token.pool(token.trunk(views)), seen[:, 0])
    torch.testing.assert_close(mean.pool(mean.trunk(views)), mean.trunk.model(views)[:, 1:].mean(1))
    assert_unit(token(views).detach(), 4, 6)
    maps = build_encoder(backbone="timm:maps", pooling="gem", **options)
    assert_unit(maps(views).detach(), 4, 6)
    path = saved(token.trunk.model, tmp_path / "w.pth", lambda state: state | {"head.weight": torch.zeros(1)})
    loaded = build_encoder(backbone="timm:maps", pooling="gem", weights=path, seed=8, **options)
    assert torch.equal(loaded.trunk.model.proj.weight, token.trunk.model.proj.weight)


@pytest.mark.usefixtures("doll")
@pytest.mark.parametrize(
    ("name", "pooling", "match"),
    [("tokens", "gem", "token or average"), ("maps", "token", "class token"), ("none", "gem", "timm knows")],
)
def test_what_timm_cannot_do_is_refused(name, pooling, match):
    with pytest.raises(ConfigError, match=match):
        build_encoder(backbone=f"timm:{name}", pooling=pooling, last_stride=2)


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"gracl\[backbones\]"):
        build_encoder(backbone="timm:vit_small_patch16_224", pooling="token", last_stride=2)


@pytest.mark.parametrize(("name", "pooling"), [("vit_tiny_patch16_224", "token"), ("resnet10t", "gem")])
def test_real_timm_models_give_unit_features(name, pooling):
    pytest.importorskip("timm", reason="timm is not installed")
    encoder = build_encoder(backbone=f"timm:{name}", pooling=pooling, last_stride=2, bn_group=0)
    with torch.no_grad():
        assert_unit(encoder(images(2, height=64, width=32)), 2, encoder.feature_size)

"""Every encoder that gracl builds becomes a file of both formats, whose features are PyTorch's."""

import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from gracl.errors import ConfigError, GraclError
from gracl.learning import exporting
from gracl.learning.encoder import build_encoder
from gracl.learning.exporting import FILES, Differences, PixelEncoder, differences, export, load_exported
from gracl.types import IMAGENET_MEAN, IMAGENET_STD

# Not smaller: where a map is of two places, instance norm divides by what may be next to nothing, and no two orders of
# summing agree.
VIEW = {"height": 64, "width": 32}
# One of each kind of block; the others of BACKBONES are more of the same and take minutes.
KINDS = ("resnet18", "resnet18_ibn_a", "resnet50_ibn_a", "mobilenet_v2")
FACTS = {"gracl.model": "abc"}

ALONE = """
import sys, numpy, torch
features = torch.export.load(sys.argv[1]).module()(torch.from_numpy(numpy.load(sys.argv[2]))).detach().numpy()
assert "gracl" not in sys.modules
numpy.save(sys.argv[3], features)
"""


def lived(**options):
    """An encoder whose statistics and parameters are not those of the first day, so that each of them is seen."""
    encoder = build_encoder(**{"feature_size": 8, "bn_group": 2} | options)
    dice = torch.Generator().manual_seed(0)
    for name, value in encoder.state_dict().items():
        if name.endswith("running_mean"):
            value += 0.1 * torch.randn(value.shape, generator=dice)
        if name.endswith(("running_var", "pool.p")):
            value *= 0.8 + 0.4 * torch.rand(value.shape, generator=dice)
    return encoder.eval()


def pictures(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, *VIEW.values(), 3), np.uint8)


def by_hand(encoder, images):
    """Normalised here, with what stands in gracl.types, picture by picture."""
    rows = []
    for image in images:
        numbers = (image.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        with torch.inference_mode():
            rows.append(encoder(torch.from_numpy(numpy_first(numbers))[None])[0].numpy())
    return np.stack(rows)


def numpy_first(numbers):
    return np.ascontiguousarray(numbers.transpose(2, 0, 1), np.float32)


def written(folder, encoder, form, **more):
    path = folder / FILES[form]
    export(encoder, path, form=form, facts=FACTS, **VIEW, **more)
    return path


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("backbone", KINDS)
def test_every_kind_of_backbone_gives_the_same_features_for_any_batch(backbone, form, tmp_path):
    encoder = lived(backbone=backbone)
    run = load_exported(written(tmp_path, encoder, form))
    for rows in (1, 2, 5):
        found = run(pictures(rows))
        assert (found.dtype, found.shape) == (np.float32, (rows, 8))
        np.testing.assert_allclose(found, by_hand(encoder, pictures(rows)), atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("onnx", {"pooling": "average", "feature_size": 0, "bn_group": 0}),
        ("onnx", {"last_stride": 2}),
        ("torch_export", {"pooling": "average"}),
        ("torch_export", {"feature_size": 0, "last_stride": 2}),
    ],
    ids=str,
)
def test_every_option_does_too(form, options, tmp_path):
    encoder = lived(backbone="resnet18", **options)
    found = load_exported(written(tmp_path, encoder, form))(pictures(3))
    assert found.shape == (3, encoder.feature_size)
    np.testing.assert_allclose(found, by_hand(encoder, pictures(3)), atol=2e-5)


def test_onnx_says_what_it_is_and_has_the_opset_that_was_asked_for(tmp_path):
    made = onnx.load(written(tmp_path, lived(backbone="resnet18"), "onnx", opset=21))
    onnx.checker.check_model(made, full_check=True)
    assert {given.domain: given.version for given in made.opset_import}[""] == 21
    assert {"gracl.model": "abc"}.items() <= {item.key: item.value for item in made.metadata_props}.items()
    (into,), (out,) = made.graph.input, made.graph.output
    assert (into.name, into.type.tensor_type.elem_type) == ("pictures", onnx.TensorProto.UINT8)
    assert [side.dim_param or side.dim_value for side in into.type.tensor_type.shape.dim] == ["batch", 64, 32, 3]
    assert (out.name, out.type.tensor_type.elem_type) == ("features", onnx.TensorProto.FLOAT)
    assert [side.dim_param or side.dim_value for side in out.type.tensor_type.shape.dim] == ["batch", 8]


def test_torch_loads_its_program_where_there_is_no_gracl(tmp_path):
    encoder = lived(backbone="resnet18_ibn_a")
    path = written(tmp_path, encoder, "torch_export")
    facts = {"gracl.json": ""}
    torch.export.load(path, extra_files=facts)
    assert json.loads(facts["gracl.json"]) == FACTS
    np.save(tmp_path / "pictures.npy", pictures(4))
    files = [str(path), str(tmp_path / "pictures.npy"), str(tmp_path / "features.npy")]
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(files[2]), by_hand(encoder, pictures(4)), atol=2e-5)


def test_a_training_encoder_is_exported_as_it_is_in_use(tmp_path):
    encoder = lived(backbone="resnet18")
    wanted = by_hand(encoder, pictures(4))
    run = load_exported(written(tmp_path, encoder.train(), "torch_export"))
    np.testing.assert_allclose(run(pictures(4)), wanted, atol=2e-5)


def test_differences_are_the_largest_of_all_batches():
    encoder = lived(backbone="resnet18")
    plain = PixelEncoder(encoder)

    def shifted(images):
        features = plain(torch.from_numpy(images)).detach().numpy().copy()
        if len(images) == 2:
            features[1, 3] += 0.25
        return features

    found = differences(encoder, shifted, [pictures(1), pictures(2), pictures(3)])
    assert (found.pictures, found.largest) == (6, pytest.approx(0.25, abs=1e-5))
    row = by_hand(encoder, pictures(2))[1]
    assert found.smallest_cosine == pytest.approx(min(1.0, 1 + 0.25 * row[3]), abs=1e-4)
    exporting.refuse_beyond(0.26, found, "drawn")
    with pytest.raises(GraclError, match="tolerance=0.24 .* difference of 0.25 in 6 drawn pictures"):
        exporting.refuse_beyond(0.24, found, "drawn")


def test_no_number_and_another_shape_are_refused():
    encoder = lived(backbone="resnet18")
    found = differences(encoder, lambda images: np.full((len(images), 8), np.nan, np.float32), [pictures(2)])
    with pytest.raises(GraclError, match="difference of nan"):
        exporting.refuse_beyond(0.01, found, "drawn")
    with pytest.raises(GraclError, match=r"float32 \[2, 8\]; came float32 \[2, 7\]"):
        differences(encoder, lambda images: np.zeros((len(images), 7), np.float32), [pictures(2)])
    with pytest.raises(GraclError, match="expected pictures to compare"):
        differences(encoder, lambda images: np.zeros((0, 8), np.float32), [])
    exporting.refuse_beyond(0.01, Differences(1, 0.01, 1.0), "drawn")


def test_drawn_pictures_come_in_batches_of_several_sizes():
    for count in (1, 2, 3, 4, 40):
        batches = list(exporting.drawn(np.random.default_rng(0), count, **VIEW))
        assert sum(map(len, batches)) == count
        assert all(batch.dtype == np.uint8 and batch.shape[1:] == (64, 32, 3) for batch in batches)
    assert [len(batch) for batch in batches] == [1, 2, 32, 5]
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(np.concatenate(batches), 2))


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    exporting.require("onnx")
    known = importlib.util.find_spec
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else known(name))
    with pytest.raises(ConfigError, match=r"came no package onnxruntime; pip install 'gracl\[export\]'"):
        exporting.require("onnx")
    exporting.require("torch_export")


def test_what_torch_cannot_export_is_refused_in_one_line(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    encoder = lived(backbone="resnet18")
    encoder.trunk.maxpool = Odd()
    with pytest.raises(GraclError, match="expected an encoder that torch can write as onnx; came ") as refused:
        written(tmp_path, encoder, "onnx")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())

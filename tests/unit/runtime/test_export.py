"""A checkpoint as a folder: it is used as its README says, without gracl, and gives gracl's features."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gracl
from gracl.errors import CheckpointError, ConfigError, GraclError, ImageError
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.learning import exporting
from gracl.learning.checkpoint import TrainState, load_encoder, save_state
from gracl.learning.encoder import build_encoder
from gracl.learning.identity import model_digest
from gracl.learning.served import Served
from gracl.runtime import export as verb
from gracl.runtime.export import export
from gracl.uses import ExportConfig

ALONE = """
import sys
sys.path.insert(0, "")
for name in ("gracl", "ray", "mlflow", "simplejpeg"):
    sys.modules[name] = None  # importing it raises ImportError
files = sorted(__import__("pathlib").Path({pictures!r}).iterdir())
{code}
numpy.save({out!r}, features)
"""
NO_RAY = """
import sys
for name in ("ray", "mlflow"):
    sys.modules[name] = None
import gracl.runtime.export
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    encoder = build_encoder(backbone="resnet18", feature_size=16, bn_group=8)
    with torch.no_grad():
        encoder.neck.running_mean += 0.3
    state = TrainState.fresh(encoder, {"data.train_digest": "d1", "epochs": 2}, height=64, width=32)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    folder = tmp_path_factory.mktemp("runs") / "toy" / "epoch-0001"
    save_state(state.after({"val/mAP": 0.5}, encoder=encoder, optimizer=optimizer), folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(toy_shards, tmp_path_factory):
    """Five files of the toy world, in a folder with one that is no picture."""
    folder, store = tmp_path_factory.mktemp("pictures"), ShardStore.open(toy_shards, "gallery")
    for number, image in enumerate(store.read(np.arange(5))):
        (folder / f"{number}.jpg").write_bytes(bytes(image))
    return folder


@pytest.fixture(scope="module", params=list(exporting.FILES))
def exported(request, checkpoint, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / request.param
    config = ExportConfig(checkpoint=checkpoint, out=str(out), format=request.param, pictures=str(pictures), real=4)
    return request.param, out, export(config)


def test_what_the_readme_says_gives_gracls_features_without_gracl(exported, checkpoint, pictures, tmp_path):
    _, out, _ = exported
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    script = ALONE.format(pictures=str(pictures), code=code, out=str(tmp_path / "features.npy"))
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=out, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, files = np.load(tmp_path / "features.npy"), sorted(pictures.iterdir())
    assert (found.dtype, found.shape) == (np.float32, (5, 16))
    np.testing.assert_allclose(found, gracl.embed(checkpoint, files), atol=1e-5)
    seen = np.stack([eval_view(file.read_bytes(), height=64, width=32) for file in files])
    np.testing.assert_allclose(found, Served(checkpoint).predict(seen), atol=1e-5)


def test_the_facts_are_those_of_the_model_and_its_files(exported, checkpoint):
    form, out, result = exported
    facts = json.loads((out / "export.json").read_text())
    encoder, view = load_encoder(checkpoint)
    assert (facts["format"], facts["file"]) == (form, exporting.FILES[form])
    assert facts["model"] == result["model"] == model_digest(encoder, view)
    assert (facts["view"], facts["feature_size"]) == (view, 16)
    assert facts["input"]["shape"] == ["batch", 64, 32, 3]
    assert facts["output"]["shape"] == ["batch", 16]
    assert facts["encoder"] == encoder.options
    assert {name for name in facts["sha256"]} == {facts["file"], "preprocess.py", "README.md"}
    for name, digest in facts["sha256"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    checked = facts["checked"]
    assert (checked["drawn"]["pictures"], checked["real"]["pictures"], checked["tolerance"]) == (16, 4, 1e-4)
    largest = max(checked["drawn"]["largest"], checked["real"]["largest"])
    assert result["largest_difference"] == largest <= 1e-5
    assert min(checked["drawn"]["smallest_cosine"], checked["real"]["smallest_cosine"]) > 0.99999
    assert facts["opset"] == (18 if form == "onnx" else None)


def test_the_card_is_beside_it(exported):
    text = (exported[1] / "README.md").read_text()
    assert "# toy/epoch-0001" in text
    assert "| mAP | 50.0% |" in text
    assert "docs/responsible_use.md" in text


def test_a_folder_that_holds_an_export_is_refused_and_left_alone(exported, checkpoint):
    _, out, _ = exported
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    with pytest.raises(ConfigError, match="which holds one; choose another out="):
        export(ExportConfig(checkpoint=checkpoint, out=str(out)))
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before


def test_features_that_are_too_far_away_are_never_written(checkpoint, tmp_path, monkeypatch):
    def turned(path):
        run = known(path)
        return lambda images: run(images[..., ::-1].copy())  # blue first: the mistake that is made most

    known = exporting.load_exported
    monkeypatch.setattr(verb.exporting, "load_exported", turned)
    with pytest.raises(GraclError, match=r"within tolerance=0.0001 of PyTorch's; came a difference of .* in 16 drawn"):
        export(ExportConfig(checkpoint=checkpoint, out=str(tmp_path / "out"), format="torch_export"))
    assert not [file for file in (tmp_path / "out").rglob("*") if file.name in {"export.json", "exported.pt2"}]


def test_what_cannot_be_done_is_refused_before_the_work(checkpoint, pictures, tmp_path, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("work was begun")

    monkeypatch.setattr(verb.exporting, "export", never)
    out = {"out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="a folder with pictures .* in which there are none"):
        export(ExportConfig(checkpoint=checkpoint, pictures=str(tmp_path), **out))
    with pytest.raises(CheckpointError, match="no such file"):
        export(ExportConfig(checkpoint=str(tmp_path / "none"), **out))
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'gracl\[export\]'"):
        export(ExportConfig(checkpoint=str(tmp_path / "none"), **out))


def test_a_real_picture_that_cannot_be_read_is_named(checkpoint, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"hello")
    config = {"out": str(tmp_path / "out"), "pictures": str(tmp_path), "format": "torch_export"}
    with pytest.raises(ImageError, match=r"bad\.jpg; came expected the bytes of a whole picture"):
        export(ExportConfig(checkpoint=checkpoint, **config))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"format": "torch_export", "opset": 19}, "expected format=onnx beside opset"),
        ({"real": 3}, "expected pictures beside real"),
        ({"tolerance": 0.1}, "less than or equal to 0.01"),
        ({"opset": 17}, "greater than or equal to 18"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        ExportConfig(checkpoint="c", out="o", **more)


def test_the_verb_needs_neither_ray_nor_mlflow():
    done = subprocess.run(
        [sys.executable, "-c", NO_RAY], cwd=Path(gracl.__file__).parents[1], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr

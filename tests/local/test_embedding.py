"""`gracl.embed`: features of files without shards and without Ray."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gracl
from benchmarks.local_twin import learn
from gracl.errors import CheckpointError, ConfigError, GraclError, ImageError
from gracl.images.decoding import decode
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import save_state
from gracl.retrieval.metrics import evaluate_retrieval
from tests.toy import toy_config


@pytest.fixture(scope="module")
def learnt(toy_shards):
    return learn(toy_config(toy_shards, epochs=1))


@pytest.fixture(scope="module")
def checkpoint(learnt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_state(learnt, folder)
    return folder


@pytest.fixture(scope="module")
def files(toy_shards):
    """The files of query and gallery, in the order of the shards' indices."""
    world = Path(toy_shards).parent / "world"
    found = {}
    for split in ("query", "gallery"):
        store = ShardStore.open(toy_shards, split)
        found[split] = [next(world.rglob(Path(name).name)) for name in store.paths(np.arange(len(store)))]
    return found


def test_features_of_files_judge_as_the_run_did(learnt, checkpoint, files, toy_shards):
    sides = [gracl.embed(checkpoint, files[split], batch=7) for split in ("query", "gallery")]
    who = {f"{split}_identities": ShardStore.open(toy_shards, split).identities() for split in files}
    report = evaluate_retrieval(*sides, **who)
    assert report.mean_ap == pytest.approx(learnt.history[-1]["val/mAP"], abs=1e-9)
    for rows in sides:
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    found = gracl.rank(*sides, k=3)
    assert found.indices.shape == (len(files["query"]), 3)


def test_a_picture_is_a_name_bytes_or_pixels(checkpoint, files):
    path = files["query"][0]
    content = path.read_bytes()
    large = np.asarray(Image.fromarray(decode(content)).resize((64, 96)))
    file = io.BytesIO()
    Image.fromarray(large).save(file, "PNG")
    rows = gracl.embed(
        gracl.load_encoder(checkpoint), [path, str(path), content, decode(content), large, file.getvalue()]
    )
    np.testing.assert_allclose(rows[1:4], np.repeat(rows[:1], 3, axis=0), atol=1e-6)
    np.testing.assert_allclose(rows[4], rows[5], atol=1e-6)
    assert not np.allclose(rows[0], rows[4], atol=1e-3)


def test_what_is_described_does_not_depend_on_batches_and_threads(checkpoint, files):
    done = []
    wanted = gracl.embed(checkpoint, files["gallery"], batch=1000)
    found = gracl.embed(checkpoint, files["gallery"], batch=5, threads=1, progress=done.append)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert done[-1] == len(files["gallery"])
    assert done == sorted(done)
    assert gracl.embed(checkpoint, []).shape == (0, wanted.shape[1])


def test_flipped_features_are_the_mean_of_both_sides(checkpoint, files):
    pictures = [decode(path.read_bytes()) for path in files["query"][:3]]
    turned = [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures]
    sums = gracl.embed(checkpoint, pictures) + gracl.embed(checkpoint, turned)
    wanted = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(gracl.embed(checkpoint, pictures, flip=True), wanted, atol=1e-6)


def test_what_cannot_be_described_is_named(checkpoint, files, tmp_path):
    good = files["query"][0]
    with pytest.raises(ImageError, match=r"a picture at .*nowhere.jpg \(image 1\)"):
        gracl.embed(checkpoint, [good, tmp_path / "nowhere.jpg"])
    with pytest.raises(ImageError, match="image 1 .*the bytes of a whole picture"):
        gracl.embed(checkpoint, [good, good.read_bytes()[:40]])
    with pytest.raises(GraclError, match=r"of image 0; came float64 \[8, 8, 3\]"):
        gracl.embed(checkpoint, [np.zeros((8, 8, 3))])
    with pytest.raises(ConfigError, match="batch and threads of at least 1; came 0 and 2"):
        gracl.embed(checkpoint, [good], batch=0)
    with pytest.raises(CheckpointError, match="nowhere"):
        gracl.embed(tmp_path / "nowhere", [good])


def test_the_lines_of_the_readme_run(checkpoint, toy_shards, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)
    (block,) = (one for one in blocks if "gracl.embed" in one)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "epoch-0010").symlink_to(checkpoint)
    (tmp_path / "world").symlink_to(Path(toy_shards).parent / "world")
    monkeypatch.chdir(tmp_path)
    exec(block, {"Path": Path, "gracl": gracl})
    query, *found = re.findall(r"\w+\.jpg", capsys.readouterr().out)
    assert (tmp_path / "world" / "query" / query).exists()
    assert len(found) == 5
    assert all((tmp_path / "world" / "bounding_box_test" / name).exists() for name in found)

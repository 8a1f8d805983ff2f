"""No ground truth in training: with the train split's identities replaced by noise a run is bit-equal."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.local_twin import learn
from gracl.checksums import sha256_of
from gracl.images.manifests import read_manifest
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import load_state
from gracl.randomness import rng
from gracl.runtime.train import train
from tests.local.test_fit import assert_same_run
from tests.toy import toy_config


@pytest.fixture(scope="module")
def lying_shards(toy_shards, tmp_path_factory):
    """The toy shards with random identities in the train split, and checksums that fit them."""
    root = tmp_path_factory.mktemp("lying") / "shards"
    shutil.copytree(toy_shards, root)
    for shard in read_manifest(str(root), "train").shards:
        path = root / "train" / shard.file
        table = pa.ipc.open_file(path.read_bytes()).read_all()
        noise = rng(0, "lies", shard.first_index).integers(1, 9, table.num_rows)
        column = table.schema.get_field_index("object_id")
        before = sha256_of(path)
        _replace(path, table.set_column(column, "object_id", pa.array(noise)))
        manifest = root / "train" / "manifest.json"
        manifest.write_text(manifest.read_text().replace(before, sha256_of(path)))
    return str(root)


def _replace(path: Path, table: pa.Table) -> None:
    before = path.stat().st_size
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert path.stat().st_size == before


def test_the_identities_really_lie(toy_shards, lying_shards):
    stores = [ShardStore.open(root, "train") for root in (toy_shards, lying_shards)]
    assert (stores[0].identities().object_ids != stores[1].identities().object_ids).mean() > 0.5
    np.testing.assert_array_equal(stores[0].camera_ids(), stores[1].camera_ids())


def test_the_local_run_is_bit_equal(toy_shards, lying_shards):
    assert_same_run(learn(toy_config(lying_shards)), learn(toy_config(toy_shards)))


@pytest.mark.ray
@pytest.mark.slow
def test_the_run_on_ray_is_bit_equal(ray_cluster, toy_shards, lying_shards, tmp_path, with_mlflow):
    result = train(toy_config(lying_shards, with_mlflow(tmp_path), name="lies"))
    assert_same_run(load_state(result["checkpoint"]), learn(toy_config(toy_shards)))

"""What tests share: one small Ray cluster for all that need one."""

import logging
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from gracl.images.ingesting import ingest_here
from gracl.images.synthetic import write_world

RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # ray.init() would otherwise leave a token that later clusters must present
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of four logical CPUs with a home and a temporary folder of its own."""
    import ray

    # Short, because socket paths are limited.
    home = tempfile.mkdtemp(prefix="gr-")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**RAY_ENVIRONMENT, "HOME": home}.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=4,
            object_store_memory=400 * 1024**2,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _temp_dir=f"{home}/ray",
        )
        yield
        ray.shutdown()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small synthetic world in shards: 16 identities to learn from, 8 others to be judged on, 32 x 16 pixels."""
    folder = tmp_path_factory.mktemp("toy")
    size = {"train_objects": 16, "test_objects": 8, "cameras": 3, "shots": 3, "height": 32, "width": 16}
    write_world(folder / "world", seed=5, difficulty=0.2, **size)
    ingest_here(str(folder / "world"), str(folder / "shards"), layout="market1501", shard_mb=1)
    return str(folder / "shards")

"""What tests share: one small Ray cluster for all that need one."""

import faulthandler
import gc
import logging
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gracl.images.ingesting import ingest_here
from gracl.images.synthetic import write_world
from tests.s3 import listening, reached_at

RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # ray.init() would otherwise leave a token that later clusters must present
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more for each training, and nobody preempts these
    "OMP_NUM_THREADS": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def _nobody_asks(before: set[threading.Thread], config: pytest.Config) -> None:
    # A thread that still waits for an answer when Ray shuts down ends the whole process: say before that which it was.
    gc.collect()  # the idle threads of a pool that nobody holds any more end with it
    threads = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in threads:
        thread.join(2)
    left = [thread for thread in threads if thread.is_alive()]
    if left:
        with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        raise RuntimeError(f"expected no thread of a test to be at work when Ray shuts down, found {left}")


@pytest.fixture(scope="session")
def s3_socket() -> Iterator[socket.socket]:
    """Where a test may begin a server that speaks S3: workers of Ray only know an environment of before their start."""
    with listening() as place:
        yield place


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest, s3_socket: socket.socket) -> Iterator[None]:
    """A local Ray of four logical CPUs with a home and a temporary folder of its own."""
    import ray

    # Short, because socket paths are limited.
    home = tempfile.mkdtemp(prefix="gr-")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**RAY_ENVIRONMENT, **reached_at(s3_socket), "HOME": home}.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=4,
            object_store_memory=400 * 1024**2,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _temp_dir=f"{home}/ray",
        )
        before = set(threading.enumerate())
        yield
        try:
            _nobody_asks(before, request.config)
        finally:
            ray.shutdown()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def with_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Puts an empty MLflow file into a folder of runs and returns the folder: to make one anew takes seconds."""
    from mlflow import MlflowClient

    made = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{made}").search_experiments()

    def put(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, folder / made.name)
        return folder

    return put


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small synthetic world in shards: 16 identities to learn from, 8 others to be judged on, 32 x 16 pixels."""
    folder = tmp_path_factory.mktemp("toy")
    size = {"train_objects": 16, "test_objects": 8, "cameras": 3, "shots": 3, "height": 32, "width": 16}
    write_world(folder / "world", seed=5, difficulty=0.2, **size)
    ingest_here(str(folder / "world"), str(folder / "shards"), layout="market1501", shard_mb=1)
    return str(folder / "shards")


@pytest.fixture(scope="session")
def cameraless(toy_shards: str) -> str:
    """The pictures that the toy world learns from, as somebody has them who recorded neither cameras nor identities."""
    folder = Path(toy_shards).parent
    ingest_here(str(folder / "world" / "bounding_box_train"), str(folder / "blind"), layout="unlabelled")
    return str(folder / "blind")

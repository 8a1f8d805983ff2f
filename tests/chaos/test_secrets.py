"""What stands in the environment alone is written nowhere, and the private Ray listens on this machine alone."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from benchmarks.local_twin import learn
from gracl.learning.checkpoint import save_state
from tests.architecture.imports import ROOT
from tests.toy import TOY, toy_config

MARK = "s3cr3t-m4rk"
SECRETS = {
    name: f"{MARK}-{name}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MY_OWN_API_TOKEN")
} | {"AWS_ACCESS_KEY_ID": "somebody", "MLFLOW_TRACKING_USERNAME": "somebody"}


def told(folder: Path) -> list[str]:
    """The files under a folder that hold the mark; sockets and the like have no content of their own."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [str(path) for path in files if MARK.encode() in path.read_bytes()]


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/leak.log").write_text(f"key={SECRETS['AWS_SECRET_ACCESS_KEY']}")
    (tmp_path / "a/clean.log").write_text("key=***")
    assert told(tmp_path) == [str(tmp_path / "a/leak.log")]


@pytest.mark.slow
def test_a_local_fit_writes_no_secret(
    toy_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    save_state(learn(toy_config(toy_shards, epochs=1)), tmp_path)
    assert told(tmp_path) == []
    assert MARK not in "".join(capfd.readouterr())


@pytest.mark.parametrize("door", ["train", "evaluate", "extract", "ingest", "publish", "review"])
def test_a_door_that_only_shows_its_settings_shows_no_secret(door: str, tmp_path: Path) -> None:
    needed = {
        "train": ["data.root=s3://bucket/x", "tracking.uri=http://mlflow:5000"],
        "evaluate": ["checkpoint=x", "data.root=s3://bucket/x"],
        "extract": ["checkpoint=x", "data.root=x", "split=query", "out=x"],
        "ingest": ["layout=market1501", "raw=s3://bucket/raw", "out=s3://bucket/x"],
        "publish": ["checkpoint=x", "model=m"],
        "review": ["checkpoint=x", "data.root=x", "out=x.html"],
    }[door]
    for last in (["--print"], ["--help"], ["no.such=setting"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / f"pipelines/{door}.py"), *needed, *last],
            env=os.environ | SECRETS | {"PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == (2 if last == ["no.such=setting"] else 0), done.stderr
        assert done.stdout + done.stderr
        assert MARK not in done.stdout + done.stderr


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets want short paths."""
    with tempfile.TemporaryDirectory(prefix="gr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def open_to_others(process: psutil.Process) -> set[tuple[str, str, int]]:
    """Program, address and port of each socket of a process and its children on which others could call."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            for place in one.net_connections("inet"):
                listens = place.status == psutil.CONN_LISTEN
                if listens and not ip_address(place.laddr.ip.removeprefix("::ffff:")).is_loopback:
                    found.add((one.name(), place.laddr.ip, place.laddr.port))
        except psutil.Error:
            continue  # it has ended meanwhile
    return found


@pytest.mark.ray
@pytest.mark.services
@pytest.mark.slow
def test_a_training_on_a_private_ray_writes_no_secret_and_opens_no_door(toy_shards: str, short_folder: Path) -> None:
    home, runs = short_folder / "home", short_folder / "runs"
    home.mkdir()
    hidden = {"HOME": str(home), "RAY_TMPDIR": str(short_folder / "ray"), "PYTHONPATH": str(ROOT)}
    settings = [f"{name}={value}" for name, value in (TOY | {"epochs": 1, "data.root": toy_shards}).items()]
    given = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    listening: set[tuple[str, str, int]] = set()
    looks = 0
    with (short_folder / "out").open("w") as out, (short_folder / "err").open("w") as err:
        door = subprocess.Popen(
            [sys.executable, str(ROOT / "pipelines/train.py"), *settings, f"runs={runs}", "name=hidden"],
            env=given | SECRETS | hidden,
            stdout=out,
            stderr=err,
        )
        try:
            while door.poll() is None:
                listening |= open_to_others(psutil.Process(door.pid))
                looks += 1
                time.sleep(0.5)
        finally:
            door.terminate()
    assert door.returncode == 0, (short_folder / "err").read_text()
    assert looks > 5
    assert json.loads((short_folder / "out").read_text().splitlines()[-1])["run"] == "hidden"
    assert (runs / "mlflow.db").is_file()
    assert list((short_folder / "ray").rglob("*.log"))  # Ray's own logs are among what is searched
    assert told(short_folder) == []
    # Where the ranks of torch meet (TCPStore) is open on every address, for which torch has no setting.
    assert {program.split(".")[0] for program, _, _ in listening} <= {"ray::RayTrainWorker"}
    assert len({port for _, _, port in listening}) <= 1

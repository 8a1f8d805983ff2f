"""`ray job submit` for real: a head and two more raylets on this machine, with token authentication, and jobs on them.

Prints each command with what it said and how long it took; `docs/clusters.md` has such a transcript. Needs shards.

    python -m benchmarks.rehearse_jobs shards=demo/shards runs=/tmp/rehearsed out=transcript.md
"""

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Where raylets and their workers listen; the dashboard's clients keep to their own ports.
_WORKERS = ("--min-worker-port=0", "--max-worker-port=0")


@dataclass(frozen=True)
class Said:
    """What a command said: exit code, both outputs in one, seconds."""

    code: int
    text: str
    seconds: float


@dataclass
class LocalCluster:
    """A head and more raylets of this machine, each a process group of its own, reached with a token.

    Attributes:
        home: the home folder and place of temporary files of all its processes; short, for socket paths are limited.
        environment: what a client needs, too.
        address: where a driver that does not come as a job joins it.
        cpus, store_mb: of each raylet.
    """

    home: Path
    environment: Mapping[str, str]
    address: str
    cpus: int
    store_mb: int
    raylets: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *words: str, timeout: float = 300.0) -> Said:
        """Runs a command as a client of the cluster, from the project's root."""
        begun = time.monotonic()
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return Said(done.returncode, done.stdout, time.monotonic() - begun)

    def driving(self) -> dict[str, str]:
        """The environment of a driver that joins it, and does not come as a job."""
        return {**self.environment, "RAY_ADDRESS": self.address}

    def join(self) -> None:
        """One more raylet, with a node of its own; there when this returns."""
        known = self.nodes()
        _start(self, f"--address={self.address}")
        # One after the other: two that register at once from one address may be taken for each other.
        _wait(self, lambda: bool(self.nodes() - known), "another node")

    def nodes(self) -> set[str]:
        """The ids of the nodes that live, as far as the head knows."""
        said = self.command("ray", "list", "nodes", "--filter", "state=ALIVE", "--format", "json")
        return {node["node_id"] for node in json_in(said.text)} if said.code == 0 else set()

    def job(self, name: str) -> str:
        """The status of a job, such as RUNNING."""
        said = self.command("ray", "job", "status", name).text
        found = re.search(rf"Job '{name}' (?:was )?(\w+)|Status for job '{name}': (\w+)", _plain(said))
        return (found[1] or found[2]).upper() if found else said


@contextmanager
def local_cluster(
    *, nodes: int = 3, cpus: int = 2, store_mb: int = 200, extra: Mapping[str, str] | None = None
) -> Iterator[LocalCluster]:
    """A cluster for the length of a block; its processes, and no others, are stopped at the end.

    Args:
        nodes: raylets, the head's among them.
        cpus: logical CPUs of each.
        store_mb: size of each object store.
        extra: more of the environment of all its processes.
    """
    home, (port, dashboard, client) = Path(tempfile.mkdtemp(prefix="gr-")), free_ports(3)
    # The entrypoint of a job is looked for on the path of the head.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | {
        "HOME": str(home),
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody is served here who would have to be waited for
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        **(extra or {}),
    }
    cluster = LocalCluster(home, environment, f"127.0.0.1:{port}", cpus, store_mb)
    try:
        _start(
            cluster,
            "--head",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
        )
        _wait(cluster, lambda: cluster.command("ray", "job", "list").code == 0, "the head")
        for _ in range(nodes - 1):
            cluster.join()
        yield cluster
    finally:
        for raylet in reversed(cluster.raylets):
            _stop(raylet)
        shutil.rmtree(home, ignore_errors=True)


def free_ports(many: int) -> list[int]:
    """Ports of loopback that nobody listens on at this moment."""
    holders = [socket.socket() for _ in range(many)]
    for holder in holders:
        holder.bind(("127.0.0.1", 0))
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def _start(cluster: LocalCluster, *options: str) -> None:
    log = (cluster.home / f"raylet-{len(cluster.raylets)}.log").open("wb")
    with log:
        raylet = subprocess.Popen(
            # A folder for each, as on machines of their own: raylets that share one unpack a job over each other.
            # And a port for the agent that begins jobs: another Ray of this machine may have the usual one.
            [
                "ray",
                "start",
                *options,
                f"--num-cpus={cluster.cpus}",
                f"--object-store-memory={cluster.store_mb * 1024**2}",
                "--node-ip-address=127.0.0.1",
                "--block",
                *_WORKERS,
                f"--temp-dir={cluster.home}/{len(cluster.raylets)}",
                f"--dashboard-agent-listen-port={free_ports(1)[0]}",
            ],
            cwd=ROOT,
            env=dict(cluster.environment),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster.raylets.append(raylet)


def json_in(text: str) -> list[dict[str, Any]]:
    """The JSON list that a command printed behind its notes; empty where it printed none."""
    start = text.find("\n[") if not text.startswith("[") else 0
    found: list[dict[str, Any]] = json.loads(text[start:]) if start >= 0 else []
    return found


def _wait(cluster: LocalCluster, there: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        ended = cluster.raylets[-1].poll() is not None
        if ended or time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(cluster.home.glob("raylet-*.log")))
            raise RuntimeError(f"waited for {what}; its raylet {'has ended' if ended else 'lives'}:\n{logs}")
        time.sleep(1)


def _stop(raylet: subprocess.Popen[bytes]) -> None:
    """SIGTERM to `ray start --block`, which stops what it started."""
    raylet.terminate()
    try:
        raylet.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(raylet.pid, signal.SIGKILL)
        raylet.wait()


def submit(name: str, *entrypoint: str, options: Sequence[str] = ()) -> list[str]:
    """The words of `ray job submit` for a job of that name."""
    return ["ray", "job", "submit", "--working-dir", ".", "--submission-id", name, *options, "--", *entrypoint]


class Transcript:
    """What was typed and said, as Markdown."""

    def __init__(self, cluster: LocalCluster, places: Mapping[str, str]) -> None:
        self._cluster, self._places, self.parts = cluster, places, list[str]()

    def say(self, text: str) -> None:
        """A line of our own."""
        self.parts.append(f"{text}\n")

    def run(self, *words: str, last: int = 14, timeout: float = 300.0) -> Said:
        """Runs a command and notes it with the last lines that it said."""
        said = self._cluster.command(*words, timeout=timeout)
        lines = [line for line in _plain(said.text).splitlines() if line.strip()]
        shown = (["..."] if len(lines) > last else []) + lines[-last:]
        command = self._named(" ".join(shlex.quote(word) for word in words))
        text = "\n".join([f"$ {command}", *map(self._named, shown), f"[exit {said.code}, {said.seconds:.0f} s]"])
        self.parts.append(f"```\n{text}\n```\n")
        print(text, flush=True)
        return said

    def _named(self, text: str) -> str:
        for place, name in self._places.items():
            text = text.replace(place, name)
        return text


def _plain(text: str) -> str:
    """Without colours, and without what a progress line wrote over."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "\n")


def wait_until(there: Callable[[], bool], seconds: float) -> bool:
    """Whether something has come true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def rehearse(cluster: LocalCluster, shards: Path, runs: Path, started: float) -> list[str]:
    """Submit, follow, stop, resume, fail; and the two ways to bring the project's packages along."""
    note = Transcript(
        cluster, {str(shards): "SHARDS", str(runs): "RUNS", str(ROOT): "PROJECT", str(cluster.home): "HOME"}
    )
    train = ["python", "pipelines/train.py", "pipelines/presets/demo.yaml", f"data.root={shards}", f"runs={runs}"]
    train += ["scale.workers=2", "epochs=3", "eval_every=3", "sampling.steps=8"]
    note.say(f"A head and two raylets were there after {started:.0f} s.")
    note.run("ray", "status", last=20)
    note.say("Submit, without waiting; look; follow until an epoch is kept.")
    note.run(*submit("first", *train, "name=job", options=["--no-wait"]))
    kept = wait_until((runs / "job" / "epoch-0001").exists, 400)
    note.run("ray", "job", "status", "first", last=2)
    note.run("ray", "job", "logs", "first", last=8)
    note.say("Stop it" + (", one epoch being kept." if kept else "."))
    note.run("ray", "job", "stop", "first")
    time.sleep(5)
    note.run("ray", "list", "actors", "--filter", "state=ALIVE", last=6)
    note.run("ray", "status", last=8)
    note.say("Submit the same command under another job: the run goes on.")
    note.run(*submit("second", *train, "name=job"), timeout=590, last=16)
    note.run("ray", "job", "status", "second", last=2)
    note.say("Refused before it starts, and failed in the middle: both are FAILED jobs.")
    note.run(*submit("refused", *train, "name=refused", "data.query=nosuch"), last=6)
    note.run(*submit("failed", *train, "name=failed", "optim.rate=1e30"), timeout=590, last=6)
    for name in ("refused", "failed"):
        note.run("ray", "job", "status", name, last=2)
    for form in ("pip", "uv"):
        note.say(f"With an environment that Ray makes by {form} on each node.")
        wanted = [f"--runtime-env=deploy/runtime_env_{form}.yaml"]
        note.run(*submit(form, *train, f"name={form}", "epochs=1", options=wanted), timeout=590, last=6)
    note.run("ray", "list", "actors", "--filter", "state=ALIVE", last=6)
    return note.parts


def main() -> None:
    """Rehearses and writes the transcript."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if {*options} != {"shards", "runs", "out"}:
        raise SystemExit(f"expected shards=, runs= and out=; came {' '.join(sys.argv[1:])}; see the head of this file")
    shards, runs = Path(options["shards"]).absolute(), Path(options["runs"]).absolute()
    begun = time.monotonic()
    with local_cluster() as cluster:
        parts = rehearse(cluster, shards, runs, time.monotonic() - begun)
    Path(options["out"]).write_text("\n".join(parts))


if __name__ == "__main__":
    main()

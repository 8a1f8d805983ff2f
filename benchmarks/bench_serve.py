"""The service under load on loopback: p50 and p99 at stated rates, and what becomes of requests beyond what it can do.

Starts `deploy/serve.py`, asks `POST /search` with pictures of the gallery at each rate (a constant one; nobody waits
for an answer before the next is sent), and stops it. Each answer is looked at: a picture of the gallery must find
itself. Seconds count from when a request was due. The asking process uses the same cores.

    python -m benchmarks.bench_serve checkpoint=demo/runs/demo/epoch-0010 index=index pictures=gallery \
        rates=5,10,20,40,80,160 seconds=20 out=serve.json
"""

import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.rehearse_jobs import free_ports

ROOT = Path(__file__).parents[1]


@dataclass
class Running:
    """A service that was started: its address, and once it has been stopped what it said."""

    url: str
    process: subprocess.Popen[str]
    out: str = ""
    err: str = ""
    code: int | None = None
    told: bool = False
    said: dict[str, Any] = field(default_factory=dict)

    def interrupt(self) -> None:
        """Ctrl-C, once: a second one would end it at once."""
        if not self.told and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.told = True

    def stop(self, seconds: float = 90.0) -> None:
        """Ctrl-C, and the wait for its end; a second call does nothing."""
        if self.code is not None:
            return
        self.interrupt()
        try:
            self.out, self.err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.out, self.err = self.process.communicate()
        self.code = self.process.returncode
        lines = self.out.strip().splitlines()
        self.said = json.loads(lines[-1]) if self.code == 0 and lines else {}


@contextmanager
def running(*settings: str, seconds: float = 180.0, home: Path | None = None) -> Iterator[Running]:
    """`deploy/serve.py` with some settings on a free port, for the length of a block.

    Args:
        settings: of the service, without its port.
        seconds: for it to be ready.
        home: its home folder and Ray's; None: as here.
    """
    port = free_ports(1)[0]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"HOME": str(home), "RAY_TMPDIR": str(home / "ray")} if home else {}
    process = subprocess.Popen(
        [sys.executable, "deploy/serve.py", *settings, f"port={port}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    service = Running(f"http://127.0.0.1:{port}/", process)
    try:
        asyncio.run(_until_ready(service, time.monotonic() + seconds))
        yield service
    finally:
        service.stop()


async def _until_ready(service: Running, deadline: float) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(service.url + "healthz") as answer:
                    if answer.status == 200 and (await answer.json())["ready"]:
                        return
            except (aiohttp.ClientError, ValueError):
                pass  # not yet there, or Ray Serve answers by itself that nobody is
            if service.process.poll() is not None or time.monotonic() > deadline:
                service.stop()
                raise RuntimeError(f"the service did not start:\n{service.out}\n{service.err[-4000:]}")
            await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Told:
    """What became of one request: status (0 where there was no answer), seconds since it was due, is the answer right,
    is there a Retry-After, and why there was none."""

    status: int
    seconds: float
    right: bool
    retry_after: bool
    error: str = ""


async def ask_at(url: str, pictures: Sequence[tuple[str, bytes]], rate: float, seconds: float) -> list[Told]:
    """Asks at a constant rate for some seconds and waits for all answers."""
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:

        async def ask(name: str, picture: bytes, due: float) -> Told:
            try:
                async with session.post(url + "search?k=1", data=picture) as answer:
                    said = await answer.json()
                    right = answer.status != 200 or said["results"][0]["path"] == name
                    return Told(answer.status, time.perf_counter() - due, right, "retry-after" in answer.headers)
            except (aiohttp.ClientError, TimeoutError) as error:
                return Told(0, time.perf_counter() - due, False, False, repr(error)[:80])

        begun, asked = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(ask(*pictures[number % len(pictures)], due)))
        return await asyncio.gather(*asked)


def figures(told: Sequence[Told], rate: float, seconds: float) -> dict[str, Any]:
    """What a rate came to."""
    statuses = Counter(one.status for one in told)
    answered = [one.seconds for one in told if one.status == 200]
    put_off = [one.seconds for one in told if one.status == 503]

    def quantile(values: list[float], share: float) -> float | None:
        return round(1000 * float(np.quantile(values, share)), 1) if values else None

    return {
        "asked_per_second": rate,
        "asked": len(told),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "answered_per_second": round(len(answered) / max(seconds, *(one.seconds for one in told)), 2),
        "p50_ms": quantile(answered, 0.5),
        "p99_ms": quantile(answered, 0.99),
        "put_off_share": round(len(put_off) / len(told), 4),
        "put_off_p99_ms": quantile(put_off, 0.99),
        "put_off_without_retry_after": sum(one.status == 503 and not one.retry_after for one in told),
        "without_an_answer": statuses[0],
        "why": dict(Counter(one.error for one in told if one.error)),
        "wrong_answers": sum(not one.right for one in told if one.status == 200),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def main() -> None:
    """Starts, asks, stops, writes."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    named = {"pictures", "rates", "seconds", "out"}
    if not named <= {*options}:
        raise SystemExit(f"expected {', '.join(sorted(named))}; came {' '.join(sys.argv[1:])}; see this file's head")
    settings = [f"{name}={value}" for name, value in options.items() if name not in named]
    files = sorted(Path(options["pictures"]).glob("*.jpg"))[:200]
    pictures, seconds = [(path.name, path.read_bytes()) for path in files], float(options["seconds"])
    lines = []
    with running(*settings) as service:
        asyncio.run(ask_at(service.url, pictures, 5, 3))  # the first ones pay for what is loaded late
        for rate in map(float, options["rates"].split(",")):
            lines.append(figures(asyncio.run(ask_at(service.url, pictures, rate, seconds)), rate, seconds))
            print(json.dumps(lines[-1]), flush=True)
    record = {
        "what": "POST /search of pictures of the gallery on loopback, asked at constant rates",
        "command": "python -m benchmarks.bench_serve " + " ".join(f"{n}={Path(v).name}" for n, v in options.items()),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "service": service.said,
        "rates": lines,
    }
    Path(options["out"]).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""serve(config): pictures in over HTTP, features and ranked results out, until it is told to stop."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from gracl.errors import ConfigError, GraclError, expected
from gracl.runtime.progress import say
from gracl.runtime.service.deployments import application, need_serve, settle
from gracl.runtime.session import Demand, session
from gracl.uses import ServeConfig

NAME = "gracl"
# Ray Serve's 5 s are shorter than the patience of clients and proxies (15 to 60 s), who would send into lines that are
# being closed.
KEEP_ALIVE_S = 75
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(config: ServeConfig) -> dict[str, Any]:
    """Serves until Ctrl-C or SIGTERM; what was let in by then is answered.

    Returns:
        Address, model, and how many answers there were: in all, refused, put off (503), failed.

    Raises:
        ConfigError: what does not fit together, a port that is taken, Ray Serve running already or not installed.
        GraclError: no model or index, a torn one, or a service that does not start.
    """
    settled = settle(config)
    _look_at_port(config.host, config.port)
    cpus = config.replicas * config.replica_cpus + 1
    parts = f"{config.replicas} replicas x {config.replica_cpus:g}, 1 for the gate"
    demand = Demand(cpus, config.replicas * config.replica_gpus, parts, advice="lower replicas or replica_cpus")
    module = need_serve()
    started, private = time.monotonic(), not (ray.is_initialized() or os.environ.get("RAY_ADDRESS"))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with session(demand):
        if module.status().proxies:
            do = "serve run deploy.serve:app adds an application to it"
            raise ConfigError(expected("a cluster without Ray Serve", "one that serves already", do))
        try:
            http = {"host": config.host, "port": config.port, "keep_alive_timeout_s": KEEP_ALIVE_S}
            module.start(proxy_location="HeadOnly", http_options=http)
            try:
                quiet = {"enable_access_log": False}  # it would write a line for each request; /metrics counts them
                handle = module.run(application(settled), name=NAME, logging_config=quiet)
            except RuntimeError as error:
                came = str(error)[-2000:]
                raise GraclError(expected("a service that starts", came, "see Ray's logs of the session")) from error
            url = f"http://{config.host}:{config.port}/"
            say(f"serving at {url} after {time.monotonic() - started:.0f} s, model {settled.model[:12]}; Ctrl-C stops")
            if config.host not in LOOPBACK:
                say("whoever reaches this address may ask: put a proxy that knows its users before it")
            with _told_to_stop() as stop:
                stop.wait()
                totals: dict[str, int] = handle.totals.remote().result(timeout_s=30)
        finally:
            module.delete(NAME)  # which waits for those that were let in
            if not private:  # ours ends with the session; to be told of it by Ray Serve makes it print errors
                module.shutdown()
    return {"url": url, "model": settled.model, **totals, "seconds": round(time.monotonic() - started, 1)}


def _look_at_port(host: str, port: int) -> None:
    """Ray Serve would try for long, and tell it in a file."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, port))
        except OSError as error:
            raise ConfigError(expected(f"a free port at {host}:{port}", str(error), "choose another port=")) from error


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set during the block; a second one ends the process as usual."""
    event = threading.Event()
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: object) -> None:
        event.set()
        for one, handler in before.items():
            signal.signal(one, handler)

    for one in before:
        signal.signal(one, stop)
    try:
        yield event
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)

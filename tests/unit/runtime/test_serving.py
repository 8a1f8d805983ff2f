"""What is settled before Ray Serve is begun, how the gate outlives the processes that describe, how the door ends."""

import asyncio
import os
import signal
import socket
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from deploy.serve import app
from gracl.cli import load_config
from gracl.errors import ConfigError, GraclError
from gracl.runtime import serving
from gracl.runtime.service import deployments
from gracl.runtime.service.answering import Described
from gracl.runtime.service.deployments import TRIES, Gate, settle
from gracl.runtime.service.refusals import Refusal, refusal_of
from gracl.uses import ServeConfig
from tests.unit.runtime.test_search import model, place  # noqa: F401  a world with an index


def config(**asked):
    return load_config(ServeConfig, [f"{name}={value}" for name, value in asked.items()])


@pytest.fixture
def with_serve(monkeypatch):
    """As if Ray Serve were there; nothing here begins it."""
    monkeypatch.setattr(deployments, "need_serve", lambda: None)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "expected checkpoint or index; came neither"),
        ({"checkpoint": "c", "root": "r"}, "expected index beside root"),
        ({"checkpoint": "c", "max_k": 5}, "expected index beside max_k"),
        ({"index": "i", "port": 0}, "port: Input should be greater than or equal to 1"),
        ({"index": "i", "max_pixels": 200_000_000}, "max_pixels: Input should be less than or equal to 178956970"),
    ],
)
def test_settings_that_do_not_fit_are_refused(asked, words):
    with pytest.raises(ConfigError, match=words):
        config(**asked)


def test_the_index_says_where_the_model_is(place, with_serve):  # noqa: F811
    settled = settle(config(index=place / "index"))
    assert (settled.checkpoint, settled.flip) == (str(place / "model"), False)
    alone = settle(config(checkpoint=place / "model", flip=True))
    assert (alone.model, alone.flip) == (settled.model, True)


def test_what_does_not_fit_together_is_refused_before_anything_starts(place, tmp_path, with_serve):  # noqa: F811
    model(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="the index's model .*came the checkpoint's"):
        settle(config(index=place / "index", checkpoint=tmp_path / "other"))
    with pytest.raises(ConfigError, match="flip=false; came the checkpoint's .*flip=true"):
        settle(config(index=place / "index", flip=True))
    with pytest.raises(ConfigError, match="a folder of this machine for an index; came s3://"):
        settle(config(index="s3://bucket/index"))
    with pytest.raises(GraclError, match="an index in .*; came none"):
        settle(config(index=tmp_path))


def test_without_ray_serve_it_says_what_to_install(place, monkeypatch):  # noqa: F811
    def lacking(name):
        raise ModuleNotFoundError("No module named 'grpc_reflection'. You can run `pip install \"ray[serve]\"` to ...")

    monkeypatch.setattr(deployments.importlib, "import_module", lacking)
    with pytest.raises(
        ConfigError, match=r"expected Ray Serve; came No module named 'grpc_reflection'; pip install 'gra"
    ):
        settle(config(index=place / "index"))


def test_a_cluster_has_its_own_port(place):  # noqa: F811
    with pytest.raises(ConfigError, match="no host and port: the cluster has its own; came port; set them in http_opt"):
        app({"index": str(place / "index"), "port": "8001"})


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"a free port at 127.0.0.1:{port}; came .*in use"):
            serving._look_at_port("127.0.0.1", port)
    serving._look_at_port("127.0.0.1", port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_and_the_next_one_is_as_before(number):
    before = signal.getsignal(number)
    with serving._told_to_stop() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


class Encoders:
    """A handle whose replicas die so many times before one answers."""

    def __init__(self, deaths, error=None):
        self.calls, self._deaths, self._error = 0, deaths, error or ActorDiedError()
        self.describe = self.model = SimpleNamespace(remote=self._call)

    async def _call(self, *picture):
        self.calls += 1
        if self.calls <= self._deaths:
            raise self._error
        return Described(None, "asked", 1, True)


def gate(place, encoders):  # noqa: F811
    settled = deployments.Settled(config(checkpoint=place / "model"), str(place / "model"), "m", False)
    return Gate(settled, encoders)


def test_a_picture_is_asked_for_again_where_a_process_dies(place):  # noqa: F811
    encoders = Encoders(TRIES - 1)
    assert asyncio.run(gate(place, encoders)._describe(b"x")).reason == "asked"
    assert encoders.calls == TRIES
    encoders = Encoders(TRIES)
    with pytest.raises(Refusal) as refused:
        asyncio.run(gate(place, encoders)._describe(b"x"))
    assert (refused.value.status, refused.value.headers["retry-after"], encoders.calls) == (503, "5", TRIES)


def test_an_error_of_ours_is_not_asked_for_again(place):  # noqa: F811
    encoders = Encoders(9, ValueError("ours"))
    with pytest.raises(ValueError, match="ours"):
        asyncio.run(gate(place, encoders)._describe(b"x"))
    assert encoders.calls == 1


@pytest.mark.parametrize("error", [ActorDiedError(), RayTaskError("f", "trace", ValueError()), TimeoutError()])
def test_it_is_not_ready_while_nobody_describes(error, place):  # noqa: F811
    assert not asyncio.run(gate(place, Encoders(1, error))._ready())
    assert asyncio.run(gate(place, Encoders(0))._ready())


def test_a_refusal_keeps_the_three_parts_of_an_error():
    refusal = refusal_of(ConfigError("expected a; b; came c; came d; do e"), 400)
    assert (refusal.what, refusal.came, refusal.do) == ("a; b", "c; came d", "do e")
    assert refusal_of(ConfigError("expected a; came b; do c"), 400, "do d").do == "do d"
    other = refusal_of(ConfigError("something else"), 400)
    assert other.came == "something else"


def test_serve_run_gets_an_application_with_a_gate_and_encoders(place):  # noqa: F811
    serve = pytest.importorskip(
        "ray.serve", reason="Ray Serve is not installed: pip install 'gracl[serve]'", exc_type=ImportError
    )
    built = app({"index": str(place / "index"), "batch": "3", "queue": "7", "replicas": "2"})
    assert isinstance(built, serve.Application)
    gate = built._bound_deployment
    assert (gate.name, gate.num_replicas, gate.max_ongoing_requests) == ("Gate", 1, 7 + deployments.SPARE)
    settled, encoders = gate.init_args
    assert settled.config.batch == 3
    assert (encoders._bound_deployment.name, encoders._bound_deployment.num_replicas) == ("Encoders", 2)

"""The service on Ray Serve: one gate, which holds the index and lets in, and replicas that describe in batches."""

import asyncio
import importlib
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from gracl.errors import ConfigError, GraclError, expected
from gracl.images import storage
from gracl.learning.identity import model_digest
from gracl.retrieval.index_files import INDEX, read_facts
from gracl.retrieval.stored import check_model
from gracl.runtime.checkpoints import load_model
from gracl.runtime.search import use_threads
from gracl.runtime.service.answering import Described, Describer, Gallery
from gracl.runtime.service.batching import Together
from gracl.runtime.service.refusals import Refusal
from gracl.runtime.service.web import Limits, Service
from gracl.uses import ServeConfig

# Beside the queue, in Ray Serve's own: quick ways (health, pictures), and those that are told to come again.
SPARE, WAITING = 64, 512
TRIES = 3
HEALTH_S = 2.0


@dataclass(frozen=True)
class Settled:
    """A config that holds: where the model is, which one it is, whether features are averaged with mirror images."""

    config: ServeConfig
    checkpoint: str
    model: str
    flip: bool


def settle(config: ServeConfig) -> Settled:
    """Looks at model and index before anything is started.

    Raises:
        ConfigError: an index of another model, or not on this machine; Ray Serve is not installed.
        GraclError: no index, no model, or a torn one.
    """
    need_serve()
    facts = None
    if config.index is not None:
        if not storage.is_local(config.index):
            do = "build it on a disk of the machine that serves"
            raise ConfigError(expected("a folder of this machine for an index", config.index, do))
        facts = read_facts(storage.local_path(storage.absolute(config.index)) / INDEX)
    checkpoint = storage.absolute(config.checkpoint or (facts.checkpoint if facts else ""))
    model = model_digest(*load_model(checkpoint))
    flip = config.flip if config.flip is not None else bool(facts and facts.flip)
    if facts:
        check_model(facts, model, flip, "the checkpoint's")
    return Settled(config, checkpoint, model, flip)


def need_serve() -> Any:
    """The module ray.serve.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("ray.serve")
    except ImportError as error:
        raise ConfigError(expected("Ray Serve", str(error).split(". ")[0], "pip install 'gracl[serve]'")) from error


class Gate:
    """The one replica that everybody speaks to: HTTP, limits, the index. It sends pictures to be described.

    Args:
        settled: what is served.
        encoders: a handle to the replicas that describe.
    """

    def __init__(self, settled: Settled, encoders: Any) -> None:
        config, self._encoders = settled.config, encoders
        gallery = None
        if config.index is not None:
            use_threads(config.threads)
            gallery = Gallery(config.index, checkpoint=config.checkpoint, root=config.root)
            check_model(gallery.index.facts, settled.model, settled.flip, "the service's")
        limits = Limits(config.queue, config.max_mb * 2**20, config.max_pixels, float(config.body_s), config.max_k)
        self.service = Service(self._describe, settled.model, gallery, ready=self._ready, limits=limits)

    def __serve_build_asgi_app__(self) -> Any:  # Ray Serve asks for this name
        return self.service.app

    async def totals(self) -> dict[str, int]:
        """What was answered so far."""
        return self.service.counters.totals()

    async def _describe(self, picture: bytes) -> Described:
        for _ in range(TRIES):  # whoever was let in is answered, though the replica that had the picture dies
            try:
                found: Described = await self._encoders.describe.remote(picture)
            except RayActorError:
                continue
            return found
        came = f"{TRIES} that died over this picture"
        raise Refusal(503, "a process that describes pictures", came, "ask again later", {"retry-after": "5"})

    async def _ready(self) -> bool:
        try:
            await asyncio.wait_for(self._encoders.model.remote(), HEALTH_S)
        except (TimeoutError, ray.exceptions.RayError):
            return False
        return True


class Encoders:
    """A replica that describes pictures, as many together as wait.

    Raises:
        GraclError: the checkpoint is not any more what it was when the service was settled.
    """

    def __init__(self, settled: Settled) -> None:
        config = settled.config
        device = "cuda" if config.replica_gpus else "cpu"
        describer = Describer(settled.checkpoint, flip=settled.flip, threads=config.threads, device=device)
        if describer.model != settled.model:
            came = f"another one, {describer.model[:12]}"
            raise GraclError(expected(f"the model {settled.model[:12]}", came, "leave checkpoints as they are"))
        self._model = describer.model
        self._together = Together(describer, most=config.batch, wait=config.batch_wait_ms / 1000)

    async def describe(self, picture: bytes) -> Described:
        """What becomes of a picture."""
        return await self._together(picture)

    async def model(self) -> str:
        """Which model it is; answered while pictures are described, too."""
        return self._model


def application(settled: Settled) -> Any:
    """The application that `ray.serve.run` takes."""
    serve, config = need_serve(), settled.config

    encoders = serve.deployment(
        name="Encoders",
        num_replicas=config.replicas,
        max_ongoing_requests=config.queue + SPARE,
        ray_actor_options={"num_cpus": config.replica_cpus, "num_gpus": config.replica_gpus},
    )(Encoders)
    gate = serve.deployment(
        name="Gate",
        num_replicas=1,
        max_ongoing_requests=config.queue + SPARE,
        max_queued_requests=WAITING,
        ray_actor_options={"num_cpus": 1},
    )(serve.ingress()(Gate))
    return gate.bind(settled, encoders.bind(settled))

"""The service as an ASGI application: ways, limits, who is let in, refusals as JSON, figures. It knows no Ray."""

import asyncio
import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jaxtyping import Float32
from numpy import ndarray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gracl.errors import ConfigError, ImageError
from gracl.runtime.service.answering import Described, Gallery, Question
from gracl.runtime.service.bodies import picture_in
from gracl.runtime.service.counters import TYPE, Counters
from gracl.runtime.service.refusals import Refusal, refusal_of

Describe = Callable[[bytes], Awaitable[Described]]
Ask = Callable[[Request], Awaitable[Response]]
_GONE = 499  # whoever asked has hung up: nobody reads this
_SETTINGS = ("k", "camera", "own_camera", "false_match_rate", "of")
_PICTURE_THREADS = 4
PAGE = resources.files("gracl.runtime.service").joinpath("page.html").read_text("utf-8")


@dataclass(frozen=True)
class Limits:
    """What is let in: requests at one time, bytes and pixels of a picture, seconds to arrive, results of a search."""

    queue: int = 64
    most_bytes: int = 16 * 2**20
    most_pixels: int = 50_000_000
    seconds: float = 30.0
    most_k: int = 100


class Service:
    """The ways of the service.

    Args:
        describe: a picture to its feature; called from the event loop, side by side.
        model: digest of the model that does so.
        gallery: to look features up in; None: the service only describes.
        ready: whether the describing part answers.
        limits: see `Limits`.
    """

    def __init__(
        self,
        describe: Describe,
        model: str,
        gallery: Gallery | None = None,
        *,
        ready: Callable[[], Awaitable[bool]],
        limits: Limits | None = None,
    ) -> None:
        self._describe, self._model, self._gallery, self._ready = describe, model, gallery, ready
        self._limits, self.counters = limits or Limits(), Counters()
        self._pace = 0.05  # seconds a seat is taken, a running mean
        # One thread for the index, which is asked by one; and some that fetch pictures.
        self._index, self._pictures = ThreadPoolExecutor(1), ThreadPoolExecutor(_PICTURE_THREADS)
        self._about = {"model": model, **(gallery.about() if gallery else {"rows": 0}), "max_k": self._limits.most_k}
        ways = (
            ("/", "GET", self._page),
            ("/about", "GET", self._told),
            ("/healthz", "GET", self._health),
            ("/metrics", "GET", self._metrics),
            ("/embed", "POST", self._embed),
            ("/search", "POST", self._search),
            ("/picture/{row}", "GET", self._picture),
        )
        routes = [Route(path, self._counted(path, ask), methods=[method]) for path, method, ask in ways]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._astray})

    def _counted(self, way: str, ask: Ask) -> Ask:
        async def asked(request: Request) -> Response:
            begun = time.perf_counter()
            try:
                response = await ask(request)
            except Refusal as refusal:
                response = _refused(refusal)
            except ClientDisconnect:
                response = Response(status_code=_GONE)
            except Exception:
                self.counters.answered(way, 500, time.perf_counter() - begun)
                raise  # the server says 500 and writes down why
            self.counters.answered(way, response.status_code, time.perf_counter() - begun)
            return response

        return asked

    @contextmanager
    def _seat(self) -> Iterator[None]:
        """A place in the queue, taken before a request's body is read: so many bodies are in memory, and no more."""
        if self.counters.under_way >= self._limits.queue:
            seconds = max(1, min(60, math.ceil(self._pace)))
            what, came = f"at most {self._limits.queue} requests at one time", f"one more than {self._limits.queue}"
            raise Refusal(503, what, came, f"ask again in {seconds} s", {"retry-after": str(seconds)})
        self.counters.under_way += 1
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.counters.under_way -= 1
            self._pace += 0.1 * (time.perf_counter() - begun - self._pace)

    async def _described(self, request: Request) -> Float32[ndarray, "dim"]:
        limits, begun = self._limits, time.perf_counter()
        picture = await picture_in(
            request, most_bytes=limits.most_bytes, most_pixels=limits.most_pixels, seconds=limits.seconds
        )
        self.counters.stage("read", begun)
        begun = time.perf_counter()
        found = await self._describe(picture)
        self.counters.stage("describe", begun)
        if found.tells:
            self.counters.batches.add(float(found.batch))
        if found.feature is None:
            raise refusal_of(ImageError(found.reason), 400, "send a whole picture")
        return found.feature

    async def _embed(self, request: Request) -> Response:
        _known(request, ())
        with self._seat():
            feature = await self._described(request)
        return _json({"model": self._model, "size": len(feature), "feature": feature.tolist()})

    async def _search(self, request: Request) -> Response:
        gallery = self._gallery_or_refusal()
        question = question_of(request, self._limits.most_k)
        with self._seat():
            feature = await self._described(request)
            loop, begun = asyncio.get_running_loop(), time.perf_counter()
            try:
                answer = await loop.run_in_executor(self._index, gallery.find, feature, question)
            except ConfigError as error:
                raise refusal_of(error, 400) from error
            self.counters.stage("look up", begun)
        for hit in answer["results"]:
            hit["picture"] = f"picture/{hit['row']}"
        return _json(answer)

    async def _picture(self, request: Request) -> Response:
        gallery, word = self._gallery_or_refusal(), request.path_params["row"]
        row = int(word) if re.fullmatch(r"[0-9]{1,18}", word) else -1
        loop = asyncio.get_running_loop()
        place = await loop.run_in_executor(self._index, gallery.place, row)
        if place is None:
            raise Refusal(404, f"a row from 0 to {self._about['rows'] - 1}", word[:40], "take one from a search")
        try:
            kind, content = await loop.run_in_executor(self._pictures, gallery.picture, place)
        except ImageError as error:
            what = f"the picture of row {row} where it was found"
            raise Refusal(404, what, "none that can be read", "start the service with root=") from error
        # A row keeps its picture; no more than that, for another index may be served at this address tomorrow.
        headers = {"cache-control": "private, max-age=600", "x-content-type-options": "nosniff"}
        return Response(content, media_type=kind, headers=headers)

    def _gallery_or_refusal(self) -> Gallery:
        if self._gallery is None:
            raise Refusal(404, "a service with an index", "one that only describes", "start it with index=")
        return self._gallery

    async def _health(self, request: Request) -> Response:
        ready = await self._ready()
        told = {"ready": ready, "model": self._model, "rows": self._about["rows"]}
        return _json(told, 200 if ready else 503, {} if ready else {"retry-after": "5"})

    async def _told(self, request: Request) -> Response:
        return _json(self._about)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.counters.text(), headers={"content-type": TYPE})

    async def _page(self, request: Request) -> Response:
        return Response(PAGE, media_type="text/html", headers=_page_headers())

    async def _astray(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        ways = "one of GET /, /about, /healthz, /metrics, /picture/<row>; POST /embed, /search"
        self.counters.answered("other", status, 0.0)
        return _refused(Refusal(status, ways, f"{request.method} {request.url.path}"[:200], "ask one of these"))


def question_of(request: Request, most_k: int) -> Question:
    """What the address of a search asks for.

    Raises:
        Refusal: 400 with a setting that is not known, stands twice, or has another form.
    """
    _known(request, _SETTINGS)
    given = request.query_params
    k = given.get("k", "10")
    if not re.fullmatch(r"[0-9]{1,6}", k) or not 1 <= int(k) <= most_k:
        raise Refusal(400, f"k from 1 to {most_k}", k[:40], "ask for fewer or more results")
    rate, of = given.get("false_match_rate"), given.get("of", "pair")
    if of not in ("pair", "query") or (rate is None and "of" in given):
        came = of[:40] if of not in ("pair", "query") else "none"
        raise Refusal(400, "of=pair or of=query, beside false_match_rate", came, "leave it out")
    own = given.get("own_camera")
    if own == "":
        raise Refusal(400, "the name of the query's camera", "none", "leave out own_camera")
    return Question(int(k), tuple(given.getlist("camera")), own, _rate(rate), "pair" if of == "pair" else "query")


def _rate(word: str | None) -> float | None:
    if word is None:
        return None
    try:
        rate = float(word)
    except ValueError:
        rate = math.nan
    if not 0 < rate < 1:
        raise Refusal(400, "a false_match_rate between 0 and 1", word[:40], "ask for 0.01, for example")
    return rate


def _known(request: Request, settings: tuple[str, ...]) -> None:
    given = [name for name, _ in request.query_params.multi_items()]
    strange = [name for name in given if name not in settings]
    twice = [name for name in given if name != "camera" and given.count(name) > 1]
    if strange or twice:
        came = (strange or twice)[0][:40] + ("" if strange else " twice")
        raise Refusal(400, f"settings {', '.join(settings) or 'none'} in the address", came, "leave it out")


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers or {}, "application/json")


def _refused(refusal: Refusal) -> Response:
    return Response(refusal.body(), refusal.status, dict(refusal.headers), "application/json")


def _page_headers() -> dict[str, str]:
    """The page may run its own script and nothing else, and ask nobody but us."""
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)
    ]
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    policy += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

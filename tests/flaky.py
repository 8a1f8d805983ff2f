"""A proxy before a server that speaks S3, which answers every so many requests with a fault of its own."""

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["500", "503", "reset", "cut", "slow"]
SLOW_S = 1.0


@dataclass
class Faults:
    """What to do wrong.

    Attributes:
        kinds: one after the other, over and over.
        every: of so many requests one goes wrong; 1: all.
        done: the faults that were done, with what was asked.
    """

    kinds: Sequence[Fault]
    every: int = 10
    asked: int = 0
    done: list[tuple[Fault, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, what: str) -> Fault | None:
        """The fault of the next request; None for none."""
        with self.lock:
            self.asked += 1
            if self.asked % self.every:
                return None
            fault = self.kinds[len(self.done) % len(self.kinds)]
            self.done.append((fault, what))
            return fault


@contextmanager
def flaky(server: tuple[str, int], faults: Faults) -> Iterator[str]:
    """The address of a proxy before a server, with faults."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def pass_on(self) -> None:
            body = self._body()
            fault = faults.next(f"{self.command} {self.path}")
            if fault == "reset":  # before the server has heard of it
                self._reset()
                return
            if fault in ("500", "503"):
                code = {"500": "InternalError", "503": "SlowDown"}[fault]
                text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>of the test</Message></Error>"
                self._answer(int(fault), [("Content-Type", "application/xml")], text.encode())
                return
            if fault == "slow":
                threading.Event().wait(SLOW_S)
            far = HTTPConnection(*server, timeout=30)
            far.request(self.command, self.path, body, dict(self.headers.items()))
            answer = far.getresponse()
            content = answer.read()
            far.close()
            self._answer(answer.status, answer.getheaders(), content, cut=fault == "cut")

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            del self.headers["Transfer-Encoding"]
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            body = b"".join(parts)
            self.headers["Content-Length"] = str(len(body))
            return body

        def _answer(
            self, status: int, headers: Sequence[tuple[str, str]], content: bytes, *, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = dict((name.lower(), value) for name, value in headers).get("content-length", len(content))
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:  # after the server has done what was asked, in the middle of its answer
                self.wfile.flush()
                self._reset()

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # of connections that were reset on purpose

    proxy = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        thread.join(10)
        proxy.server_close()

"""HTTP of the test Hub: a request is read whole, answered by a function, and the response streamed, range or all."""

import contextlib
import io
import json
import re
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.hub.hub_repository import HubError
from tests.hub.hub_traffic import Delay, Disconnection, Exchange, Refusal, Traffic

CHUNK_BYTES = 64 * 1024
BODY_IN_MEMORY_BYTES = 1024**2


@dataclass
class Request:
    """What a client asks; a large body lies in a temporary file."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str | None
    body: IO[bytes]

    def json(self) -> Any:
        return json.load(self.body)


@dataclass
class Response:
    """What the server answers: bytes, or a file that may be asked for in part."""

    body: bytes | Path = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> "Response":
        body = json.dumps(content).encode()
        return cls(body, status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


class Listener(ThreadingHTTPServer):
    """A server on a free port of the loopback interface, one thread per connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, answer: Callable[[Request], Response], traffic: Traffic):
        super().__init__(("127.0.0.1", 0), Connection)
        self.answer = answer
        self.traffic = traffic
        self.crashes: list[str] = []
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps what went wrong outside an answer, but for clients that leave."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            self.crashes.append(traceback.format_exc())

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class ConnectionDropped(Exception):
    """A fault wants the connection to end here, without another byte."""


class Slice(NamedTuple):
    """The bytes of a body that are sent: from `start` up to, but not including, `stop`."""

    start: int
    stop: int


class Connection(BaseHTTPRequestHandler):
    """One connection of a client, which may carry many requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # with it, a body would wait until the client acknowledges the header
    server: Listener

    def serve(self) -> None:
        """Serves one request, faults included."""
        byte_range = self.headers.get("Range")
        self.exchange = Exchange(self.command, self.path, "Authorization" in self.headers, byte_range)
        with self.server.traffic.record(self.exchange) as fault:
            self.fault = fault.kind if fault is not None else None
            try:
                with tempfile.SpooledTemporaryFile(max_size=BODY_IN_MEMORY_BYTES) as body:
                    self._receive(body)
                    self._send(self._answer(body))
            except ConnectionDropped:
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client may have left first
                    self.connection.shutdown(socket.SHUT_RDWR)
            except ConnectionError:  # the client went away
                self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the traffic is recorded instead."""

    def _byte_limit(self, during: Literal["upload", "download"]) -> int | None:
        if isinstance(self.fault, Disconnection) and self.fault.during == during:
            return self.fault.after_bytes
        return None

    def _receive(self, body: IO[bytes]) -> None:
        """Reads the whole body before anything is answered: a refusal must leave no bytes in the connection."""
        limit = self._byte_limit("upload")
        for chunk in self._incoming():
            kept = chunk if limit is None else chunk[: limit - self.exchange.received_bytes]
            self.exchange.received_bytes += len(kept)
            body.write(kept)
            if self.exchange.received_bytes == limit:
                break
        if limit is not None:
            raise ConnectionDropped
        body.seek(0)

    def _incoming(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        remaining = int(self.headers.get("Content-Length", 0))
        while remaining > 0:
            chunk = self.rfile.read(min(remaining, CHUNK_BYTES))
            if not chunk:
                raise ConnectionResetError(f"the client stopped {remaining} bytes before the end of its body")
            remaining -= len(chunk)
            yield chunk

    def _answer(self, body: IO[bytes]) -> Response:
        if isinstance(self.fault, Delay):
            self.server.closing.wait(self.fault.seconds)
        if isinstance(self.fault, Refusal):
            wanted = {"Retry-After": self.fault.retry_after_seconds, "RateLimit": self.fault.rate_limit}
            headers = {name: str(value) for name, value in wanted.items() if value is not None}
            return Response.of_json({"error": "a fault switched on by a test"}, self.fault.status, headers)
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        try:
            return self.server.answer(
                Request(self.command, parts.path, query, self.headers.get("Authorization"), body)
            )
        except HubError as error:
            return Response.of_json({"error": error.message}, error.status, error.headers)
        except Exception:  # a defect of this server: the client sees a 500, and the test the traceback
            self.server.crashes.append(traceback.format_exc())
            return Response.of_json({"error": "the test Hub crashed"}, 500)

    def _send(self, response: Response) -> None:
        size = len(response.body) if isinstance(response.body, bytes) else response.body.stat().st_size
        part = Slice(0, size)
        byte_range = self.headers.get("Range")
        if isinstance(response.body, Path):
            response.headers["Accept-Ranges"] = "bytes"
            if byte_range is not None:
                part = _parse_range(byte_range, size)
                known = f"{part.start}-{part.stop - 1}" if part.stop else "*"
                response.headers["Content-Range"] = f"bytes {known}/{size}"
                response.status = 206 if part.stop else 416
        self.exchange.status = response.status
        self.send_response(response.status)
        for key, value in response.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(part.stop - part.start))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(response.body, part)

    def _send_body(self, body: bytes | Path, part: Slice) -> None:
        limit = self._byte_limit("download")
        remaining = part.stop - part.start if limit is None else min(part.stop - part.start, limit)
        with io.BytesIO(body) if isinstance(body, bytes) else body.open("rb") as content:
            content.seek(part.start)
            while remaining > 0:
                chunk = content.read(min(remaining, CHUNK_BYTES))
                self.wfile.write(chunk)
                remaining -= len(chunk)
                self.exchange.sent_bytes += len(chunk)
        if limit is not None:
            raise ConnectionDropped


def _parse_range(byte_range: str, size: int) -> Slice:
    """The part that a `Range` header names; an empty one if the file has no such part."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", byte_range.strip())
    first, last = match.groups() if match is not None else ("", "")
    if not first:
        return Slice(max(size - int(last), 0), size) if last else Slice(0, 0)
    return Slice(int(first), min(int(last) + 1 if last else size, size)) if int(first) < size else Slice(0, 0)

"""A stand-in for a plain HTTP server: serves what it is told, with ranges, and fails as often as it is told."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

Answer = Callable[[dict[str, str]], "bytes | int"]


@dataclass
class Files:
    """What the server has and was asked.

    Attributes:
        routes: By path: bytes, or a function of the query that gives bytes or a status.
        faults: By path: what to do with the next requests, one each: a status, or ``cut`` in the middle.
        raw: By path: what the next requests are answered, byte by byte, one each; the last stays.
        headers: By path: headers of its answers, such as an ETag, which a range with If-Range must name.
        asked: Paths with their ranges, in order.
        received: The headers of each request, by lower-case names.
    """

    url: str = ""
    routes: dict[str, bytes | Answer] = field(default_factory=dict)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    raw: dict[str, list[bytes]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    received: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Files]:
    files = Files()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(files))
    files.url = f"http://127.0.0.1:{server.server_port}"
    if tls is not None:
        files.url = f"https://127.0.0.1:{server.server_port}"
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    # A client that does not take the certificate breaks off in the middle of the greeting.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(files: Files) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            address = urlparse(self.path)
            wanted = self.headers.get("Range") or ""
            files.asked.append(f"{address.path} {wanted}".strip())
            files.received.append({name.lower(): value for name, value in self.headers.items()})
            if answers := files.raw.get(address.path):
                self.wfile.write(answers.pop(0) if len(answers) > 1 else answers[0])
                return
            faults = files.faults.get(address.path, [])
            fault = faults.pop(0) if faults else None
            route = files.routes.get(address.path, lambda query: 404)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            content = fault if isinstance(fault, int) else route if isinstance(route, bytes) else route(query)
            own = files.headers.get(address.path, {})
            if isinstance(content, int):
                self.send_response(content)
                self._end(own | {"Content-Length": "0"})
                return
            first = int(found[1]) if (found := re.fullmatch(r"bytes=(\d+)-", wanted)) else 0
            if self.headers.get("If-Range") not in (None, own.get("ETag"), own.get("Last-Modified")):
                first = 0
            if first >= len(content) > 0:
                self.send_response(416)
                self._end({})
                return
            self.send_response(206 if first else 200)
            part = content[first:]
            span = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if first else {}
            self._end(own | span | {"Content-Length": str(len(part))})
            self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)

        def _end(self, headers: dict[str, str]) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler

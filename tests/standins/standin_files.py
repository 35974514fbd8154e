"""A stand-in for a plain HTTP server: serves what it is told, with ranges, and fails as often as it is told."""

from __future__ import annotations

import re
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
        asked: Paths with their ranges, in order.
    """

    url: str = ""
    routes: dict[str, bytes | Answer] = field(default_factory=dict)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Files]:
    files = Files()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(files))
    files.url = f"http://127.0.0.1:{server.server_port}"
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

        def do_GET(self) -> None:
            address = urlparse(self.path)
            wanted = self.headers.get("Range") or ""
            files.asked.append(f"{address.path} {wanted}".strip())
            faults = files.faults.get(address.path, [])
            fault = faults.pop(0) if faults else None
            route = files.routes.get(address.path, lambda query: 404)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            content = fault if isinstance(fault, int) else route if isinstance(route, bytes) else route(query)
            if isinstance(content, int):
                self.send_response(content)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = int(found[1]) if (found := re.fullmatch(r"bytes=(\d+)-", wanted)) else 0
            if first >= len(content) > 0:
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            part = content[first:]
            self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)

    return Handler

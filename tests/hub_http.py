"""HTTP under the test Hub of `hub_server.py`: reads a request, asks for the answer, writes it, ranges and all."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple


class HubError(Exception):
    """An answer other than success; `code` becomes the X-Error-Code header that the client tells errors by."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class Request(NamedTuple):
    """A line of `HubServer.requests`; `headers` have lower-case names, `origin` is "hub" or "cdn"."""

    method: str
    path: str
    status: int
    headers: dict
    origin: str


class Reply(NamedTuple):
    body: object = b""  # bytes, a Path (whose parts can be asked for) or anything that JSON holds
    headers: dict = {}
    status: int = 200


def part_of(content: bytes, wanted: str) -> tuple[int, bytes, str]:
    """Status, bytes and Content-Range for a Range header: `bytes=first-last`, `bytes=first-`, `bytes=-count` or ""."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if match is None or not any(match.groups()):
        return 200, content, ""
    total = len(content)
    first = int(match[1]) if match[1] else max(0, total - int(match[2]))
    last = min(int(match[2]), total - 1) if match[1] and match[2] else total - 1
    if first > last:
        return 416, b"", f"bytes */{total}"
    return 206, content[first : last + 1], f"bytes {first}-{last}/{total}"


def handler_of(hub, origin: str) -> type[BaseHTTPRequestHandler]:
    """Handler class of one origin ("hub" or "cdn") of a `HubServer`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else small answers wait 40 ms for the client's acknowledgement

        def log_message(self, *args):
            pass

        def setup(self):
            super().setup()
            hub.connections.add(self.connection)

        def finish(self):
            hub.connections.discard(self.connection)
            super().finish()

        def serve(self):
            headers = {name.lower(): value for name, value in self.headers.items()}
            method = "GET" if self.command == "HEAD" else self.command
            body = hub.folder / f"body-{threading.get_ident()}"
            try:
                self.read_body(headers, body)
                if origin == "cdn":
                    reply = hub.answer_cdn(method, self.path, body)
                else:
                    reply = hub.answer_hub(method, self.path, headers, body)
            except HubError as error:
                reply = Reply({"error": str(error)}, error.headers, error.status)
            except Exception as error:  # a fault of this server: let the client's test see it
                reply = Reply({"error": repr(error)}, {"X-Error-Message": repr(error)}, 500)
            finally:
                body.unlink(missing_ok=True)
            self.send(reply, headers)

        def read_body(self, headers, path):
            with path.open("wb") as file:
                if headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        file.write(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    file.write(self.rfile.read(int(headers.get("content-length") or 0)))

        def send(self, reply, headers):
            status, body, extra = reply.status, reply.body, dict(reply.headers)
            if isinstance(body, Path):
                status, body, extra["Content-Range"] = part_of(body.read_bytes(), headers.get("range", ""))
            elif not isinstance(body, bytes):
                body, extra["Content-Type"] = json.dumps(body).encode(), "application/json"
            hub.requests.append(Request(self.command, self.path, status, headers, origin))
            self.send_response(status)
            for name, value in {**extra, "Content-Length": str(len(body))}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if origin == "cdn" and self.command == "GET" and hub.cut_next_download is not None:
                body, hub.cut_next_download = body[: hub.cut_next_download], None
                self.close_connection = True
            self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    return Handler

"""A double of the Hugging Face hub on loopback, as far as the real `huggingface_hub` asks it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubDouble:
    """Repositories by name, each with its files; `asked` holds the paths of every request."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)  # of private repositories
    promised: dict[str, str] = field(default_factory=dict)  # file → SHA-256 that it claims
    asked: list[str] = field(default_factory=list)

    def model_info(self, name: str) -> dict[str, object]:
        """What the hub's API says of a repository."""
        siblings = [
            {
                "rfilename": file,
                "size": len(data),
                "lfs": {
                    "sha256": self.promised.get(file, hashlib.sha256(data).hexdigest()),
                    "size": len(data),
                    "pointerSize": 134,
                }
                if file.endswith(".safetensors")
                else None,
            }
            for file, data in self.repositories[name].items()
        ]
        return {"id": name, "sha": COMMIT, "private": False, "siblings": siblings}


@contextmanager
def hub_double() -> Iterator[HubDouble]:
    """A running hub."""
    hub = HubDouble()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(head=True)

        def do_GET(self) -> None:
            self._answer(head=False)

        def _answer(self, *, head: bool) -> None:
            path = self.path.partition("?")[0].removeprefix("/")
            hub.asked.append(path)
            api, _, rest = path.partition("api/models/")
            name = "/".join((rest if not api else path).split("/")[:2])
            files = hub.repositories.get(name)
            token = hub.tokens.get(name)
            if files is None or (
                token is not None and self.headers.get("Authorization") != f"Bearer {token}"
            ):
                self._send(401 if token else 404, b"{}", {}, head=head)
            elif not api and "/tree/" in path:
                tree = [
                    {"type": "file", "path": f, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for f, d in files.items()
                ]
                self._send(200, json.dumps(tree).encode(), {}, head=head)
            elif not api:
                self._send(200, json.dumps(hub.model_info(name)).encode(), {}, head=head)
            else:
                file = path.partition("/resolve/")[2].partition("/")[2]
                data = files.get(file)
                if data is None:
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, head=head)
                    return
                etag = hashlib.sha256(data).hexdigest()
                self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, head=head)

        def _send(self, status: int, data: bytes, headers: dict[str, str], *, head: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if not head:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

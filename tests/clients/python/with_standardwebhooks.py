"""`standardwebhooks`: what a receiver is sent is verified with the secret that it was told."""

from __future__ import annotations

import json
import queue
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from asked import KEY, PROMPT, URL, WANTED, tell
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

came: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()


class Receiver(BaseHTTPRequestHandler):
    """Takes messages."""

    def do_POST(self) -> None:
        """Keep one."""
        body = self.rfile.read(int(self.headers["content-length"]))
        came.put(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One call of the API."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        told: dict[str, Any] = json.load(answer)
        return told


server = HTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()
hook = post("/api/v1/webhooks", {"url": f"http://127.0.0.1:{server.server_port}/"})
given = {name: WANTED[name] for name in ("seed", "steps", "width", "height")}
content = post("/api/v1/content/generate", {"prompt": PROMPT, **given})
headers, body = came.get(timeout=60)
verified = Webhook(hook["secret"]).verify(body, headers)
try:
    Webhook(hook["secret"]).verify(body + b" ", headers)
    forged = "taken"
except WebhookVerificationError:
    forged = "refused"
tell([], type=verified["type"], same=verified["data"]["id"] == content["id"], forged=forged)

"""A receiver of webhooks on loopback: keeps what it was sent, and answers as told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """What one POST brought."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


# A message → HTTP status, or None to answer nothing at all.
Answering = Callable[[Message], int | None]


class WebhookReceiver:
    """Keeps messages; `answer` decides what each gets."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.answer: Answering = lambda _message: 200
        self.headers: dict[str, str] = {}
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            message = Message(first.split(" ")[1], headers, body)
            self.messages.append(message)
            status = self.answer(message)
            if status is None:
                await reader.read()  # until the sender has had enough
            else:
                extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
                text = f"status {status}"
                head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n{extra}"
                writer.write(f"{head}Connection: close\r\n\r\n{text}".encode())
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[WebhookReceiver]:
    """A receiver that listens."""
    receiver = WebhookReceiver()
    server = await asyncio.start_server(receiver._serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    receiver.url = f"http://127.0.0.1:{port}/hook"
    try:
        yield receiver
    finally:
        server.close()
